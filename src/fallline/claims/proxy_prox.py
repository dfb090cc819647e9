"""Optimization through a proxy: as many expensive gradients as f − f̂ is rough, whatever f is."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_most, between, claim, recorded
from fallline.claims._tuning import fewest_steps, spaced, steps_until
from fallline.core.keys import Key
from fallline.core.problem import Problem
from fallline.core.tree import Tree
from fallline.optim import SGD
from fallline.optim.proxy_prox import ProxyProx, WithProxy
from fallline.problems import digits_mlp

PAPER = Paper(
    slug="proxy-prox",
    title="Two Losses Are Better Than One: Faster Optimization Using a Cheaper Proxy",
    arxiv="2302.03542",
    year=2023,
    room="optim",
    methods=("optim.ProxyProx", "optim.WithProxy", "optim.estimate_delta"),
    headline="the sample complexity of SGD on a δ-smooth objective, with δ possibly far below the smoothness L of the objective itself",
)
SIZE, ACCURACY = 50, 1e-3
DELTAS = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
NOISY, SIGMA, STEPS = (1e-3, 1e-2, 0.1, 0.3), 1.0, 400
LABELLED, COPIES, JITTER, TARGET = 150, 4, 0.1, 0.3
CURVATURE = torch.logspace(-3, 0, SIZE, dtype=torch.float64)


def disturbance(seed: int) -> Tensor:
    """A random symmetric matrix of norm 1."""
    noise = torch.randn(SIZE, SIZE, dtype=torch.float64, generator=Key(seed).fold("proxy").generator())
    return (noise + noise.T) / torch.linalg.matrix_norm(noise + noise.T, 2)


def quadratic(matrix: Tensor, x0: Tensor, noisy: bool = False) -> Problem:
    """Σ ½ ⟨x, P x⟩ over the rows of x ``(seeds, d)``, with its closed forms; ``matrix`` is ``(seeds, d, d)``.

    Realisations of a noisy one add noise of variance σ² to each row's gradient.
    """
    values, vectors = torch.linalg.eigh(matrix)

    def gradient(x: Tensor) -> Tensor:
        return (matrix @ x[..., None])[..., 0]

    def prox(x: Tensor, step: float) -> Tensor:
        return (vectors @ ((vectors.mT @ x[..., None]) / (1 + step * values[..., None])))[..., 0]

    oracles: dict[str, Callable[..., Any]] = {"value": lambda x: (x * gradient(x)).sum() / 2, "gradient": gradient, "prox": prox}

    def sample(whole: Problem, key: Key, *_: object) -> Problem:
        noise = SIGMA / math.sqrt(SIZE) * torch.randn(x0.shape, dtype=x0.dtype, generator=key.generator())
        return Problem(x0, {**oracles, "gradient": lambda x: gradient(x) + noise}, kind="smooth")

    return Problem(x0, oracles, kind="smooth", sampler=sample if noisy else None)


def objective(seeds: Sequence[int], noisy: bool = False) -> Problem:
    """Quadratics of 50 curvatures from 0.001 to 1, from all ones."""
    return quadratic(torch.diag(CURVATURE).expand(len(seeds), -1, -1), torch.ones(len(seeds), SIZE, dtype=torch.float64), noisy)


def proxied(delta: float, seeds: Sequence[int], noisy: bool = False) -> Problem:
    """The same with proxies that differ by δE."""
    f = objective(seeds, noisy)
    return WithProxy(f, quadratic(torch.diag(CURVATURE) + delta * torch.stack([disturbance(s) for s in seeds]), f.x0))


def gradients_needed(delta: float, seed: int) -> float:
    """Expensive gradients until ‖∇f‖ < 0.001."""
    result = fl.solve(proxied(delta, [seed]), ProxyProx(delta=delta), fl.Budget(gradients=20_000), tol=ACCURACY)
    return result.counts["gradients"] if result.success else math.inf


@functools.cache
def descent_needed() -> int:
    """The same for gradient descent with step 1/L."""
    g = CURVATURE.clone()
    for count in range(1, 100_000):
        if g.norm() < ACCURACY:
            return count
        g *= 1 - CURVATURE
    raise AssertionError("gradient descent converges")


@claim("without noise the expensive gradients grow as δ to the power 0.95 ± 0.15")
def noiseless(scale: Scale, seed: int) -> Evidence:
    seeds = range(seed, seed + (3 if scale is Scale.QUICK else 20))
    found = np.array([[gradients_needed(delta, s) for s in seeds] for delta in DELTAS])
    fits = [float(np.polyfit(np.log(DELTAS), np.log(column), 1)[0]) for column in found.T]
    return Evidence([
        between("slope of log gradients in log δ", fits, 0.8, 1.1),
        *(recorded(f"expensive gradients, δ = {delta:g}", row.tolist()) for delta, row in zip(DELTAS, found, strict=True)),
        recorded("gradients, gradient descent at 1/L", descent_needed()),
    ], curves={"ProxyProx": (DELTAS, np.median(found, 1).tolist()), "gradient descent": (DELTAS, [descent_needed()] * len(DELTAS))},
        axes=("δ", "expensive gradients"),
        notes=[f"Quadratics, d = {SIZE}, curvatures from 0.001 to 1, proxy H + δE with a random E of norm 1, from all ones to ‖∇f‖ < "
               f"{ACCURACY:g}; the subproblem is solved exactly. The full scale has 20 proxies."])


@claim("a proxy that says nothing (δ = L) costs at most three times the gradients of gradient descent")
def useless(scale: Scale, seed: int) -> Evidence:
    ratios = [gradients_needed(1.0, s) / descent_needed() for s in range(seed, seed + 3)]
    return Evidence([at_most("expensive gradients, ProxyProx with δ = L / gradient descent", ratios, 3.0)],
                    notes=["The same quadratics, proxy H + E."])


def mean_squares(path: list[Tensor]) -> Tensor:
    """The mean of ‖∇f‖² over the first t points, ``(t, seeds)``: the expectation for one of them taken at random."""
    squares = torch.stack([(CURVATURE * x).square().sum(-1) for x in path])
    return squares.cumsum(0) / torch.arange(1, len(path) + 1)[:, None]


def noisy_path(method: fl.Method, problem: Problem, key: int) -> Tensor:
    """`mean_squares` of a run."""
    state, path = method.init(problem, Key(key)), []
    for _ in range(STEPS):
        path.append(method.report(problem, state).resolve())
        state = method.step(problem, state)
    return mean_squares(path)


@claim("with noise the steps to a fixed accuracy grow as δ to the power 0.5 ± 0.2")
def with_noise(scale: Scale, seed: int) -> Evidence:
    seeds = range(seed, seed + (3 if scale is Scale.QUICK else 20))
    runs = {}
    for delta in (*NOISY, None):  # None: gradient descent, which knows L = 1 only
        centre = ProxyProx(sigma=SIGMA, horizon=STEPS).eta(delta or 1.0)
        problem = objective(seeds, noisy=True) if delta is None else proxied(delta, seeds, noisy=True)
        methods = [fl.Train(SGD, lr=eta) if delta is None else ProxyProx(delta=1 / (2 * eta)) for eta in spaced(centre, 10**0.5, 5)]
        runs[delta] = torch.stack([noisy_path(method, problem, seed) for method in methods])
    errors = torch.stack([runs[delta][:, -1].amin(0) for delta in NOISY])
    target = errors[-1]
    reached = torch.stack([(runs[delta] <= target).double().argmax(1).add(1).where((runs[delta] <= target).any(1), torch.inf).amin(0)
                           for delta in NOISY])
    return Evidence([
        between("slope of log steps to a fixed ‖∇f‖² in log δ", fits(reached), 0.3, 0.7),
        recorded(f"slope of log ‖∇f‖² after {STEPS} steps in log δ", fits(errors)),
        *(recorded(f"‖∇f‖², δ = {delta:g}", row.tolist()) for delta, row in zip(NOISY, errors, strict=True)),
        recorded("‖∇f‖², SGD", runs[None][:, -1].amin(0).tolist()),
    ], curves={"ProxyProx": (NOISY, errors.median(1).values.tolist())}, axes=("δ", "‖∇f‖²"),
        notes=[f"The same quadratics, gradients with noise of variance {SIGMA:g}, {STEPS} steps; ‖∇f‖² is the mean over the points "
               "of a run, the expectation at one taken at random, and the accuracy what the largest δ ends at. Every side at the "
               "best of five step sizes, spaced by √10 about min{1/(2δ), 1/(σ√(δT))}. The smaller δ is, the nearer an iterate is to "
               "the minimiser of f plus its step's noise, at which ∇f is that noise: steps have to be short against 1/L whatever δ "
               "is."])


def fits(rows: Tensor) -> list[float]:
    """The slopes of log rows in log δ, one a column."""
    return [float(np.polyfit(np.log(NOISY), column.log().numpy(), 1)[0]) for column in rows.T]


def softmax_loss(x: Tree, rows: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of a linear model."""
    return cross_entropy(rows @ x["weight"] + x["bias"], labels)


