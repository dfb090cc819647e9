"""Stochastic model-based minimisation: the better the model, the less the step size matters; the rate of the Moreau envelope."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

import fallline as fl
from fallline.claims import Evidence, Figure, Paper, Scale, at_least, at_most, between, claim, recorded
from fallline.core.composite_loss import OUTERS, CompositeLoss
from fallline.core.keys import Key
from fallline.core.terms import L1
from fallline.problems.weakly_convex import blind_deconvolution, phase_measurements, phase_proximal_point, robust_phase_retrieval
from fallline.solvers.model_based import StochasticModel, moreau_grad_norm, scalar_multiplier

PAPER = Paper(
    slug="model-based",
    title="Stochastic model-based minimization of weakly convex functions",
    arxiv="1803.06523",
    year=2019,
    room="solvers",
    methods=("solvers.StochasticModel", "solvers.moreau_grad_norm"),
    headline="the first complexity guarantees for the stochastic proximal point, proximal subgradient and prox-linear methods on "
    "weakly convex compositions, subgradients without batching; prox models are far less sensitive to the step size",
)
MODELS = ("subgradient", "prox_linear", "prox_point")


def moved(model: str, x: Tensor, step: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The model's step on |⟨a, x⟩² − b| for points ``(…, d)``."""
    if model == "prox_point":
        return phase_proximal_point(x, step, a, b)
    s = (a * x).sum(-1)
    c = s * s - b
    u = c.sign() if model == "subgradient" else scalar_multiplier(c, 4 * s * s * (a * a).sum(-1), step, OUTERS["abs"])
    return x - (2 * step * u * s)[..., None] * a


def run(model: str, measured: Sequence[Sequence[Tensor]], step: Tensor, steps: int, key: int,
        watch: Callable[[int, Tensor], None] | None = None) -> Tensor:
    """The points after ``steps`` of one sample each, ``(settings, problems, d)``, with constant ``step`` (settings, 1)."""
    rows, b, _, start = (torch.stack(each) for each in zip(*measured, strict=True))
    generators = [Key(key).fold("samples", i).generator() for i in range(len(measured))]
    drawn = torch.stack([torch.randint(rows.shape[1], (steps,), generator=g) for g in generators], 1)
    each, x, t = torch.arange(len(measured)), start.expand(len(step), -1, -1), 0
    for block in drawn.split(1_000):
        for row, target in zip(rows[each, block], b[each, block], strict=True):
            if watch is not None:
                watch(t, x)
            x, t = moved(model, x, step, row, target), t + 1
    return x


def decades(good: Tensor) -> list[float]:
    """The longest stretch of neighbouring step sizes, half a decade apart, that are good: ``(settings, seeds)`` in, decades out."""
    longest, current = torch.zeros(good.shape[1]), torch.zeros(good.shape[1])
    for row in good:
        current = torch.where(row, current + 1, 0.0)
        longest = torch.maximum(longest, current)
    return ((longest - 1).clamp(min=0) / 2).tolist()


@claim("on phase retrieval the error falls below 1e-3 over 4 decades of step sizes with prox-point, 2 with prox-linear and half a one "
       "at most with subgradients")
def sensitivity(scale: Scale, seed: int) -> Evidence:
    d, m = (20, 60) if scale is Scale.QUICK else (500, 1_500)
    measured = [phase_measurements(s, d, m) for s in range(seed, seed + 5)]
    truth, alphas = torch.stack([each[2] for each in measured]), torch.logspace(-4, 2, 13, dtype=torch.float64)
    found, curves = {}, {}
    for model in MODELS:
        x = run(model, measured, alphas[:, None], 60 * m, seed)
        errors = torch.minimum((x - truth).norm(dim=-1), (x + truth).norm(dim=-1)).nan_to_num(torch.inf, torch.inf)
        found[model] = errors
        curves[model] = (alphas.tolist(), errors.median(1).values.clamp(max=1e3).tolist())
    figures: list[Figure] = [
        at_least("decades of α with error < 1e-3, prox-point", decades(found["prox_point"] < 1e-3), 4.0),
        at_least("decades of α with error < 1e-3, prox-linear", decades(found["prox_linear"] < 1e-3), 2.0),
        at_most("decades of α with error < 1e-3, subgradient", decades(found["subgradient"] < 1e-3), 0.5),
        *(recorded(f"least error, {model}", errors.amin(0).tolist()) for model, errors in found.items()),
    ]
    if scale is Scale.FULL:
        figures += [recorded(f"blind deconvolution, d = 100: error with α = 1, {model}",
                             [p.observe(fl.solve(p, StochasticModel(model, alpha=1.0, decay=0.0), key=s).x)["error"]
                              for s, p in enumerate(blind_deconvolution(s, d=100, m=800) for s in range(seed, seed + 3))])
                    for model in ("prox_linear", "prox_point")]
    return Evidence(figures, curves=curves, axes=("α", "error after 60 passes"),
                    notes=[f"d = {d}, m = {m}, no noise, start and solution on the unit sphere, 13 constant α from 1e-4 to 100, five "
                           "seeds, 60 m samples; errors are to the nearer of ±x*, those beyond 1,000 are drawn there. Every α and seed "
                           "is a row of one run with the closed forms that the models use."])


