"""Matrix square roots by Padé approximants and a Lyapunov equation: their accuracy, their derivative, what they multiply."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, exactly, recorded
from fallline.equations import solve_lyapunov, sqrtm

PAPER = Paper(
    slug="matrix-sqrt",
    title="Fast Differentiable Matrix Square Root",
    arxiv="2201.08663",
    year=2022,
    room="equations",
    methods=("equations.sqrtm", "equations.inv_sqrtm", "equations.solve_lyapunov"),
    headline="forward and backward faster than by singular values and by Newton-Schulz iterations in decorrelated batch normalisation, "
    "second-order vision transformers and style transfer on a GPU, at an equal or better accuracy",
)


def covariance(n: int, seed: int, batch: tuple[int, ...] = ()) -> Tensor:
    """Of 4n standard normal samples in n dimensions."""
    generator = fl.Key(seed).fold("covariance", n).generator()
    samples = torch.randn(*batch, 4 * n, n, dtype=torch.float64, generator=generator)
    return samples.mT @ samples / (4 * n)


def error(A: Tensor, method: Any) -> float:
    """‖S − √A‖_F / ‖√A‖_F of a method at order 5."""
    exact = sqrtm(A)
    return float(torch.linalg.matrix_norm(sqrtm(A, method) - exact) / torch.linalg.matrix_norm(exact))


@claim("the error of the Padé approximant is at most 0.6 that of as many Newton-Schulz steps, 0.2 that of a Taylor polynomial as long")
def accuracy(scale: Scale, seed: int) -> Evidence:
    figures = []
    for n in (64,) if scale is Scale.QUICK else (4, 16, 64, 256):
        pade, newton, taylor = ([error(covariance(n, s), method) for s in range(seed, seed + 3)]
                                for method in ("pade", "newton_schulz", "taylor"))
        figures += [
            at_most(f"n = {n}: error, Padé / Newton-Schulz", [a / b for a, b in zip(pade, newton, strict=True)], 0.6),
            at_most(f"n = {n}: error, Padé / Taylor", [a / b for a, b in zip(pade, taylor, strict=True)], 0.2),
            *(recorded(f"n = {n}: error, {name}", found)
              for name, found in (("Padé [5, 5]", pade), ("five Newton-Schulz steps", newton), ("Taylor of degree 10", taylor))),
        ]
    return Evidence(figures, notes=["Relative, in the Frobenius norm, of the covariance of 256 standard normal samples in 64 "
                                    "dimensions, in float64. Full: n = 4, 16, 64, 256 with 4n samples, on the CPU as well."])


class _Composed(torch.autograd.Function):
    """The exact root, and eight steps of the sign iteration for its derivative."""

    @staticmethod
    def forward(ctx: Any, A: Tensor) -> Tensor:
        S = sqrtm(A)
        ctx.save_for_backward(S)
        return S

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return solve_lyapunov(ctx.saved_tensors[0], gradients[0])


def lyapunov_error(n: int, seed: int) -> float:
    """‖X − exact‖_F / ‖exact‖_F after eight steps, for the root of a covariance and a random symmetric right-hand side."""
    A = covariance(n, seed)
    G = torch.randn(n, n, dtype=torch.float64, generator=fl.Key(seed).fold("right-hand side").generator())
    s, V = torch.linalg.eigh(sqrtm(A))
    exact = V @ (V.mT @ (G + G.mT) @ V / (s[:, None] + s)) @ V.mT
    found = solve_lyapunov(sqrtm(A), G + G.mT)
    return float(torch.linalg.matrix_norm(found - exact) / torch.linalg.matrix_norm(exact))


@claim("eight steps of the sign iteration solve the Lyapunov equation of the derivative to 1e-6, and finite differences agree")
def derivative(scale: Scale, seed: int) -> Evidence:
    seeds, figures = range(seed, seed + 3), []
    for n in (64,) if scale is Scale.QUICK else (4, 16, 64, 256):
        figures.append(at_most(f"n = {n}: relative error after eight steps", [lyapunov_error(n, s) for s in seeds], 1e-6))
    passed = [torch.autograd.gradcheck(_Composed.apply, covariance(8, s).requires_grad_(), raise_exception=False) for s in seeds]
    return Evidence([*figures, exactly("gradcheck passes, n = 8", [float(p) for p in passed], 1.0)],
                    notes=["The forward pass of gradcheck is by eigenvalues, so that the differences are those of the root itself."])


def through_eigenvectors(A: Tensor) -> Tensor:
    """The root as autograd differentiates it."""
    values, V = torch.linalg.eigh(A)
    return (V * values.sqrt().unsqueeze(-2)) @ V.mT


def gradient(function: Any, A: Tensor) -> Tensor:
    """Of the sum of squares of what the function gives."""
    leaf = A.clone().requires_grad_()
    return torch.autograd.grad(function(leaf).square().sum(), leaf)[0]


def pade(A: Tensor) -> Tensor:
    """The paper's choice."""
    return sqrtm(A, "pade")


def products(function: Any, A: Tensor) -> float:
    """Matrix products for one matrix of the batch, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        gradient(function, A)
    return counter.get_total_flops() / (2 * len(A) * A.shape[-1] ** 3)


@claim("with repeated eigenvalues the gradient is finite, where autograd through an eigendecomposition gives NaN")
def repeated_eigenvalues(scale: Scale, seed: int) -> Evidence:
    A = torch.diag_embed(torch.tensor([2.0, 1.0], dtype=torch.float64).repeat_interleave(16)).expand(256, 32, 32)
    broken = {name: float((~gradient(function, A).isfinite()).flatten(1).any(1).sum())
              for name, function in (("Padé", pade), ("autograd", through_eigenvectors))}
    random = covariance(32, seed, (256,))
    return Evidence([
        exactly("gradients that are not finite, Padé, of 256", broken["Padé"], 0.0),
        at_least("gradients that are not finite, autograd through eigh, of 256", broken["autograd"], 1.0),
        recorded("matrix products forward and backward, Padé, beside a solve", products(pade, random)),
        recorded("matrix products forward and backward, autograd through eigh, beside a decomposition",
                 products(through_eigenvectors, random)),
    ], notes=["The paper's gain is one of time on a GPU: products instead of a decomposition, of about 9 n³ flops, or 4.5 products, at "
              "which GPUs are slow. The times, forward and backward, are in the benchmarks; on a CPU the decomposition is faster. The "
              "full scale is the same."])
