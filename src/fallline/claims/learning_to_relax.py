"""Relaxation whose ω is learnt from the systems themselves: cost over a sequence, against fixed ω in hindsight."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.blas import dgemv
from scipy.linalg.lapack import dtrtri

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, exactly, recorded
from fallline.equations import ChebCB, TsallisINF, TunedSolver, sor_solve

PAPER = Paper(
    slug="learning-to-relax",
    title="Learning to Relax: Setting Solver Parameters Across a Sequence of Linear System Instances",
    arxiv="2310.02246",
    year=2024,
    room="equations",
    methods=("equations.TsallisINF", "equations.ChebCB", "equations.TunedSolver", "equations.SOR"),
    headline="the first guarantees for tuning a solver online: sublinear regret against the best fixed ω, and with a context against "
    "the best ω for every system; on 5,000 Laplacian systems the cost nears that of ω* = 1.6 to 1.8",
)
ARMS = np.linspace(1, 1.95, 20)
TOL, CAP = 1e-8, 10_000
LO, HI = -0.15, 0.45
HINDSIGHT, SEEDS = 100, 3
Array = NDArray[np.float64]
Curves = dict[str, tuple[list[int], list[float]]]


def laplacian(n: int) -> Array:
    """The five-point Laplacian of an n × n grid with Dirichlet boundary, without 1/h²."""
    line = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    return np.kron(line, np.eye(n)) + np.kron(np.eye(n), line)


def iterations(A: Array, b: Array, omega: float) -> int:
    """The steps of SOR from 0, by its recurrence in the residuals: r ← (I − A (D/ω + L)⁻¹) r."""
    M = np.tril(A)
    M.flat[:: len(b) + 1] /= omega
    C = np.asfortranarray(np.eye(len(b)) - A @ dtrtri(M, lower=1)[0])
    r, stop = b, TOL**2 * (b @ b)
    for k in range(1, CAP + 1):
        r = dgemv(1.0, C, r)
        if r @ r <= stop:
            return k
    return CAP


class Sequence:
    """Systems (A + c I) x = b with c = −0.15 + 0.6 · Beta(0.5, 1.5) and Gaussian b, of the 8 × 8 Laplacian A."""

    def __init__(self, seed: int, count: int) -> None:
        rng = np.random.default_rng(fl.Key(seed).fold("systems").integer())
        self.A = laplacian(8)
        self.offsets = LO + (HI - LO) * rng.beta(0.5, 1.5, count)
        self.b = rng.standard_normal((count, len(self.A)))

    def system(self, t: int) -> tuple[Array, Array]:
        return self.A + self.offsets[t] * np.eye(len(self.A)), self.b[t]

    def costs(self, arms: Array, count: int) -> Array:
        """What every arm takes for the first so many systems, (count, arms)."""
        return np.array([[iterations(*self.system(t), omega) for omega in arms] for t in range(count)], dtype=float)


def learnt(systems: Sequence, tuned: TunedSolver, with_context: bool) -> Array:
    for t in range(len(systems.b)):
        tuned.solve(*systems.system(t), context=systems.offsets[t] if with_context else None)
    return np.array(tuned.costs)


def running_mean(costs: Array) -> tuple[list[int], list[float]]:
    shown = sorted({int(t) for t in np.geomspace(1, len(costs), 100)})
    means = np.cumsum(costs) / np.arange(1, len(costs) + 1)
    return shown, [float(means[t - 1]) for t in shown]


@claim("without a context the cost nears that of the best fixed ω, far below that of ω = 1, and the excess falls")
def best_fixed(scale: Scale, seed: int) -> Evidence:
    T = 1_200 if scale is Scale.QUICK else 5_000
    to_best, to_plain, falls, bests = [], [], [], []
    first: Curves = {}
    for s in range(seed, seed + SEEDS):
        fixed = Sequence(s + 1_000, HINDSIGHT).costs(ARMS, HINDSIGHT).mean(0)
        costs = learnt(Sequence(s, T), TunedSolver(iterations, TsallisINF(ARMS, s)), with_context=False)
        last = costs[-T // 3:].mean()
        to_best.append(last / fixed.min())
        to_plain.append(last / fixed[0])
        falls.append((costs[:200].mean() - fixed.min()) / (costs[-400:].mean() - fixed.min()))
        bests.append(float(ARMS[fixed.argmin()]))
        first = first or {"Tsallis-INF": running_mean(costs), "best fixed ω": ([1, T], [fixed.min()] * 2),
                          "ω = 1": ([1, T], [fixed[0]] * 2)}
    return Evidence([
        at_most("mean cost over the last third / best fixed ω", to_best, 1.7),
        at_most("mean cost over the last third / ω = 1", to_plain, 0.45),
        at_least("excess over the best fixed ω, first 200 systems / last 400", falls, 1.7),
        recorded("best fixed ω", bests),
    ], curves=first, axes=("systems", "mean iterations so far"), notes=[
        f"The best of 20 fixed ω from 1 to 1.95 in hindsight, on {HINDSIGHT} other systems of the same law. Full: 5,000 systems."])


@claim("with the offset as the context the whole sequence costs no more than with the best fixed ω")
def with_context(scale: Scale, seed: int) -> Evidence:
    T = 2_000 if scale is Scale.QUICK else 5_000
    ratios, instance = [], []
    first: Curves = {}
    for s in range(seed, seed + SEEDS):
        systems = Sequence(s, T)
        some = systems.costs(ARMS, HINDSIGHT)
        likely = ARMS[np.argsort(some.mean(0))[:2]]
        best = systems.costs(likely, T).sum(0).min()
        costs = learnt(systems, TunedSolver(iterations, ChebCB(ARMS, 4, LO, HI, s)), with_context=True)
        ratios.append(costs.sum() / best)
        instance.append(some.min(1).sum() / some.sum(0).min())
        first = first or {"ChebCB": running_mean(costs), "best fixed ω": ([1, T], [best / T] * 2)}
    return Evidence([
        at_most("cost of ChebCB / best fixed ω", ratios, 1.0),
        recorded("best ω for every system / best fixed ω", instance),
    ], curves=first, axes=("systems", "mean iterations so far"), notes=[
        f"Of the 20 fixed ω, the two cheapest on the first {HINDSIGHT} systems are run on all; four Chebyshev polynomials. The best ω "
        f"for every system is over those {HINDSIGHT}."])


@claim("the cost that is learnt from is the iterations of the solver, to the last one")
def costs_are_iterations(scale: Scale, seed: int) -> Evidence:
    systems, wrong = Sequence(seed, 8), 0
    for t in range(8):
        A, b = systems.system(t)
        for omega in ARMS[::4]:
            wrong += sor_solve(torch.tensor(A), torch.tensor(b), float(omega), tol=TOL).nit != iterations(A, b, omega)
    heat = [heated(5_000, s) for s in range(seed, seed + SEEDS)] if scale is Scale.FULL else []
    return Evidence([
        exactly("of 40 systems and ω, those whose iterations are not SOR's", wrong, 0),
        *([recorded("heat equation, ChebCB / ω = 1", heat)] if heat else []),
    ], notes=["Full: Crank-Nicolson steps of the heat equation on a 15 × 15 grid, 5,000 of them, with a coefficient that varies in "
              "time and is the context."])


def heated(T: int, seed: int) -> float:
    """The iterations of ChebCB over those of ω = 1, the latter at every hundredth of T steps of u' = κ(t) Δu + f."""
    n, dt = 15, 1e-3
    L, identity = torch.tensor(laplacian(n)) * (n + 1) ** 2, torch.eye(n * n, dtype=torch.float64)
    force = torch.rand(n * n, dtype=torch.float64, generator=fl.Key(seed).fold("force").generator())
    tuned = TunedSolver(sor_solve, ChebCB(ARMS, 6, 0.1, 10.0, seed))
    u, plain, taken = torch.zeros(n * n, dtype=torch.float64), 0, 0
    for t in range(T):
        kappa = 0.1 + 9.9 * math.sin(20 * math.pi * (t + 0.5) / T) ** 2
        half = 0.5 * kappa * dt * L
        b = u - half @ u + dt * force
        if t % 100 == 0:
            plain += sor_solve(identity + half, b, 1.0).nit
        u = tuned.solve(identity + half, b, kappa).x
        taken += int(tuned.costs[-1]) if t % 100 == 0 else 0
    return taken / plain
