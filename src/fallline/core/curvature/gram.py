"""The damped Gauss-Newton system of a batch, solved in the space of the outputs.

    (Jᵀ Q J + λ I) x = Jᵀ r    ⇔    x = Jᵀ δ,  (Q K + λ I) δ = r,    K = J Jᵀ

for n = b c outputs of b samples and d parameters, by the identity (Jᵀ A + λ I)⁻¹ Jᵀ = Jᵀ (A Jᵀ + λ I)⁻¹: a system of n unknowns in
the place of one of d. Exact, at n² d for K and n³ for the solution, with n d numbers held, or fewer with K summed over groups of
parameters. Rounding in δ is that of r / λ where K is singular, n > d: the answer is good to about ε ‖Q K‖ / λ.

The identity for a batch: Korbit, Adeoye, Bemporad, Zanon: Exact Gauss-Newton Optimization for Training Deep Neural Networks,
arXiv 2405.14402.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fallline.core.curvature.gauss_newton import GaussNewton
from fallline.core.errors import MissingOracle
from fallline.core.objective import ModelProblem
from fallline.core.warning import warn

ENTRIES = 1 << 27
"""Numbers of J that are held at once; more than this, and K is summed over groups of whole tensors."""
MANY_OUTPUTS = 4096


def push_through(realisation: ModelProblem, model: GaussNewton, damp: float, sign: float = 1.0, entries: int = ENTRIES) -> Tensor:
    """Return (σ G + λ I)⁻¹ σ ∇L, flat: for a loss that is convex in the outputs the damped Gauss-Newton step, but for its sign.

    Parameters
    ----------
    realisation : ModelProblem
    model : GaussNewton
        Of the realisation, at its weights in place.
    damp : float
        λ > 0, in units of the loss as it is: of a mean over the batch.
    sign : 1 or -1
        σ, -1 for a loss that is concave in the outputs and maximised.
    entries : int
        How many numbers of J may be held at once; a single parameter is never cut.

    Raises
    ------
    MissingOracle
        A sample's outputs depend on other samples, or on masks that are not the same one by one.
    """
    n = model.outputs.numel()
    if n > MANY_OUTPUTS:
        warn(f"the exact Gauss-Newton step solves a system of samples × outputs = {n} unknowns, at the cube of that in time; smaller "
             "batches or conjugate gradients, as in TNGD, cost less")
    gram = sum_of_grams(realisation, model, entries)
    columns = model.output_hessian(gram.reshape(n, *model.outputs.shape), batched=True).reshape(n, n).to(gram.dtype)
    system = sign * columns.mT  # row j of `columns` is Q K e_j, for K is symmetric
    system.diagonal().add_(damp)
    weights = torch.linalg.solve(system, sign * model.residual.reshape(n).to(gram.dtype))
    return model.vjp(weights.reshape(model.outputs.shape))


def sum_of_grams(realisation: ModelProblem, model: GaussNewton, entries: int = ENTRIES) -> Tensor:
    """Return K = J Jᵀ, shape (n, n), from per-sample Jacobians by groups of parameters."""
    n = model.outputs.numel()
    gram = torch.zeros(n, n, dtype=model.dtype, device=model.outputs.device)
    for names in _groups({name: n * p.numel() for name, p in model.point.items()}, entries):
        outputs, jacobians = realisation.per_sample_jacobians({name: model.point[name] for name in names})
        _check_apart(outputs, model.outputs)
        for jacobian in jacobians.values():
            rows = jacobian.reshape(n, -1).to(model.dtype)
            gram.addmm_(rows, rows.mT)
    return gram


def _groups(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    """Names in order, in groups of at most ``limit`` numbers, or of one name."""
    group: list[str] = []
    total = 0
    for name, size in sizes.items():
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    if group:
        yield group


def _check_apart(alone: Tensor, together: Tensor) -> None:
    """Refuse a model whose outputs for a sample are others alone than in the batch."""
    scale = float(together.abs().max())
    tolerance = torch.finfo(together.dtype).eps ** 0.5 * max(scale, 1.0)
    if alone.shape != together.shape or float((alone - together).abs().max()) > tolerance:
        raise MissingOracle("per-sample Jacobians need outputs that depend on one sample each, the first dimension, and on the same "
                            "random masks one by one as in a batch; this model's do not. Call eval() on the layers that mix samples or "
                            "draw masks, or use an optimizer that needs no Jacobians, such as TNGD")
