"""SANIA: the same curve whatever the scaling of the columns, nothing to tune, and as good as tuned Adam where that is not hurt."""

from __future__ import annotations

import functools

import torch

from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, recorded
from fallline.claims._scaled_logistic import RATES, STEPS, descended, separable, tuned
from fallline.claims._tuning import spaced
from fallline.optim import PSPS, SANIA, Adam

PAPER = Paper(
    slug="sania",
    title="SANIA: Polyak-type Optimization Framework Leads to Scale Invariant Stochastic Algorithms",
    arxiv="2312.17369",
    year=2023,
    room="optim",
    methods=("optim.SANIA",),
    headline="no step size to set; the squared variants give the same curves on original and badly scaled data, where Adam and AdaGrad "
    "with tuned rates slow down by orders",
)
SQUARED, SEEDS = ("adagrad_sqr", "adam_sqr"), 3


def curve(seed: int, spread: float, steps: int, precond: str) -> torch.Tensor:
    """The loss over all rows after every step, with ε = 0."""
    found: list[float] = []
    descended(separable(seed, spread, steps), functools.partial(SANIA, precond=precond, eps=0.0), watch=found.append)
    return torch.tensor(found, dtype=torch.float64)


@claim("both squared forms give one curve for columns times e^U(−k, k), k = 0, 3, 6, to 1e-6; Adam and SPS lose a factor of 10")
def invariance(scale: Scale, seed: int) -> Evidence:
    steps, seeds = (STEPS, range(seed, seed + SEEDS)) if scale is Scale.QUICK else (20 * STEPS, range(seed, seed + 10))
    spreads = (0, 3, 6)
    curves = {(name, k): torch.stack([curve(s, k, steps, name) for s in seeds]) for name in SQUARED for k in spreads}
    rates = spaced(0.1, 10**0.5, RATES)
    adam = {k: tuned([separable(s, k, steps) for s in seeds], Adam, rates) for k in (0, 6)}
    sps = {k: [descended(separable(s, k, steps), functools.partial(PSPS, precond="identity")) for s in seeds] for k in (0, 6)}
    every = range(0, steps, steps // 100)
    return Evidence([
        *(at_most(f"largest change of the loss for k = {k}, of the loss itself, {name}",
                  ((curves[name, k] - curves[name, 0]).abs() / curves[name, 0]).amax(1).tolist(), 1e-6)
          for name in SQUARED for k in spreads[1:]),
        *(at_least(f"last loss at k = 6 / at k = 0, {name}", [a / b for a, b in zip(found[6], found[0], strict=True)], 10.0)
          for name, found in (("Adam", adam), ("SPS", sps))),
        *(at_most(f"last loss at k = 0, {name} / Adam",
                  [a / b for a, b in zip(curves[name, 0][:, -1].tolist(), adam[0], strict=True)], 1.3) for name in SQUARED),
        *(recorded(f"last loss at k = {k}, {name}", found[k]) for name, found in (("Adam", adam), ("SPS", sps)) for k in (0, 6)),
        *(recorded(f"last loss at k = 0, {name}", curves[name, 0][:, -1].tolist()) for name in SQUARED),
    ], curves={f"{name}, k = {k}": (every, curves[name, k].median(0).values[::steps // 100].tolist()) for name in SQUARED
               for k in (0, 6)}, axes=("step", "training loss"),
        notes=["400 rows, 30 columns, separable; batches of 32, 1,500 steps, the same for all k; float64, ε = 0. Adam at the best of "
               "six rates, chosen for each k. The full scale is 20 times as many steps and ten seeds."])
