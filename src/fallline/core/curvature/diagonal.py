"""Estimates of a Hessian's diagonal, from one realisation.

Hutchinson:               ĥ = u ∘ (H u),  u ~ N(0, I);                       E[ĥ] = diag(H)
Gauss-Newton-Bartlett:    ĥ = B · ĝ ∘ ĝ,  ĝ = ∇ mean_b ℓ(f_b, ŷ_b),  ŷ_b ~ softmax(f_b);   E[ĥ] = diag(Gauss-Newton)

The second needs one backward pass and is never negative; the labels are drawn from the model, not taken from the data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fallline.core.errors import MissingOracle
from fallline.core.keys import normal_like


def _signs_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return normal_like(x, generator).sign()


def hutchinson_diagonal(realisation: Any, generator: torch.Generator, signs: bool = False) -> dict[str, Tensor]:
    """Return ``u ∘ (H u)`` by parameter name for one probe ``u``: Gaussian, or of random signs, whose estimate varies less.

    ``realisation`` has ``variables`` and ``hvp`` (``Objective(model, loss)(inputs, targets)``, or a bound problem).
    """
    draw = _signs_like if signs else normal_like
    probe = {name: draw(p, generator) for name, p in realisation.variables.items()}
    product = realisation.hvp(None, probe)
    return {name: u * product[name] for name, u in probe.items()}


def gauss_newton_bartlett(realisation: Any, generator: torch.Generator) -> dict[str, Tensor]:
    """Return ``B · ĝ ∘ ĝ`` by parameter name, with labels drawn from the model's own softmax.

    ``realisation`` has ``outputs()`` (logits, classes last) and ``loss(outputs, targets)`` (the mean cross-entropy); ``B`` is the
    number of predictions, tokens included. Where its ``targets`` are below 0 (``ignore_index=-100``) they stay as they are and do
    not count; ignored tokens that are marked by a class cannot be told from others.

    Raises
    ------
    MissingOracle
        If the realisation has no outputs.
    ValueError
        If they are not logits of at least two classes.
    """
    if not hasattr(realisation, "outputs"):
        raise MissingOracle("the Gauss-Newton-Bartlett estimate needs a model's logits: pass a realisation of "
                            "Objective(model, loss), or use estimator='hutchinson'")
    with torch.enable_grad():
        logits = realisation.outputs()
        labels, count = drawn_labels(logits, getattr(realisation, "targets", None), generator)
        loss = realisation.loss(logits, labels)
        realisation._count_gradient()
        variables = realisation.variables
        gradients = torch.autograd.grad(loss, list(variables.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else count * g * g
            for (name, p), g in zip(variables.items(), gradients, strict=True)}


def drawn_labels(logits: Tensor, targets: Any, generator: torch.Generator) -> tuple[Tensor, Tensor | int]:
    """Labels from the softmax of logits, but targets below 0 (ignored) where there are any; and how many were drawn."""
    classes = logits.shape[-1] if isinstance(logits, Tensor) and logits.ndim else 0
    if classes < 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the Gauss-Newton-Bartlett estimate needs logits of at least two classes in the last dimension, got {shape}; "
                         "use estimator='hutchinson'")
    probabilities = torch.softmax(logits.detach().float(), -1).reshape(-1, classes).to(generator.device)
    labels = torch.multinomial(probabilities, 1, generator=generator).reshape(logits.shape[:-1]).to(logits.device)
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.numel() != labels.numel():
        return labels, labels.numel()
    targets = targets.reshape(labels.shape).to(labels)
    return torch.where(targets < 0, targets, labels), (targets >= 0).sum()
