"""Square roots A^(1/2) and A^(-1/2) of symmetric positive definite matrices, and their derivatives.

Forward, with N = ‖A‖_F, x = A / N and z = I − x, whose eigenvalues lie in [0, 1):

    Padé [m, m]       √x ≈ Q(x)⁻¹ P(x),  P = Σ_k C(2m+1, 2k) x^k,  Q = Σ_k C(2m+1, 2k+1) x^k;   A^(-1/2): P⁻¹ Q
    Taylor 2m         √(1−z) ≈ 1 − Σ_k |binom(1/2, k)| z^k;   A^(-1/2): (1−z)^(-1/2) ≈ Σ_k |binom(−1/2, k)| z^k
    Newton-Schulz m   Y ← x, Z ← I;  T = (3 I − Z Y)/2,  Y ← Y T,  Z ← T Z;   Y → √x,  Z → 1/√x
    eigenvalues       V diag(√λ) Vᵀ

Padé's coefficients are those of the approximant of √(1−z) at z = 0, written in x = 1 − z: whole numbers, all positive, so that small
eigenvalues are not the difference of large ones.

Backward, for an upstream G (its symmetric part):

    S = A^(1/2):    S X + X S = G;              T = A^(-1/2):    T X + X T = −T² G T²

by the sign iteration of `solve_lyapunov`, or exactly from eigenvectors. Nothing is divided by a difference of eigenvalues, so
repeated ones do no harm, as they do in the derivative of an eigendecomposition.

Y. Song, N. Sebe, W. Wang: Fast Differentiable Matrix Square Root, ICLR 2022, arXiv 2201.08663.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from fallline.core.checks import check_count
from fallline.core.linalg.batches import at_least_float32, identity_like, largest_entry, require_square, symmetric
from fallline.core.linalg.lyapunov import Lyapunov
from fallline.core.warning import warn

SquareRoot = Literal["eigh", "pade", "taylor", "newton_schulz"]
METHODS = ("eigh", "pade", "taylor", "newton_schulz")
ILL_CONDITIONED = 1e4


def sqrtm(A: Tensor, method: SquareRoot = "eigh", order: int = 5, backward_iters: int = 8) -> Tensor:
    """Return the square root S of symmetric positive definite matrices: S S = A.

    ``"eigh"`` is accurate for every matrix, and on the CPU the fastest as well. The paper's methods are matrix products alone, for
    accelerators and well-conditioned matrices: they are inaccurate in small eigenvalues. Where the root has an eigenvalue s √N, that of
    Padé has a relative error 2q/(1−q), q = ((1−s)/(1+s))^(2·order+1); an eigenvalue 0 becomes √N/(2·order+1). Add a multiple of I, or
    raise the order, beyond condition numbers of 1e4; a warning says so on the CPU, where it can be seen without waiting. The derivative
    is the exact root's, taken at the approximation: from numerical derivatives of the latter it differs by what the order cuts off.

    Parameters
    ----------
    A : Tensor, shape (..., n, n)
        Its symmetric part is taken. Real; half precisions are computed in float32.
    method : {"eigh", "pade", "taylor", "newton_schulz"}
        The formulas above. By eigenvalues, negative ones count as 0, and the derivative is exact; the paper's choice is Padé.
    order : int, default 5
        The m above: Padé of [m, m], Taylor of degree 2m, which agrees in as many derivatives, m steps of Newton-Schulz. Not used by
        ``"eigh"``. Padé solves with a matrix whose condition number grows as 4^m: up to 5 in float32, 10 in float64.
    backward_iters : int, default 8
        Steps of the sign iteration that solves the Lyapunov equation of the derivative; not used by ``"eigh"``.

    Returns
    -------
    Tensor, shape (..., n, n), dtype of A
        Symmetric, differentiable to any order. A zero matrix has the root zero and a derivative of zero for the infinite
        one.

    Raises
    ------
    ValueError
        If A is not square or not real, or method, order or backward_iters is out of range.
    """
    matrices = _prepared(A, method, order, backward_iters)
    if method == "eigh":
        return _EigenvalueRoot.apply(matrices, False)[0].to(A.dtype)
    return _Root.apply(matrices, method, order, backward_iters).to(A.dtype)


def inv_sqrtm(A: Tensor, method: SquareRoot = "eigh", order: int = 5, backward_iters: int = 8) -> Tensor:
    """Return the inverse square root T of symmetric positive definite matrices: T A T = I.

    Parameters, accuracy and warning as for `sqrtm`; no inverse is formed. A zero matrix gives NaN; by eigenvalues, so does any
    matrix that is not positive definite.
    """
    matrices = _prepared(A, method, order, backward_iters)
    if method == "eigh":
        return _EigenvalueRoot.apply(matrices, True)[0].to(A.dtype)
    return _InverseRoot.apply(matrices, method, order, backward_iters).to(A.dtype)


def _prepared(A: Tensor, method: str, order: int, backward_iters: int) -> Tensor:
    """The symmetric part in working precision, once everything has been checked."""
    require_square(A)
    if not A.is_floating_point():
        raise ValueError(f"A must be real and of floating point, got {A.dtype}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    check_count("order", order, "5 is typical")
    check_count("backward_iters", backward_iters, "8 is typical")
    matrices = symmetric(at_least_float32(A))
    if method != "eigh":
        _warn_if_ill_conditioned(matrices)
    return matrices


def _warn_if_ill_conditioned(A: Tensor) -> None:
    """Warn where a Cholesky factor shows a condition number above 1e4; the smallest pivot bounds the least eigenvalue from above."""
    transformed = torch._C._functorch.is_functorch_wrapped_tensor(A)  # values are not to be had under vmap
    if A.device.type != "cpu" or transformed or torch.compiler.is_compiling() or A.numel() == 0:
        return
    factor, failed = torch.linalg.cholesky_ex(A.detach())
    least = torch.where(failed > 0, 0.0, factor.diagonal(dim1=-2, dim2=-1).amin(-1).square())
    largest = A.detach().diagonal(dim1=-2, dim2=-1).amax(-1)
    ill = int((largest > ILL_CONDITIONED * least).sum())
    if ill:
        warn(f"{ill} of {failed.numel()} matrices have a condition number above {ILL_CONDITIONED:g} or are not positive definite; "
             "there this method is inaccurate in small eigenvalues and in derivatives. Add a multiple of the identity, raise order and "
             'backward_iters, or use method="eigh"')


class _Root(torch.autograd.Function):
    """S of A by matrix products; its derivative solves S X + X S = G."""

    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, method: str, order: int, backward_iters: int) -> Tensor:
        N = _norm(A)
        return N.sqrt() * _approximation(A / torch.where(N > 0, N, 1.0), method, order, inverse=False)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.steps = inputs[-1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (S,) = ctx.saved_tensors
        return Lyapunov.apply(S, symmetric(gradients[0]), None, None, ctx.steps), None, None, None


class _InverseRoot(torch.autograd.Function):
    """T of A by matrix products; its derivative solves T X + X T = −T² G T²."""

    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, method: str, order: int, backward_iters: int) -> Tensor:
        N = _norm(A)
        root = _approximation(A / torch.where(N > 0, N, 1.0), method, order, inverse=True)
        return torch.where(N > 0, root / N.sqrt(), math.nan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.steps = inputs[-1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (T,) = ctx.saved_tensors
        return Lyapunov.apply(T, _through_inverse(T, gradients[0]), None, None, ctx.steps), None, None, None


class _EigenvalueRoot(torch.autograd.Function):
    """S or T of A by eigenvalues, its eigenvectors and its eigenvalues; the last two are there for the derivative alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
        eigenvalues, V = torch.linalg.eigh(A)
        values = torch.where(eigenvalues > 0, eigenvalues, math.nan).rsqrt() if inverse else eigenvalues.clamp(min=0).sqrt()
        return (V * values.unsqueeze(-2)) @ V.mT, V, values

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.inverse = inputs[1]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        root, V, values = ctx.saved_tensors
        G = _through_inverse(root, gradients[0]) if ctx.inverse else symmetric(gradients[0])
        return Lyapunov.apply(root, G, V, values, 1), None


