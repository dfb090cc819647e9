"""Parameter groups by role: matrices, embeddings, heads, norms and biases, for rules that treat them apart."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

ROLES = ("matrix", "embedding", "head", "norm", "bias")

NORMS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
)


def roles(model: nn.Module, **overrides: dict[str, Any]) -> list[dict[str, Any]]:
    """Make one parameter group for every role that occurs in ``model``.

    Parameters
    ----------
    model : nn.Module
        Only parameters that require gradients are taken; tied ones once, under their first role in the order
        embedding, head, norm, bias, matrix.
    **overrides
        Hyperparameters of a role, such as ``norm={"weight_decay": 0.0}``.

    Returns
    -------
    list of dict
        Groups with keys ``params``, ``role`` and the overrides. ``"embedding"``: weights of ``nn.Embedding``
        modules. ``"head"``: the weight of the last ``nn.Linear`` in module order, unless it is the only one. ``"norm"``:
        parameters of normalisation layers. ``"bias"``: any other with fewer than two dimensions. ``"matrix"``: the rest.

    Raises
    ------
    ValueError
        For an unknown role.
    """
    for role in overrides:
        if role not in ROLES:
            raise ValueError(f"unknown role {role!r}; roles are {', '.join(ROLES)}")
    found: dict[str, list[Tensor]] = {role: [] for role in ROLES}
    seen: set[int] = set()

    def take(role: str, p: Tensor | None) -> None:
        if p is not None and p.requires_grad and id(p) not in seen:
            seen.add(id(p))
            found[role].append(p)

    modules = list(model.modules())
    linear = [m for m in modules if isinstance(m, nn.Linear)]
    for m in modules:
        if isinstance(m, nn.Embedding | nn.EmbeddingBag):
            take("embedding", m.weight)
    if len(linear) > 1:
        take("head", linear[-1].weight)
    for m in modules:
        if isinstance(m, NORMS):
            for p in m.parameters(recurse=False):
                take("norm", p)
    for p in model.parameters():
        take("matrix" if p.ndim >= 2 else "bias", p)
    return [{"params": found[role], "role": role, **overrides.get(role, {})} for role in ROLES if found[role]]
