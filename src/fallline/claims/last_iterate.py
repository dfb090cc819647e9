"""The last iterate of stochastic mirror descent: the worst case of 1/√t, its cure by a linear schedule, heavy tails, and quantiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fallline.claims import Evidence, Paper, Scale, at_most, between, claim, recorded
from fallline.claims._tuning import spaced
from fallline.core.keys import Key
from fallline.core.sets import L2Ball
from fallline.optim.composite import CompositeSMD
from fallline.optim.schedules import LastIterate
from fallline.problems.harvey import harvey_function

PAPER = Paper(
    slug="last-iterate",
    title="Revisiting the Last-Iterate Convergence of Stochastic Gradient Methods",
    arxiv="2312.08531",
    year=2024,
    room="optim",
    methods=("optim.CompositeSMD", "optim.LastIterate"),
    headline="one proof of the rates of the last iterate, in expectation and in high probability, for general domains, composite "
    "objectives, other norms, smooth and strongly convex functions, and heavy tails",
)
Noise = Callable[[tuple[int, ...], torch.Generator], Tensor]
D = 5
RATES = torch.tensor(spaced(0.5, 2.0, 7))


def worst_case(T: int, knows_length: bool) -> float:
    """√T f(x_{T+1}) on the function made for T steps, whose least value is at most 0."""
    problem = harvey_function(T)
    x = nn.Parameter(problem.x0.clone())
    optimizer = CompositeSMD([x], lr=1.0, prox=L2Ball(dim=None))
    schedule = LastIterate(optimizer, T if knows_length else None)
    for _ in range(T):
        x.grad = problem.gradient(x.detach())
        optimizer.step()
        schedule.step()
    return math.sqrt(T) * float(problem.value(x.detach()))


@claim("on the function of Harvey et al. √T f(last) grows by 0.032 with every doubling of T under steps 1/√t, and stays within 10 % "
       "under the linear schedule")
def worst_cases(scale: Scale, seed: int) -> Evidence:
    lengths = [32, 64, 128, 256, 512, 1024] + ([] if scale is Scale.QUICK else [2048, 4096])
    root, linear = ([worst_case(T, knows) for T in lengths] for knows in (False, True))
    growth = np.diff(root)
    return Evidence([
        between("least growth of √T f(last) in a doubling, 1/√t", float(growth.min()), 0.028, 0.036),
        between("largest growth of √T f(last) in a doubling, 1/√t", float(growth.max()), 0.028, 0.036),
        at_most("largest √T f(last) / least, linear", max(linear) / min(linear), 1.1),
        *(recorded(f"√T f(last), {name}, T = {lengths[i]}", side[i]) for name, side in (("1/√t", root), ("linear", linear))
          for i in (0, -1)),
    ], curves={"1/√t": (lengths, root), "linear": (lengths, linear)}, axes=("T", "√T f(last)"),
        notes=["Deterministic: the subgradient of the smallest index, from 0, on the unit ball, lr = 1."])


def student(df: float) -> Noise:
    """Student's t, from two uniform numbers each (Bailey, Math. Comp. 62 (1994) 779)."""
    def draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        u, v = 1 - torch.rand(2, *shape, generator=generator)  # in (0, 1]
        return (df * (u.pow(-2 / df) - 1)).sqrt() * (2 * math.pi * v).cos()

    return draw


def gaussian(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal."""
    return torch.randn(shape, generator=generator)


def last_excesses(T: int, noise: Noise, replicas: int, keys: Sequence[Key], schedule: Callable[[CompositeSMD], LastIterate]) -> Tensor:
    """‖x_{T+1}‖₁ from all ones, ``(rates, keys, replicas)``: subgradients of ‖x‖₁ with 0.3 times the noise, the same at every η.

    x = η y turns x ← x − η s_t g into y ← y − s_t g: one optimizer with lr = 1 runs all η.
    """
    eta = RATES[:, None, None, None]
    y = nn.Parameter((torch.ones(1, len(keys), replicas, D) / eta).clone())
    optimizer = CompositeSMD([y], lr=1.0)
    steps, generators = schedule(optimizer), [key.generator() for key in keys]
    for _ in range(T):
        y.grad = y.detach().sign() + 0.3 * torch.stack([noise((replicas, D), generator) for generator in generators])
        optimizer.step()
        steps.step()
    return (eta * y.detach()).abs().sum(-1)


@claim("with noise of finite 1.5th moment the mean excess of the last iterate falls with a slope of at most −0.25 in T")
def heavy_tails(scale: Scale, seed: int) -> Evidence:
    quick = scale is Scale.QUICK
    lengths, replicas = ([250, 1000, 4000], 2_000) if quick else ([250 * 2**i for i in range(7)], 10_000)
    noise = student(1.55)

    def means(T: int) -> Tensor:
        keys = [Key(s).fold("heavy", T) for s in range(seed, seed + 3)]
        return last_excesses(T, noise, replicas, keys, lambda o: LastIterate(o, T, "heavy_tailed", p=1.5)).mean(2).T

    found = torch.stack([means(T) for T in lengths], 1)  # (seeds, lengths, rates)
    best = found.amin(2).double()
    slopes = [float(np.polyfit(np.log(lengths), row.log().numpy(), 1)[0]) for row in best]
    return Evidence([
        at_most("slope of log mean excess in log T", slopes, -0.25),
        recorded(f"mean excess, T = {lengths[0]}", best[:, 0].tolist()),
        recorded(f"mean excess, T = {lengths[-1]}", best[:, -1].tolist()),
        recorded(f"η, T = {lengths[-1]}", RATES[found[:, -1].argmin(1)].tolist()),
    ], curves={"mean excess": (lengths, best.median(0).values.tolist())}, axes=("T", "mean of f(last) − f*"),
        notes=[f"‖x‖₁ in {D} dimensions from all ones, noise 0.3 times Student's t of 1.55 degrees of freedom, {replicas:,} replicas "
               f"for each of 3 seeds, η the best of {len(RATES)} a factor 2 apart at every T. Theory: −1/3. Quick: T to 4,000, not "
               "16,000."])


@claim("with Gaussian noise the 99.9 % quantile of the excess of the last iterate is at most 8 times its median")
def high_probability(scale: Scale, seed: int) -> Evidence:
    T, replicas = (1_000, 5_000) if scale is Scale.QUICK else (16_000, 10_000)
    keys = [Key(s).fold("gaussian") for s in range(seed, seed + 3)]
    excess = last_excesses(T, gaussian, replicas, keys, lambda o: LastIterate(o, T))
    chosen = excess.mean(2).argmin(0)
    best = [excess[i, s] for s, i in enumerate(chosen.tolist())]
    medians = [float(row.median()) for row in best]
    ratios = [float(row.quantile(0.999)) / median for row, median in zip(best, medians, strict=True)]
    return Evidence([at_most("99.9 % quantile / median of the excess", ratios, 8.0), recorded("median excess", medians),
                     recorded("η", RATES[chosen].tolist())],
                    notes=[f"The problem above with noise 0.3 times a standard normal, T = {T:,}, {replicas:,} replicas for each of 3 "
                           f"seeds, η the best of {len(RATES)} by the mean. Theory: the square root of log(1 / δ) more."])
