"""Accuracy and time of roots of matrices, and of orthonormal columns

    python benchmarks/matrix_roots.py [--repeats 15] [--threads 2] [--quick]

Symmetric matrices with random eigenvectors and eigenvalues in even ratios from 1 down to one over the condition number; for
orthonormal columns, four times as many rows as columns and such singular values. Errors are relative, ‖X − exact‖_F / ‖exact‖_F
against what the known eigenvalues give, at the condition number that they name; of columns, max |QᵀQ − I|. Inverse fourth roots are
those of the damped matrix, ``ridge=1e-6``, in float64 inside as always on the CPU. Square roots are timed forward and backward
together; "derivative" is the relative error for a random symmetric upstream gradient. The number after a method is its order; those
of order above 5 take 16 steps backward and not 8. A dash is NaN: after rounding the matrix has no such root. Ratios of time are to the
first method at the same size and precision, at condition 100, batches holding 65,536 numbers or one matrix.

The last table is the paper's comparison: forward and backward, 256 matrices of 32 × 32, against autograd through an eigendecomposition.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from figures import Goal, Table
from harness import Contestant, Operation, Options, measured, paired, race, run, tell
from torch import Tensor

from fallline.core.linalg import (
    bjorck,
    cholesky_orthonormalize,
    inv_sqrtm,
    inverse_pth_root,
    newton_schulz,
    orthonormalize,
    sqrtm,
)

SIZES, DTYPES = (8, 32, 128, 512), (torch.float32, torch.float64)
CONDITIONS = {"1e2": 1e2, "1e4": 1e4, "1e8": 1e8, "1e12": 1e12}
NUMBERS = 2**16
Function = Callable[[Tensor], Tensor]

FOURTH_ROOTS: dict[str, Function] = {
    "eigh": partial(inverse_pth_root, p=4),
    "newton": partial(inverse_pth_root, p=4, method="newton"),
}
BOTH: dict[str, Callable[..., Function]] = {
    "eigh": lambda f: f,
    "pade, 5": lambda f: partial(f, method="pade"),
    "pade, 10": lambda f: partial(f, method="pade", order=10, backward_iters=16),
    "taylor, 10": lambda f: partial(f, method="taylor"),
    "newton_schulz, 5": lambda f: partial(f, method="newton_schulz"),
    "newton_schulz, 12": lambda f: partial(f, method="newton_schulz", order=12, backward_iters=16),
}
COLUMNS: dict[str, Function] = {
    "qr": orthonormalize,
    "cholesky": cholesky_orthonormalize,
    "newton_schulz, 5": newton_schulz,
    "bjorck, 12": lambda A: bjorck(A / torch.linalg.matrix_norm(A, keepdim=True), 12),
}


def spectrum(n: int, condition: float) -> Tensor:
    """Eigenvalues in even ratios."""
    return torch.logspace(0, -math.log10(condition), n, dtype=torch.float64)


@functools.cache
def orthogonal(rows: int, n: int, name: str = "right") -> Tensor:
    """Orthonormal columns, or eigenvectors."""
    generator = torch.Generator().manual_seed(rows + (name == "left"))
    return torch.linalg.qr(torch.randn(rows, n, generator=generator, dtype=torch.float64))[0]


def symmetric(n: int, values: Tensor) -> Tensor:
    """V diag(values) Vᵀ."""
    return (orthogonal(n, n) * values) @ orthogonal(n, n).mT


def tall(n: int, condition: float) -> Tensor:
    """4n rows and n columns with such singular values."""
    return (orthogonal(4 * n, n, "left") * spectrum(n, condition)) @ orthogonal(n, n).mT


def relative(X: Tensor, exact: Tensor) -> float | None:
    """‖X − exact‖_F / ‖exact‖_F; none where there is no X."""
    error = float(torch.linalg.matrix_norm(X.double() - exact) / torch.linalg.matrix_norm(exact))
    return error if math.isfinite(error) else None


def fourth_root_errors(f: Function, n: int, dtype: torch.dtype) -> dict[str, float | None]:
    """At every condition number."""
    found = {}
    for name, condition in CONDITIONS.items():
        values = spectrum(n, condition)
        found[f"error at {name}"] = relative(f(symmetric(n, values).to(dtype)), symmetric(n, (values + 1e-6) ** -0.25))
    return found


def square_root_errors(f: Function, n: int, dtype: torch.dtype, inverse: bool) -> dict[str, float | None]:
    """Of the root and of its derivative along one direction, V D Vᵀ ↦ V (D ∘ K) Vᵀ with divided differences K."""
    roots, derivatives = {}, {}
    G = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    G = G + G.mT
    for name, condition in CONDITIONS.items():
        values, V = spectrum(n, condition), orthogonal(n, n)
        root = values**-0.5 if inverse else values**0.5
        K = 1 / (root[:, None] + root)
        K = -K * (root[:, None] * root) ** 2 if inverse else K
        A = symmetric(n, values).to(dtype).requires_grad_()
        X = f(A)
        (gradient,) = torch.autograd.grad(X, A, G.to(dtype))
        roots[f"error at {name}"] = relative(X.detach(), symmetric(n, root))
        derivatives[f"derivative at {name}"] = relative(gradient, V @ (V.mT @ G @ V * K) @ V.mT)
    return roots | derivatives


def column_errors(f: Function, n: int, dtype: torch.dtype) -> dict[str, float | None]:
    """max |QᵀQ − I| at every condition number."""
    found = {}
    for name, condition in CONDITIONS.items():
        Q = f(tall(n, condition).to(dtype)).double()
        found[f"error at {name}"] = float((Q.mT @ Q - torch.eye(n)).abs().max())
    return found


def forward(f: Function, A: Tensor) -> Contestant:
    """The function of a batch."""
    return Contestant("", lambda: Operation(partial(f, A)))


def forward_backward(f: Function, A: Tensor) -> Contestant:
    """The function of a batch and the derivative of the sum of squares of what it gives."""
    return Contestant("", lambda: Operation(lambda: torch.autograd.grad(f(leaf := A.detach().requires_grad_()).square().sum(), leaf)))


def batched(A: Tensor) -> Tensor:
    """A batch of as many equal matrices as hold 65,536 numbers."""
    return A.expand(max(1, NUMBERS // A.numel()), *A.shape).contiguous()


def table(title: str, methods: Mapping[str, Function], errors: Callable[..., dict[str, float | None]], matrix: Callable[..., Tensor],
          operation: Callable[[Function, Tensor], Contestant], dtype: torch.dtype, options: Options) -> list[Table]:
    """Every method at every size; the first of them is what the others' times are told in."""
    print(title)
    reference, rows = next(iter(methods)), []
    for n in SIZES[:2] if options.quick else SIZES:
        A = batched(matrix(n, 100.0).to(dtype))
        for name in options.chosen(methods):
            pairs = paired(operation(methods[reference], A), operation(methods[name], A), options.repeats)
            rows.append(measured(f"{n}: {name}", pairs, figures=errors(methods[name], n, dtype)))
            tell(rows[-1])
    return [Table(title, f"{reference} of the same size", tuple(rows))] if rows else []


