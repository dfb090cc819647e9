"""Directions proposed by a network: iterations on Poisson systems of the size it was trained on and of larger ones."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.flop_counter import FlopCounterMode

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, recorded
from fallline.core.method import Method
from fallline.equations import DCDM, ConjugateGradient, DirectionNetwork, ritz_rhs, train_dcdm

PAPER = Paper(
    slug="deep-conjugate-direction",
    title="A Deep Conjugate Direction Method for Iteratively Solving Linear Systems",
    arxiv="2205.10763",
    year=2023,
    room="equations",
    methods=("equations.DCDM", "equations.train_dcdm", "equations.ritz_rhs", "equations.DirectionNetwork"),
    headline="Poisson systems with millions of unknowns to a fixed tolerance in a small number of iterations that does not depend on "
    "their size, where conjugate gradients take hundreds, with obstacles never seen as well",
)
N, M, THETA, VECTORS = 32, 200, 10, 600
EPOCHS, LR, BATCH = 10, 4e-3, 10
TOL, SYSTEMS = 1e-4, 20


def poisson(n: int, walls: Tensor | None = None) -> Tensor:
    """The five-point Laplacian of an n × n grid with Dirichlet boundary, sparse; ``walls`` (n, n) are points held at 0 as well."""
    points = torch.arange(n * n).view(n, n)
    pairs = torch.cat([torch.stack([points[1:].flatten(), points[:-1].flatten()]),
                       torch.stack([points[:, 1:].flatten(), points[:, :-1].flatten()])], 1)
    if walls is not None:
        pairs = pairs[:, ~walls.flatten()[pairs].any(0)]
    indices = torch.cat([pairs, pairs.flip(0), points.view(1, -1).expand(2, -1)], 1)
    values = torch.cat([-torch.ones(2 * pairs.shape[1]), 4 * torch.ones(n * n)]).double()
    return torch.sparse_coo_tensor(indices, values, (n * n, n * n), check_invariants=True).coalesce()


def trained(seed: int) -> nn.Module:
    """A network for the 32 × 32 grid."""
    A, key = poisson(N), fl.Key(seed)
    steps = EPOCHS * VECTORS // BATCH
    schedule: Callable[[torch.optim.Optimizer], OneCycleLR] = partial(OneCycleLR, max_lr=LR, total_steps=steps + 1)
    return train_dcdm(A, DirectionNetwork(2, channels=8, levels=3, pairs=1, key=key), (N, N),
                      ritz_rhs(A, M, THETA, VECTORS, key=key), epochs=EPOCHS, lr=LR, batch_size=BATCH, schedule=schedule, key=key)


def counted(A: Tensor, method: Method, seed: int, systems: int = SYSTEMS) -> float:
    """The mean number of iterations to 1e-4 for Gaussian right-hand sides; not finite where one did not converge."""
    generator = fl.Key(seed).fold("systems", len(A)).generator()
    found = []
    for _ in range(systems):
        b = torch.randn(len(A), dtype=torch.float64, generator=generator)
        result = fl.solve(fl.LinearSystem(A, b), method, fl.Budget(steps=1_000), tol=TOL)
        found.append(float(result.nit) if result.success else float("inf"))
    return statistics.fmean(found)


def arithmetic(model: nn.Module, n: int) -> float:
    """Multiplications and additions of a network's direction over those of a step of conjugate gradients, of about 19 an unknown."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 1, n, n))
    return float(counter.get_total_flops()) / (19 * n * n)


@claim("a network trained on 32² for seconds takes far fewer iterations than conjugate gradients, on 64² hardly more than on 32²")
def iterations(scale: Scale, seed: int) -> Evidence:
    small, large = poisson(N), poisson(2 * N)
    figures: dict[str, list[float]] = {name: [] for name in ("ratio", "growth", "cg", "zero", "work", "128", "walls")}
    counts: dict[str, list[float]] = {name: [] for name in ("cg", "dcdm")}
    for s in range(seed, seed + (1 if scale is Scale.QUICK else 3)):
        model = trained(s)
        on = lambda n, n_orth=2, model=model: DCDM(model, (n, n), n_orth)
        cg = [counted(A, ConjugateGradient(), s) for A in (small, large)]
        dcdm = [counted(small, on(N), s), counted(large, on(2 * N), s)]
        figures["ratio"].append(dcdm[0] / cg[0])
        figures["growth"].append(dcdm[1] / dcdm[0])
        figures["cg"].append(cg[1] / cg[0])
        figures["zero"].append((counted(small, on(N, 0), s) + counted(large, on(2 * N, 0), s)) / sum(dcdm))
        figures["work"].append(arithmetic(model, N) * dcdm[0] / cg[0])
        counts["cg"].append(cg[0])
        counts["dcdm"].append(dcdm[0])
        if scale is Scale.FULL:
            generator = fl.Key(s).fold("walls").generator()
            walls = torch.zeros(2 * N, 2 * N, dtype=torch.bool)
            for row, column in torch.randint(2 * N - 8, (8, 2), generator=generator).tolist():
                walls[row:row + 8, column:column + 8] = True
            obstructed = poisson(2 * N, walls)
            figures["128"].append(counted(poisson(128), on(128), s) / dcdm[0])
            figures["walls"].append(counted(obstructed, on(2 * N), s) / counted(obstructed, ConjugateGradient(), s))
    full = [recorded("iterations of DCDM, 128² / 32²", figures["128"]),
            recorded("iterations on 64² with eight unseen obstacles, DCDM / CG", figures["walls"])] if scale is Scale.FULL else []
    return Evidence([
        at_most("iterations on 32², DCDM / CG", figures_of(figures["ratio"]), 0.6),
        at_most("iterations of DCDM, 64² / 32²", figures_of(figures["growth"]), 1.5),
        at_least("iterations of CG, 64² / 32²", figures_of(figures["cg"]), 1.7),
        at_least("iterations on both, n_orth = 0 / 2", figures_of(figures["zero"]), 1.0),
        recorded("iterations of CG on 32²", figures_of(counts["cg"])),
        recorded("iterations of DCDM on 32²", figures_of(counts["dcdm"])),
        recorded("arithmetic on 32², DCDM / CG", figures_of(figures["work"])),
        *full,
    ], notes=[f"Poisson's equation with Dirichlet boundary, to ‖b − A x‖ ≤ 1e-4 ‖b‖, the mean over {SYSTEMS} Gaussian b. A network of "
              f"three levels and 8 channels, {EPOCHS} passes over {VECTORS} vectors from {M} Lanczos steps, Adam with a step size up "
              f"to {LR:g} in one cycle (the paper's, 1e-4, learns nothing in so few). Arithmetic counts a step of CG as 19 operations "
              "an unknown. Full: three networks, 128², and obstacles."])


def figures_of(values: list[float]) -> float | list[float]:
    return values if len(values) > 1 else values[0]
