"""U-DoG: accelerated without a step size on an ill-conditioned quadratic, insensitive to its one number, kept by its damping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, recorded
from fallline.claims._digits import digits, digits_steps
from fallline.claims._tuning import observed
from fallline.core.keys import Key
from fallline.optim import DoG, StochasticAGD, UDoG

PAPER = Paper(
    slug="u-dog",
    title="Accelerated Parameter-Free Stochastic Optimization",
    arxiv="2404.00666",
    year=2024,
    room="optim",
    methods=("optim.UDoG",),
    headline="nearly the optimal rates O(1 / T²) + noise / √T, knowing only loose bounds on distance and noise; strong on convex "
    "problems, mixed on networks",
)
SIZE = 200


class Quadratic:
    """½ ⟨x − x*, H (x − x*)⟩ in random directions, eigenvalues from 1 to 1e-5, as a closure with gradients of noise ``sigma``."""

    def __init__(self, seed: int, sigma: float = 0.0) -> None:
        generator = Key(seed).fold("quadratic").generator()
        rotation = torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=torch.float64, generator=generator)).Q
        self.hessian = rotation * torch.logspace(0, -5, SIZE, dtype=torch.float64) @ rotation.T
        self.answer = torch.randn(SIZE, dtype=torch.float64, generator=generator)
        self.noise, self.sigma = Key(seed).fold("noise").generator(), sigma
        self.x = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))

    def gap(self, x: Tensor) -> float:
        """f(x) − f*, of that at 0."""
        off = x.detach() - self.answer
        return float(off @ self.hessian @ off / (self.answer @ self.hessian @ self.answer))

    def __call__(self) -> Tensor:
        off = self.x.detach() - self.answer
        g = self.hessian @ off
        noise = torch.randn(SIZE, dtype=torch.float64, generator=self.noise) * self.sigma / SIZE**0.5
        self.x.grad = g + noise
        return off @ g / 2


def gap_after(make: Callable[..., Any], steps: int, seed: int, sigma: float = 0.0, **settings: Any) -> float:
    """The answer's gap after as many gradients."""
    quadratic = Quadratic(seed, sigma)
    optimizer = make([quadratic.x], **settings)
    for _ in range(steps):
        optimizer.step(quadratic)
    with optimizer.solution():
        return quadratic.gap(quadratic.x)


@claim("after 3,200 gradients the gap is at most 0.01 of DoG's, and at most 5 times that of Nesterov's method with L known after 1,600")
def acceleration(scale: Scale, seed: int) -> Evidence:
    steps, seeds = (3_200, range(seed, seed + 2)) if scale is Scale.QUICK else (32_000, range(seed, seed + 10))
    ours = [gap_after(UDoG, steps, s) for s in seeds]
    dog = [gap_after(DoG, steps, s) for s in seeds]
    nesterov = [gap_after(StochasticAGD, steps // 2, s, smoothness=1.0, mu=0.0) for s in seeds]
    return Evidence([
        at_most("gap, U-DoG / DoG", [a / b for a, b in zip(ours, dog, strict=True)], 0.01),
        at_most(f"gap, U-DoG / Nesterov's method after {steps // 2:,}", [a / b for a, b in zip(ours, nesterov, strict=True)], 5.0),
        *(recorded(f"gap, {name}", found) for name, found in (("U-DoG", ours), ("DoG", dog), ("Nesterov's method", nesterov))),
    ], notes=["200 variables, condition number 1e5; gaps are of the first one. DoG's is that of its average."])


@claim("for reps_rel from 1e-8 to 0.1 the gaps after 400 iterations differ by at most a factor of 5")
def insensitivity(scale: Scale, seed: int) -> Evidence:
    sizes = [10.0**-i for i in range(8, 0, -1)]
    gaps = [gap_after(UDoG, 800, seed, reps_rel=size) for size in sizes]
    return Evidence([at_most("largest gap / smallest", max(gaps) / min(gaps), 5.0),
                     *(recorded(f"gap at reps_rel = {size:.0e}", gap) for size, gap in zip(sizes, gaps, strict=True))],
                    curves={"U-DoG": (sizes, gaps)}, axes=("reps_rel", "gap"), notes=["Both scales are the same."])


@claim("with noise of norm 1 the damped form ends within 3 times DoG's gap, the undamped one at 3 times the damped one's or more")
def noise(scale: Scale, seed: int) -> Evidence:
    steps, seeds = (3_200, range(seed, seed + 3)) if scale is Scale.QUICK else (32_000, range(seed, seed + 10))
    damped = [gap_after(UDoG, steps, s, sigma=1.0) for s in seeds]
    undamped = [gap_after(UDoG, steps, s, sigma=1.0, damping=None) for s in seeds]
    dog = [gap_after(DoG, steps, s, sigma=1.0) for s in seeds]
    networks = {make.__name__: [observed(problem, fl.Train(make), digits_steps(scale), s) for s, problem in enumerate(digits(seed, 2))]
                for make in (UDoG, DoG)}
    return Evidence([
        at_most("gap, damped / DoG", [a / b for a, b in zip(damped, dog, strict=True)], 3.0),
        at_least("gap, undamped / damped", [a / b for a, b in zip(undamped, damped, strict=True)], 3.0),
        *(recorded(f"gap, {name}", found) for name, found in (("damped", damped), ("undamped", undamped), ("DoG", dog))),
        *(recorded(f"validation loss of a network on the digits, {name}", found) for name, found in networks.items()),
    ], notes=["Noise of standard deviation 1 / √200 in every entry of every gradient.",
               "On the digits both are at their defaults."])
