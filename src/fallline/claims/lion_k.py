"""Lion-K: into the ball of the dual norm at an exponential rate, then to the constrained minimum, along a falling function."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, recorded
from fallline.claims._text import text_model
from fallline.claims._tuning import Factory, trained
from fallline.core import tree
from fallline.core.keys import Key
from fallline.optim import AdamW, LionK, lion_lyapunov

PAPER = Paper(
    slug="lion-k",
    title="Lion Secretly Solves Constrained Optimization: As Lyapunov Predicts",
    arxiv="2310.05898",
    year=2024,
    room="optim",
    methods=("optim.LionK",),
    headline="Lion with decay λ minimises f under ‖x‖_∞ <= 1 / λ; the same Lyapunov proof covers every convex κ and its conjugate",
)
SEEDS, SIZE = 3, 20
DECAYS = (0.5, 1.0)
CURVATURE = torch.logspace(0, -1, SIZE, dtype=torch.float64)
NORMS = {"l1": math.inf, "l2": 2.0}


def minimisers(seed: int) -> Tensor:
    """Unconstrained minimisers, ``(decays, seeds, size)``: entries within 3 / λ of 0, two thirds of them outside the box."""
    generator = Key(seed).fold("minimiser").generator()
    entries = 2 * torch.rand(len(DECAYS), SEEDS, SIZE, dtype=torch.float64, generator=generator) - 1
    return entries * 3 / torch.tensor(DECAYS)[:, None, None]


def constrained(kappa: str, minimiser: Tensor, radius: float) -> Tensor:
    """Where Σ a_i (x_i − b_i)² is least with ‖x‖_∞ (l1) or ‖x‖₂ (l2) at most ``radius``.

    With ‖x‖₂ it is a_i b_i / (a_i + μ), whose length falls with the multiplier μ.
    """
    if kappa == "l1":
        return minimiser.clamp(-radius, radius)

    def at(multiplier: float) -> Tensor:
        return CURVATURE * minimiser / (CURVATURE + multiplier)

    return at(brentq(lambda multiplier: float(at(multiplier).norm()) - radius, 0.0, 1e6, xtol=1e-13))


def descend(optimizer: Factory, lr: float, goals: Tensor, steps: int, norm: float = 2.0) -> tuple[Tensor, Tensor]:
    """The ends of ``steps`` from 10, and by how much ‖x‖ was above 1 / λ at first, ``(steps, decays, seeds)``.

    Every point is a tensor of its own, a part of ``x``; there is a parameter group for each λ.
    """
    x = torch.full_like(goals, 10.0)
    gradient = torch.zeros_like(x)
    groups = []
    for i, decay in enumerate(DECAYS):
        points = [nn.Parameter(point) for point in x[i]]
        for p, slope in zip(points, gradient[i], strict=True):
            p.grad = slope
        groups.append({"params": points, "weight_decay": decay})
    opt = optimizer(groups, lr=lr, nonfinite="ignore")
    radius = 1 / torch.tensor(DECAYS)[:, None]
    outside = []
    for step in range(steps):
        if step < 2 / (lr * min(DECAYS)):
            outside.append(torch.linalg.vector_norm(x, norm, dim=-1) - radius)
        torch.mul(CURVATURE, x - goals, out=gradient)
        opt.step()
    return x, torch.stack(outside)


def fitted_factor(outside: Tensor, rate: float) -> float:
    """ρ of the c ρᵗ fitted to a violation over the first 2 / (lr λ) steps, or until it is 0."""
    values = outside[:round(2 / rate)].numpy()
    inside = np.flatnonzero(values <= 0)
    values = values[:inside[0]] if len(inside) else values
    return math.exp(np.polyfit(np.arange(len(values)), np.log(values), 1)[0])


def network_box(seed: int) -> Tensor:
    """|w| λ of every hundredth weight of a decoder after 6,000 steps of Lion."""
    decay = 3.0
    weights = trained(text_model(seed, 192, 6, 64), fl.Train(LionK, lr=1e-3, weight_decay=decay), 6_000, seed)
    return decay * torch.cat([w.flatten() for w in tree.leaves(weights)]).abs().sort().values[::100]


@claim("Lion-K enters the ball of the dual norm at the rate 1 − lr λ and ends at the constrained minimum, where AdamW does not")
def constraint(scale: Scale, seed: int) -> Evidence:
    lr, times = (3e-3, 8) if scale is Scale.QUICK else (1e-3, 30)
    steps, longer = (round(n / (lr * min(DECAYS))) for n in (times, 30))
    goals = minimisers(seed)
    control, _ = descend(AdamW, lr, goals, longer)
    judged, beside = [], []
    for kappa, norm in NORMS.items():
        ends, outside = descend(functools.partial(LionK, kappa=kappa), lr, goals, steps, norm)
        for i, decay in enumerate(DECAYS):
            optima = torch.stack([constrained(kappa, goal, 1 / decay) for goal in goals[i]])
            setting = f"κ = {kappa}, λ = {decay:g}"
            factors = [fitted_factor(each, lr * decay) for each in outside[:, i].T]
            judged += [
                at_most(f"factor a step of the violation, {setting}", factors, 1 - lr * decay + 1e-4),
                at_most(f"distance to the constrained minimum, {setting}", (ends[i] - optima).norm(dim=1).tolist(), 5 * lr * SIZE**0.5),
                at_least(f"the same, AdamW, {setting}", (control[i] - optima).norm(dim=1).tolist(), 0.1),
            ]
            left = torch.linalg.vector_norm(ends[i], norm, dim=1) - 1 / decay
            beside.append(recorded(f"violation at the end, {setting}", left.clamp(min=0).tolist()))
    boxes = [] if scale is Scale.QUICK else [network_box(s) for s in range(seed, seed + 3)]
    shares = (0.5, 0.9, 1.0) if boxes else ()
    return Evidence([
        *judged,
        *beside,
        *(recorded(f"|w| λ below which {share:.0%} of a decoder's weights are", [float(box.quantile(share)) for box in boxes])
          for share in shares),
    ], notes=[
        f"20 variables, condition number 10, lr = {lr:g}, {times:g} / (lr λ) steps for λ = {min(DECAYS):g} and as many for the other. "
        "AdamW, its step nearly a sign too, goes to the box's minimum as well, but more slowly; it has 30 / (lr λ) at both scales. "
        "The full scale has lr = 1e-3 and 30 / (lr λ) for all, which would take a minute, and a decoder trained at λ = 3.",
        "The constrained minimum for κ = l2 is a root of one equation in the multiplier, found to 1e-13. "
        "The fit of the violation ends where that is 0, if before 2 / (lr λ) steps."])


E = 0.1
SETTINGS = {"α": (1.0, 2.0, 1.0), "γ": (1.0, 0.5, 10.0), "ε": (0.0, 0.5, 0.1), "λ": (1.0, 0.5, 2.0)}


def soft_norm(m: Tensor) -> Tensor:
    """κ(m) = Σ √(m² + e²)."""
    return (m * m + E**2).sqrt().sum()


def conjugate(y: Tensor) -> Tensor:
    """κ*(y) = −e Σ √(1 − y²)."""
    return -E * (1 - y * y).sqrt().sum()


def distance(goal: Tensor, x: Tensor) -> Tensor:
    """f = ½ Σ a_i (x_i − b_i)²."""
    return (CURVATURE * (x - goal) ** 2).sum() / 2


def flow(x: Tensor, m: Tensor, goal: Tensor, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Euler steps of m' = −(α ∇f + γ m), x' = ∇κ(m − ε (α ∇f + γ m)) − λ x, a row for each setting."""
    alpha, gamma, epsilon, decay = (torch.tensor(values, dtype=torch.float64)[:, None] for values in SETTINGS.values())
    for _ in range(steps):
        yield x, m
        slope = alpha * CURVATURE * (x - goal) + gamma * m
        c = m - epsilon * slope
        m, x = m - 1e-4 * slope, x + 1e-4 * (c / (c * c + E**2).sqrt() - decay * x)


