"""The deep conjugate direction method: a network proposes directions, and linear algebra makes the best of them.

    solve   d = f(r/‖r‖),   d ← d − (⟨p, A d⟩ / ⟨p, A p⟩) p for the last two directions p,   x ← x + (⟨d, r⟩ / ⟨d, A d⟩) d
    train   min_f  mean over b of ‖b − A q ⟨q, b⟩ / ⟨q, A q⟩‖²,   q = f(b):   without solutions, and whatever the scale of q
    data    b = Σ c_i v_i over the Ritz vectors of m Lanczos steps; c_i ~ 9 N(0, 1) for the m/2 + θ lowest, else N(0, 1)

A. Kaneda, O. Akar, J. Chen, V. A. T. Kala, D. Hyde, J. Teran: A deep conjugate direction method for iteratively solving linear systems,
ICML 2023, arXiv 2205.10763.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fallline.core.budget import Budget
from fallline.core.checks import check_count
from fallline.core.driver import solve
from fallline.core.errors import WrongProblem
from fallline.core.keys import Key, as_key
from fallline.core.method import State, Train
from fallline.core.modules import copied
from fallline.core.objective import Training
from fallline.core.operators import LinearOperator, lanczos
from fallline.core.operators.recurrences import ConjugateDirections
from fallline.core.problem import Problem
from fallline.equations.krylov import ConjugateMethod, norm

ZERO = 1e-8  # Ritz values below are those of the null space
LOW = 9.0  # weight of the low end


@dataclass(frozen=True, repr=False, eq=False)
class DCDM(ConjugateMethod):
    """Deep conjugate directions: d = f(r/‖r‖), A-orthogonal to the last ``n_orth``; x ← x + (⟨d, r⟩ / ⟨d, A d⟩) d. For SPD A.

    Parameters
    ----------
    model : nn.Module
        f, from (1, 1, \\*grid) to the same; ``train_dcdm`` trains one. It sees the residual scaled to a root mean square of 1, and in
        its own precision.
    grid : sequence of int
        How the unknowns lie, the last index running fastest.
    n_orth : int, default 2
        Directions to be A-orthogonal to, each of them two vectors of memory.

    Raises
    ------
    WrongProblem
        A is not square, or has not as many rows as the grid points.

    Notes
    -----
    Gap and statuses as for ``ConjugateGradient``. Every step lowers ‖x − x*‖_A, but no theorem says by how much: with directions of no
    use the run ends with its budget. Where the network gives nothing finite, or a direction with ⟨d, A d⟩ ≤ 0 (one in the
    span of those before, to rounding), the residual is the direction, as in conjugate gradients. A step costs an evaluation of f and a
    product; the authors make a second one for the true residual, which here replaces the recurred one only where rounding begins to
    show. They scale r to a norm of 1, so that entries shrink as grids grow. Of a singular A with the constants as its null space
    (Neumann boundaries), b must have the mean 0, as for any method.
    """

    model: nn.Module
    grid: Sequence[int]
    n_orth: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"model must be a network, got a {type(self.model).__name__}")
        if isinstance(self.n_orth, bool) or not isinstance(self.n_orth, int) or self.n_orth < 0:
            raise ValueError(f"n_orth must be a whole number of at least 0, got {self.n_orth!r}; 2 is the paper's")
        for points in self.grid:
            check_count("grid", points, "it holds the points in each direction")

    def check(self, problem: Problem) -> None:
        super().check(problem)
        points = torch.Size(self.grid).numel()
        if points != len(problem.x0):
            raise WrongProblem(f"grid must have as many points as {problem.name!r} has unknowns, got {tuple(self.grid)} for "
                               f"{len(problem.x0)}; DCDM shows the network residuals on it")
        if problem.x0.is_complex():
            raise WrongProblem(f"DCDM needs real numbers, and those of {problem.name!r} are complex")

    def _recurrence(self, problem: Problem) -> ConjugateDirections:
        return ConjugateDirections(problem.matvec, self._propose, self.n_orth)

    def _propose(self, r: Tensor) -> Tensor:
        precision = next((p.dtype for p in self.model.parameters()), r.dtype)
        scaled = r * (len(r) ** 0.5 / norm(r))
        with torch.no_grad():
            d = self.model(scaled.to(precision).view(1, 1, *self.grid)).reshape(-1).to(r.dtype)
        return d if bool(torch.isfinite(d).all() & d.any()) else r

    def _advance(self, problem: Problem, recurrence: State) -> State:
        new = super()._advance(problem, recurrence)
        if new["status"] == "running":
            return new
        return ConjugateDirections(problem.matvec, lambda r: r, self.n_orth).step(recurrence)

    def identity(self, problem: Problem) -> dict[str, str]:
        digest = hashlib.blake2b(digest_size=8)
        for weight in self.model.state_dict().values():
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return {**super().identity(problem), "weights": digest.hexdigest()}

    def __repr__(self) -> str:
        return f"DCDM({type(self.model).__name__}, grid={tuple(self.grid)}, n_orth={self.n_orth})"


def ritz_rhs(A: Tensor | LinearOperator, m: int, theta: int, n: int, *, key: Key | int = 0) -> Tensor:
    """Return n right-hand sides of norm 1, shape (n, N), that weigh the low end of A's spectrum.

    Parameters
    ----------
    A : Tensor (N, N) or LinearOperator
        Symmetric, dense or sparse.
    m : int
        Lanczos steps from A times a Gaussian vector, with full reorthogonalisation: m vectors of memory. The paper takes 10,000.
    theta : int
        So many Ritz vectors more than half have the weight 9; the paper takes 500.
    n : int
    key : Key or int, default 0

    Notes
    -----
    Ritz values below 1e-8 are those of a null space, and dropped. Where the Krylov space is used up earlier, m is its dimension.
    """
    operator, key = _operator(A), as_key(key)
    check_count("n", n, "20,000 are the paper's")
    start = torch.randn(operator.shape[0], dtype=operator.dtype, generator=key.fold("start").generator()).to(operator.device)
    found = lanczos(operator, m, start=operator.matvec(start))
    values, inside = torch.linalg.eigh(found.tridiagonal)
    vectors = found.basis @ inside[:, values > ZERO]
    c = torch.randn(n, vectors.shape[1], dtype=operator.dtype, generator=key.fold("weights").generator()).to(operator.device)
    c[:, :max(0, found.iterations // 2 + theta)] *= LOW
    b = c @ vectors.mT
    return b / torch.linalg.vector_norm(b, dim=1, keepdim=True)


def train_dcdm(A: Tensor | LinearOperator, model: nn.Module, grid: Sequence[int], b: Tensor, *, epochs: int, lr: float = 1e-4,
               batch_size: int = 10, schedule: Callable[[torch.optim.Optimizer], Any] | None = None, key: Key | int = 0) -> nn.Module:
    """Return a copy of the model trained to give directions for A, by Adam.

    Parameters
    ----------
    A : Tensor (N, N) or LinearOperator
        Symmetric positive definite.
    model : nn.Module
        From (B, 1, \\*grid) to the same.
    grid : sequence of int
    b : Tensor (n, N)
        Right-hand sides, as of ``ritz_rhs``.
    epochs : int
        Passes over b; the paper's are up to 50.
    lr, batch_size : float, int
        The paper's by default.
    schedule : callable ``optimizer -> LRScheduler``, optional
        Stepped with every batch.
    key : Key or int, default 0
        Of the batches, which are drawn with replacement.
    """
    operator = _operator(A)
    check_count("epochs", epochs, "some tens are typical")
    precision = next(p.dtype for p in model.parameters())
    b = b / torch.linalg.vector_norm(b, dim=1, keepdim=True)
    shaped = (b * b.shape[1] ** 0.5).to(precision).view(len(b), 1, *grid)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """‖b − A q ⟨q, b⟩ / ⟨q, A q⟩‖², with ‖b‖ = 1."""
        q = outputs.flatten(1).to(targets.dtype)
        Aq = _Product.apply(q, operator)
        scale = (q * targets).sum(1, keepdim=True) / (q * Aq).sum(1, keepdim=True)
        return (targets - scale * Aq).square().sum(1).mean()

    steps = -(-epochs * len(b) // batch_size)
    result = solve(Training(model, loss, (shaped, b), batch_size=batch_size), Train(torch.optim.Adam, schedule, lr=lr),
                   Budget(steps=steps), key=key, every=steps)
    trained = copied(model)
    trained.load_state_dict(result.x)
    return trained.eval()


class _Product(torch.autograd.Function):
    """Rows q ↦ A q for a symmetric A, whose derivative is A again: autograd through sparse matrices is not needed."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, operator: LinearOperator) -> Tensor:
        ctx.operator = operator
        return torch.stack([operator.matvec(row) for row in q.to(operator.dtype)]).to(q.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return torch.stack([ctx.operator.matvec(row) for row in g.to(ctx.operator.dtype)]).to(g.dtype), None


def _operator(A: Tensor | LinearOperator) -> LinearOperator:
    if isinstance(A, LinearOperator):
        return A
    if not isinstance(A, Tensor):
        raise TypeError(f"A must be a matrix or a LinearOperator, got a {type(A).__name__}")
    return LinearOperator.from_tensor(A)