def _norm(A: Tensor) -> Tensor:
    """‖A‖_F, whose squares neither under- nor overflow."""
    scale = largest_entry(A)
    return scale * torch.linalg.matrix_norm(A / scale, keepdim=True)


def _through_inverse(T: Tensor, G: Tensor) -> Tensor:
    square = T @ T
    return -square @ symmetric(G) @ square


def _approximation(x: Tensor, method: str, order: int, inverse: bool) -> Tensor:
    """√x, or 1/√x, of matrices with eigenvalues in (0, 1]."""
    if method == "newton_schulz":
        return symmetric(_newton_schulz(x, order)[int(inverse)])
    if method == "taylor":
        return _polynomials(identity_like(x) - x, _taylor(order, inverse))[0]
    P, Q = _polynomials(x, *_pade(order))
    return symmetric(torch.linalg.solve(P, Q) if inverse else torch.linalg.solve(Q, P))


def _pade(order: int) -> tuple[list[float], list[float]]:
    """Coefficients of P and Q, divided by 4^order, P(1) = Q(1)."""
    row = [math.comb(2 * order + 1, k) / 4**order for k in range(2 * order + 2)]
    return row[0::2], row[1::2]


def _taylor(order: int, inverse: bool) -> list[float]:
    """Coefficients of z⁰ … z^(2·order) of √(1−z) or 1/√(1−z); binom(2k, k)/4^k is |binom(−1/2, k)|."""
    central = [math.comb(2 * k, k) / 4**k for k in range(2 * order + 1)]
    return central if inverse else [-value / (2 * k - 1) for k, value in enumerate(central)]


def _polynomials(x: Tensor, *coefficients: list[float]) -> list[Tensor]:
    """Σ_k c_k x^k for several lists c of the same degree, from the same powers."""
    values = [c[0] * identity_like(x) + c[1] * x for c in coefficients]
    power = x
    for k in range(2, len(coefficients[0])):
        power = power @ x
        values = [torch.add(value, power, alpha=c[k]) for value, c in zip(values, coefficients, strict=True)]
    return values


def _newton_schulz(x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """√x and 1/√x."""
    three = 3 * identity_like(x)
    Y, Z = x, identity_like(x).expand_as(x)
    for _ in range(steps):
        T = (three - Z @ Y) / 2
        Y, Z = Y @ T, T @ Z
    return Y, Z