@claim("with noise and steps of β/√T the Moreau envelope's gradient at a random point falls like T^−0.2 to T^−0.6 with every model")
def rate(scale: Scale, seed: int) -> Evidence:
    replicas, horizons = (6, (100, 400, 1_600, 6_400, 25_600)) if scale is Scale.QUICK else (20, (400, 1_600, 6_400, 25_600, 102_400))
    seeds = 3
    problems = [robust_phase_retrieval(s, noise=0.5) for s in range(seed, seed + seeds)]
    measured = [phase_measurements(s, noise=0.5) for s in range(seed, seed + seeds)]
    rho = max(p.facts["weak_convexity"] for p in problems)
    beta = math.sqrt(1 / (rho * 4 * 20))  # √(Δ / (ρ L²)) with Δ near 1, and L² = E‖∇f‖² near 4 d on the unit sphere
    figures, curves = [], {}
    for model in MODELS:
        norms = []
        for T in horizons:
            many = [each for each in measured for _ in range(replicas)]
            ends = torch.randint(T + 1, (len(many),), generator=Key(seed).fold("ends", T).generator())
            points, due = torch.empty(len(many), 20, dtype=torch.float64), {int(t): ends == t for t in ends}

            def watch(t: int, x: Tensor, due: Mapping[int, Tensor] = due, points: Tensor = points) -> None:
                if t in due:
                    points[due[t]] = x[0, due[t]]

            watch(T, run(model, many, torch.tensor([[beta / math.sqrt(T)]], dtype=torch.float64), T, seed, watch))
            found = [moreau_grad_norm(problems[i // replicas], x, 0.5 / rho) for i, x in enumerate(points)]
            norms.append(torch.tensor(found).view(seeds, replicas).mean(1))
        slopes = np.polyfit(np.log(horizons), torch.stack(norms).log().numpy(), 1)[0]
        figures.append(between(f"slope of log ‖∇φ_λ‖ in log T, {model}", slopes.tolist(), -0.6, -0.2))
        curves[model] = (horizons, [float(each.median()) for each in norms])
    return Evidence(figures, curves=curves, axes=("T", "‖∇φ_λ‖"),
                    notes=[f"d = 20, m = 60, noise of deviation 0.5, constant steps β/√T with β = √(1/(4 d ρ)) = {beta:.2g} from "
                           f"theory, λ = 1/(2ρ), means over {replicas} replicas of each of 3 problems, at a point drawn uniformly from "
                           "each run. Theory's bound is T^−0.25. T = 25,600 was added after a first run, whose slopes up to T = 6,400 "
                           "were −0.18 to −0.23."])


def by_constraints(c: Tensor, jacobian: Tensor, x: Tensor, step: float, low: float, weight: float) -> Tensor:
    """argmin mean max(low r, r) + weight ‖y‖₁ + ‖y − x‖²/(2α), r = c + J (y − x), with a bound for every kink."""
    k, d = jacobian.shape
    A, b, start = jacobian.numpy(), (c - jacobian @ x).numpy(), x.numpy()
    unpack = lambda z: (z[:d] - z[d:2 * d], z[2 * d:])

    def value(z: np.ndarray) -> tuple[float, np.ndarray]:
        y, s = unpack(z)
        g = (y - start) / step
        return s.mean() + weight * z[:2 * d].sum() + (y - start) @ (y - start) / (2 * step), np.concatenate(
            [g + weight, weight - g, np.full(k, 1 / k)])

    sides = np.concatenate([np.hstack([-e * A, e * A, np.eye(k)]) for e in (low, 1.0)])
    limits = {"type": "ineq", "fun": lambda z: sides @ z - np.concatenate([low * b, b]), "jac": lambda z: sides}
    first = np.concatenate([start.clip(0), (-start).clip(0), np.maximum(low * c.numpy(), c.numpy()) + 0.1])
    found = scipy.optimize.minimize(value, first, jac=True, constraints=limits, bounds=[(0, None)] * (2 * d) + [(None, None)] * k,
                                    method="SLSQP", options={"ftol": 1e-16, "maxiter": 2_000})
    return torch.from_numpy(unpack(found.x)[0])


@claim("a prox-linear step is the minimiser of its model that a solver for constrained problems finds, to 1e-6")
def closed_forms(scale: Scale, seed: int) -> Evidence:
    instances = 5 if scale is Scale.QUICK else 50
    worst = {}
    for outer, low in (("abs", -1.0), ("hinge", 0.0)):
        for weight in (0.0, 0.1):
            for batch in (1, 3):
                gaps = []
                for s in range(seed, seed + 3):
                    normal = torch.randn(instances, 21, 5, dtype=torch.float64, generator=Key(s).fold("instances").generator())
                    gap = 0.0
                    for i, (start, rows) in enumerate(zip(normal[:, 0], normal[:, 1:], strict=True)):
                        loss = CompositeLoss(outer, lambda x, a: (a @ x) ** 2 - 1, rows, start, batch_size=batch)
                        problem = fl.Composite(loss, L1(weight)) if weight else loss
                        step, method = 0.02 * 5 ** (i % 3), StochasticModel("prox_linear", alpha=0.02 * 5 ** (i % 3))
                        state = method.init(problem, Key(s))
                        sample = loss.draw(state["key"].fold(0))
                        found = method.step(problem, state)["x"]
                        c, jacobian = sample.linearization(start)
                        expected = by_constraints(c, jacobian, start, step, low, weight)
                        gap = max(gap, float((found - expected).abs().max()))
                    gaps.append(gap)
                name = f"h = {outer}, {batch} residual{'s' if batch > 1 else ''}{', with an ℓ₁ term' if weight else ''}"
                worst[name] = gaps
    return Evidence([at_most(f"largest difference, {name}", gaps, 1e-6) for name, gaps in worst.items()],
                    notes=[f"{instances} samples of quadratic residuals of 5 variables for each of 3 seeds, α = 0.02, 0.1 and 0.5; the "
                           "other side is SciPy's SLSQP with a slack variable for every kink."])