@claim("digits: with 150 labelled samples as a proxy, half of SGD's gradients to a loss of 0.3")
def digits_proxy(scale: Scale, seed: int) -> Evidence:
    rows, labels = (t.double() if t.is_floating_point() else t for t in digits_mlp(0).data)
    x0 = {"weight": torch.zeros(64, 10, dtype=torch.float64), "bias": torch.zeros(10, dtype=torch.float64)}
    ours, peer = [], []

    def reached(x: Tree) -> bool:
        return float(softmax_loss(x, rows, labels)) <= TARGET

    for s in range(seed, seed + (3 if scale is Scale.QUICK else 10)):
        generator = Key(s).fold("labelled").generator()
        chosen = torch.randperm(len(rows), generator=generator)[:LABELLED].repeat(COPIES)
        jittered = rows[chosen] + JITTER * torch.randn(len(chosen), 64, dtype=torch.float64, generator=generator)
        f = fl.FiniteSum(softmax_loss, (rows, labels), x0, batch_size=64)
        peer.append(fewest_steps(reached, f, SGD, spaced(1.0, 10**0.5, 5), 2_000, s))
        problem = WithProxy(f, fl.FiniteSum(softmax_loss, (jittered, labels[chosen]), x0))
        best = math.inf
        for delta in spaced(0.05, 10**0.5, 5):
            best = min(best, steps_until(reached, problem, ProxyProx(delta=delta, inner_steps=30), min(2 * peer[-1], best), s))
        ours.append(best)
    return Evidence([
        at_most("expensive gradients, ProxyProx / SGD", [a / b for a, b in zip(ours, peer, strict=True)], 0.5),
        recorded("expensive gradients, ProxyProx", ours), recorded("expensive gradients, SGD", peer),
    ], notes=[f"A linear model, batches of 64, a gradient of a batch being one expensive gradient. The proxy is the loss on {LABELLED} "
              f"labelled samples, {COPIES} copies of each with Gaussian noise of {JITTER}. Five learning rates about 1 for SGD, five δ "
              "about 0.05. Not two resolutions of a simulator."])
