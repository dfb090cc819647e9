"""The damped Gauss-Newton system of a batch, solved in the space of the outputs.

    (Jᵀ Q J + λ I) x = Jᵀ r    ⇔    x = Jᵀ δ,  (Q K + λ I) δ = r,    K = J Jᵀ

for n = b c outputs of b samples and d parameters, by the identity (Jᵀ A + λ I)⁻¹ Jᵀ = Jᵀ (A Jᵀ + λ I)⁻¹: a system of n unknowns in
the place of one of d. Exact, at n² d for K and n³ for the solution, with n d numbers held, or fewer with J taken twice, by groups of
parameters. Where K is singular, n > d, δ has parts of the size of r / λ that Jᵀ cancels: K, the solution and Jᵀ δ are computed in
float64, from one and the same J, so that x is the exact one of a J and a Q that are as good as the model's own precision ε. It is
accurate down to a λ of about ε ‖Jᵀ Q J‖, and to λ of any size where rounding leaves Q positive semi-definite, as in a squared error.

The identity for a batch: Korbit, Adeoye, Bemporad, Zanon: Exact Gauss-Newton Optimization for Training Deep Neural Networks,
arXiv 2405.14402.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import torch
from torch import Tensor

from fallline.core.curvature.gauss_newton import GaussNewton
from fallline.core.errors import MissingOracle
from fallline.core.keys import normal_like
from fallline.core.linalg.batches import symmetric
from fallline.core.objective import ModelProblem
from fallline.core.warning import warn

ENTRIES = 1 << 27
"""Numbers of J that are held at once; more than this, and J is taken by groups of whole tensors, twice."""
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
    ValueError
        The batch is empty.
    """
    n = model.outputs.numel()
    if n == 0:
        raise ValueError(f"the exact Gauss-Newton step needs a batch of at least one sample, got outputs of shape "
                         f"{tuple(model.outputs.shape)}; leave empty batches out")
    if n > MANY_OUTPUTS:
        warn(f"the exact Gauss-Newton step solves a system of samples × outputs = {n} unknowns, at the cube of that in time; smaller "
             "batches or conjugate gradients, as in TNGD, cost less")
    jacobian = SampleJacobian(realisation, model, entries)
    gram = jacobian.gram()
    units = torch.eye(n, dtype=model.outputs.dtype, device=gram.device).reshape(n, *model.outputs.shape)
    system = sign * symmetric(model.output_hessian(units, batched=True).reshape(n, n).to(gram.dtype)) @ gram
    system.diagonal().add_(damp)
    weights = torch.linalg.solve(system, sign * model.residual.reshape(n).to(gram.dtype))
    return jacobian.vjp(weights).to(model.dtype)


class SampleJacobian:
    """J of a batch, a row an output, from per-sample Jacobians: products in float64, of rows as precise as the model is.

    It is held where it has no more than ``entries`` numbers, else taken anew for every product, by groups of parameters.
    """

    def __init__(self, realisation: ModelProblem, model: GaussNewton, entries: int = ENTRIES) -> None:
        self.realisation, self.model, self.n = realisation, model, model.outputs.numel()
        self.groups = list(_groups({name: self.n * p.numel() for name, p in model.point.items()}, entries))
        self._held: list[Tensor] | None = None

    def _columns(self) -> Iterator[Tensor]:
        """The columns of each parameter."""
        for names in self.groups:
            columns = self._taken(names) if self._held is None else self._held
            if len(self.groups) == 1:
                self._held = columns
            yield from (part.to(torch.float64) for part in columns)

    def _taken(self, names: list[str]) -> list[Tensor]:
        outputs, jacobians = self.realisation.per_sample_jacobians({name: self.model.point[name] for name in names})
        together = self.model.outputs
        tolerance = _tolerance(together) * max(float(together.abs().max()), 1.0)
        if outputs.shape != together.shape or float((outputs - together).abs().max()) > tolerance:
            _refuse()
        return [jacobians[name].reshape(self.n, -1) for name in names]

    def gram(self) -> Tensor:
        """Return K = J Jᵀ, shape (n, n), once J has been seen to be the batch's: a head of zeros would hide it in the outputs."""
        gram = torch.zeros(self.n, self.n, dtype=torch.float64, device=self.model.outputs.device)
        probe = normal_like(self.model.outputs, torch.Generator().manual_seed(0))
        row, alone = probe.reshape(self.n).to(gram.dtype), []
        for columns in self._columns():
            gram.addmm_(columns, columns.mT)
            alone.append(row @ columns)
        together = self.model.vjp(probe).to(gram.dtype)
        scale = max(float(gram.trace()) ** 0.5, float(torch.linalg.vector_norm(together)))  # the first is the norm to expect
        if float(torch.linalg.vector_norm(torch.cat(alone) - together)) > _tolerance(self.model.outputs) * scale:
            _refuse()
        return gram

    def vjp(self, u: Tensor) -> Tensor:
        """Return Jᵀ u, flat."""
        return torch.cat([u @ columns for columns in self._columns()])


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


def _tolerance(outputs: Tensor) -> float:
    return float(torch.finfo(outputs.dtype).eps) ** 0.5


def _refuse() -> NoReturn:
    raise MissingOracle("per-sample Jacobians need outputs that depend on one sample each, the first dimension, and on the same "
                        "random masks one by one as in a batch; this model's do not. Call eval() on the layers that mix samples or "
                        "draw masks, or use an optimizer that needs no Jacobians, such as TNGD")
