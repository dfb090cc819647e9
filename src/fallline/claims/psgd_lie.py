"""PSGD: factors in a Lie group find the inverse of the absolute Hessian where it lies in their reach, without damping."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fallline.claims import Evidence, Figure, Paper, Scale, at_least, at_most, claim, recorded
from fallline.claims._tuning import best_loss
from fallline.core.keys import Key
from fallline.optim import PSGD, SGD, Adam
from fallline.optim.directions.lie_group import PAIR, LieGroup
from fallline.optim.engine.parts import Coefficients
from fallline.problems import digits_cnn

PAPER = Paper(
    slug="psgd-lie",
    title="Curvature-Informed SGD via General Purpose Lie-Group Preconditioners",
    arxiv="2402.04553",
    year=2024,
    room="optim",
    methods=("optim.PSGD",),
    headline="with default learning rates beats SGD, Adam, K-FAC, AdaHessian and Shampoo on image classification, language and "
    "reinforcement learning benchmarks",
)
N = 20


def crossed(seed: int) -> Tensor:
    """Eigenvalues from 1 to 316, every pair of entries mirrored about the middle turned by an angle: the inverse is in xmat's group."""
    angles = 2 * math.pi * torch.rand(N // 2, dtype=torch.float64, generator=Key(seed).fold("angles").generator())
    values, H = torch.logspace(0, 2.5, N, dtype=torch.float64), torch.zeros(N, N, dtype=torch.float64)
    for i, angle in enumerate(angles.tolist()):
        j = N - 1 - i
        turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
        H[[[i, i], [j, j]], [[i, j], [i, j]]] = turn @ torch.diag(values[[i, j]]) @ turn.mT
    return H


def plus_low_rank(seed: int) -> Tensor:
    """diag(1 to 1,000) and a part of rank 2 from normal numbers of size 10."""
    W = 10 * torch.randn(N, 2, dtype=torch.float64, generator=Key(seed).fold("low rank").generator())
    return torch.diag(torch.logspace(0, 3, N, dtype=torch.float64)) + W @ W.mT


def preconditioner(H: Tensor, pairs: int, rate: float, seed: int, **settings: Any) -> Tensor:
    """P after so many pairs of the optimizer's rule; the gradient plays no part in it."""
    n = len(H)
    optimizer = PSGD([nn.Parameter(torch.zeros(n, dtype=H.dtype))], lr_precond=rate, seed=seed, **settings)
    rule, group = optimizer.direction, optimizer.param_groups[0]
    state = {name: entry.start(torch.zeros(n, dtype=H.dtype), H.dtype) for name, entry in rule.init(H[0]).items()}
    generator = Key(seed).fold("probes").generator()
    for t in range(1, pairs + 1):
        v = torch.randn(n, dtype=H.dtype, generator=generator)
        state |= rule.observe(PAIR, torch.stack((v, H @ v)), state, Coefficients(optimizer.coefficients(rule, group, t)))
    assert isinstance(rule, LieGroup)
    return torch.stack([rule.preconditioned(unit, state) for unit in torch.eye(n, dtype=H.dtype)], 1)


def condition(P: Tensor, H: Tensor) -> float:
    """Of Q H Qᵀ for P = Qᵀ Q: its eigenvalues are those of P H."""
    values = torch.linalg.eigvals(P @ H).real.abs()
    return float(values.max() / values.min())


def jacobi(H: Tensor) -> Tensor:
    """The inverse of H's diagonal."""
    return torch.diag(1 / H.diagonal())


def conditions(make: Callable[[int], Tensor], seeds: Sequence[int], **settings: Any) -> list[float]:
    """With P after 3,000 pairs at a rate of 0.05."""
    return [condition(preconditioner(make(s), 3_000, 0.05, s, **settings), make(s)) for s in seeds]


@claim("where the inverse lies in xmat's group the condition falls to 1.5, and with rank 4 on a diagonal plus rank 2 to 25")
def fitting(scale: Scale, seed: int) -> Evidence:
    seeds = range(seed, seed + (3 if scale is Scale.QUICK else 10))
    lows = [plus_low_rank(s) for s in seeds]
    return Evidence([
        at_most("condition with xmat", conditions(crossed, seeds, kind="xmat"), 1.5),
        at_least("condition without, xmat's Hessians", [float(torch.linalg.cond(crossed(s))) for s in seeds], 200.0),
        at_most("condition with lra, r = 4", conditions(plus_low_rank, seeds, kind="lra", rank=4), 25.0),
        at_least("condition with Jacobi's diagonal", [condition(jacobi(H), H) for H in lows], 300.0),
        recorded("condition without, lra's Hessians", [float(torch.linalg.cond(H)) for H in lows]),
    ], notes=["n = 20, exact products, 3,000 pairs at a rate of 0.05. xmat: eigenvalues from 1 to 316 in mirrored pairs turned by "
              "random angles. lra: diag(1 to 1,000) plus W Wᵀ, W of 20 × 2 normal numbers times 10. The full scale has ten seeds."])


@claim("at the saddle x² − y² P comes within 10 % of |H|⁻¹")
def saddle(scale: Scale, seed: int) -> Evidence:
    H = torch.diag(torch.tensor([2.0, -2.0], dtype=torch.float64))
    inverse, pairs, figures = torch.linalg.inv(H.abs()), 500 if scale is Scale.QUICK else 5_000, []
    for kind in ("lra", "xmat", "diag", "dense"):
        found = [preconditioner(H, pairs, 0.01, s, kind=kind, rank=1) for s in range(seed, seed + 3)]
        errors = [float((P - inverse).norm() / inverse.norm()) for P in found]
        figures.append(at_most(f"relative error of P, {kind}", errors, 0.1))
    return Evidence(figures + (networks(seed) if scale is Scale.FULL else []),
                    notes=["500 pairs at the default rate of 0.01, which is constant: P keeps moving about. The full scale has 5,000 "
                           "and adds a convolutional network on digits, not a ResNet on CIFAR."])


def networks(seed: int) -> list[Figure]:
    """Validation losses on the digits after 600 steps, each at the best of five learning rates."""
    problem = digits_cnn(seed)
    sides: dict[str, tuple[Any, Sequence[float], dict[str, Any]]] = {
        "PSGD": (PSGD, (0.003, 0.01, 0.03, 0.1, 0.3), {"rank": 10, "grad_clip": 1.0, "momentum": 0.9}),
        "Adam": (Adam, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), {}), "SGD": (SGD, (0.03, 0.1, 0.3, 1.0, 3.0), {})}
    return [recorded(f"validation loss, {name}", best_loss(problem, optimizer, rates, 600, seed, **settings))
            for name, (optimizer, rates, settings) in sides.items()]