def of_spectrum(n: int, condition: float) -> Tensor:
    """The symmetric matrix of the tables."""
    return symmetric(n, spectrum(n, condition))


def all_methods(dtype: torch.dtype, options: Options) -> list[Table]:
    """The tables of one precision."""
    said = str(dtype).removeprefix("torch.")
    found = table(f"Inverse fourth roots, {said}", FOURTH_ROOTS, fourth_root_errors, of_spectrum, forward, dtype, options)
    for title, function, inverse in (("Square roots", sqrtm, False), ("Inverse square roots", inv_sqrtm, True)):
        methods = {name: method(function) for name, method in BOTH.items()}
        errors = partial(square_root_errors, inverse=inverse)
        found += table(f"{title}, {said}", methods, errors, of_spectrum, forward_backward, dtype, options)
    return found + table(f"Orthonormal columns, {said}", COLUMNS, column_errors, tall, forward, dtype, options)


def through_eigenvectors(A: Tensor) -> Tensor:
    """The square root as autograd differentiates it."""
    values, V = torch.linalg.eigh(A)
    return (V * values.sqrt().unsqueeze(-2)) @ V.mT


def papers(options: Options) -> list[Table]:
    """256 covariance matrices of 32 variables, 128 samples each, in float32."""
    samples = torch.randn(8 if options.quick else 256, 128, 32, generator=torch.Generator().manual_seed(0))
    A = samples.mT @ samples / 128
    entrants = {name: method(sqrtm) for name, method in BOTH.items() if name in ("eigh", "pade, 5", "taylor, 10", "newton_schulz, 5")}
    contestants = [replace(forward_backward(f, A), name=name) for name, f in entrants.items()]
    reference = replace(forward_backward(through_eigenvectors, A), name="autograd through eigh")
    goals = [Goal("pade, 5", "ratio", 0.7, "the paper's gain, there on a GPU")]
    chosen = [goal for goal in goals if goal.row in options.chosen(entrants)]
    return race("Square roots of 256 matrices of 32 × 32, forward and backward", reference, contestants, options, goals=chosen)


def tables(options: Options) -> list[Table]:
    """All of them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*condition number")
        return [found for dtype in DTYPES for found in all_methods(dtype, options)] + papers(options)


if __name__ == "__main__":
    run(__file__, __doc__, tables)