@claim("the Lyapunov function falls all along the flow with a smooth κ")
def lyapunov(scale: Scale, seed: int) -> Evidence:
    every = 10 if scale is Scale.QUICK else 1
    goal, x, m = torch.randn(3, len(SETTINGS["λ"]), SIZE, dtype=torch.float64, generator=Key(seed).fold("flow").generator())
    start = torch.tanh(x) / torch.tensor(SETTINGS["λ"])[:, None]
    path = [(step, *point) for step, point in enumerate(flow(start, m, goal, 40_001)) if step % every == 0]
    figures, curves = [], {}
    for i, (alpha, gamma, epsilon, decay) in enumerate(zip(*SETTINGS.values(), strict=True)):
        height = functools.partial(lion_lyapunov, functools.partial(distance, goal[i]), kappa=soft_norm, conjugate=conjugate,
                                   weight_decay=decay, alpha=alpha, gamma=gamma, epsilon=epsilon)
        heights = [height(x[i], m[i]) for _, x, m in path]
        name = f"α = {alpha:g}, γ = {gamma:g}, ε = {epsilon:g}, λ = {decay:g}"
        figures.append(at_most(f"largest change of H, {name}", float(np.diff(heights).max()), -1e-15))
        curves[name] = ([step * 1e-4 for step, *_ in path[::50]], heights[::50])
    return Evidence(figures, curves=curves, axes=("time", "H"), notes=[
        f"Euler's method, 40,000 steps of 1e-4, H after every {every}; κ = Σ √(m² + e²) with e = {E:g}. "
        "It starts inside |λ x| < 1, outside of which H is infinite."])
