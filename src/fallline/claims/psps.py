"""PSPS: preconditioned Polyak steps stay good where columns are scaled badly, and with a slack where labels are wrong."""

from __future__ import annotations

import functools

from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, recorded
from fallline.claims._scaled_logistic import RATES, STEPS, descended, separable, tuned
from fallline.claims._tuning import spaced
from fallline.optim import PSPS, Adam

PAPER = Paper(
    slug="psps",
    title="Stochastic Gradient Descent with Preconditioned Polyak Step-size",
    arxiv="2310.02093",
    year=2023,
    room="optim",
    methods=("optim.PSPS",),
    headline="nothing to tune, like SPS, and stable on badly scaled data, columns multiplied by e^U(−k, k), where SPS, SGD and Adam "
    "degrade",
)
SEEDS = 3


@claim("columns times e^U(−4, 4) raise the loss of PSPS with Hutchinson's B by at most 4 times, that of SPS by 20; Adam is 3 behind")
def badly_scaled(scale: Scale, seed: int) -> Evidence:
    steps, seeds = (STEPS, range(seed, seed + SEEDS)) if scale is Scale.QUICK else (20 * STEPS, range(seed, seed + 10))
    ends = {(precond, k): [descended(separable(s, k, steps), functools.partial(PSPS, precond=precond)) for s in seeds]
            for precond, spreads in (("hutchinson", (0, 4)), ("identity", (0, 4)), ("adagrad", (4,)), ("adam", (4,))) for k in spreads}
    adam = tuned([separable(s, 4, steps) for s in seeds], Adam, spaced(0.1, 10**0.5, RATES))
    ratios = {name: [far / near for far, near in zip(ends[name, 4], ends[name, 0], strict=True)] for name in ("hutchinson", "identity")}
    between = [make(f"training loss at k = 4, {name} / {other}",
                    [a / b for a, b in zip(ends[name, 4], ends[other, 4], strict=True)], 1.0)
               for name in ("adagrad", "adam") for make, other in ((at_least, "hutchinson"), (at_most, "identity"))]
    return Evidence([
        at_most("training loss at k = 4 / at k = 0, Hutchinson", ratios["hutchinson"], 4.0),
        at_least("training loss at k = 4 / at k = 0, SPS", ratios["identity"], 20.0),
        *between,
        at_least("training loss at k = 4, Adam / PSPS with Hutchinson",
                 [a / b for a, b in zip(adam, ends["hutchinson", 4], strict=True)], 3.0),
        *(recorded(f"training loss at k = {k}, {name}", found) for (name, k), found in ends.items()),
        recorded("training loss at k = 4, Adam at the best of six rates", adam),
    ], notes=["400 rows, 30 columns, separable; batches of 32, 1,500 steps. The full scale is 20 times as many steps and ten seeds, "
              "not data of 100,000 rows."])


@claim("with a tenth of the labels flipped the L1 slack at the best of four λ ends at 0.8 of the loss without a slack or less")
def wrong_labels(scale: Scale, seed: int) -> Evidence:
    steps, seeds = (STEPS, range(seed, seed + SEEDS)) if scale is Scale.QUICK else (20 * STEPS, range(seed, seed + 10))
    data = [separable(s, 0, steps, flipped=0.1) for s in seeds]
    plain = [descended(d, PSPS) for d in data]
    slack = [min(descended(d, functools.partial(PSPS, slack="l1", lam=lam)) for lam in (0.01, 0.1, 1.0, 10.0)) for d in data]
    return Evidence([
        at_most("training loss, with slack / without", [a / b for a, b in zip(slack, plain, strict=True)], 0.8),
        recorded("training loss with the slack, best of four λ", slack), recorded("training loss without", plain),
    ], notes=["Hutchinson's preconditioner on both sides. λ of 0.01, 0.1, 1, 10."])
