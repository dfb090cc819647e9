"""Schedules from the theory of the last iterate: linear decay against its rivals, and its refinement from recorded gradient norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, MultiStepLR

from fallline.claims import Evidence, Paper, Scale, at_most, between, claim, exactly, recorded
from fallline.core.keys import Key
from fallline.optim import SGD
from fallline.optim.schedules import GradNormRecorder, LastIterate, LinearDecay, Tabulated, refine
from fallline.optim.schedules import Schedule as Table
from fallline.problems.images import digits_split

PAPER = Paper(
    slug="refined-schedules",
    title="When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement",
    arxiv="2310.07831",
    year=2023,
    room="optim",
    methods=("optim.LinearDecay", "optim.refine", "optim.GradNormRecorder"),
    headline="linear decay matches or beats cosine and the other usual schedules on ten deep learning problems, language models and a "
    "suite of logistic regressions; refinement improves on it on many",
)
Scheduler = Callable[[TorchOptimizer, int], Any]
Gradients = Callable[[Tensor, Tensor], Tensor]


def thirty_sixty_ninety(optimizer: TorchOptimizer, steps: int) -> MultiStepLR:
    """A tenth of the rate from 30, 60 and 90 percent of the run on."""
    return MultiStepLR(optimizer, [round(share * steps) for share in (0.3, 0.6, 0.9)], gamma=0.1)


SCHEDULES: dict[str, Scheduler] = {
    "linear": LinearDecay,
    "cosine": CosineAnnealingLR,
    "step": thirty_sixty_ninety,
    "constant": lambda optimizer, steps: ConstantLR(optimizer, factor=1.0),
    "1/√t": lambda optimizer, steps: LastIterate(optimizer),
}


def descended(gradients: Gradients, shape: Sequence[int], rates: Tensor, batches: Tensor, schedule: Scheduler) -> Tensor:
    """The last iterates ``(rates, *shape)`` of gradient descent from 0 at all learning rates at once.

    x = η y turns x ← x − η s_t g into y ← y − s_t g: one optimizer with lr = 1 runs them all.
    """
    y = nn.Parameter(torch.zeros(len(rates), *shape, dtype=torch.float64))
    scale = rates.reshape(-1, *[1] * len(shape))
    optimizer = SGD([y], lr=1.0, nonfinite="ignore")
    scheduler = schedule(optimizer, len(batches))
    for batch in batches:
        y.grad = gradients(scale * y.detach(), batch)
        optimizer.step()
        scheduler.step()
    return scale * y.detach()


def regression(seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """1,000 Gaussian rows of 30 features for every seed, coefficients of deviation 5, and noise: 0.3 times Student's t of 2 degrees of
    freedom."""
    generators = [Key(s).fold("regression").generator() for s in seeds]
    rows = torch.stack([torch.randn(1000, 31, dtype=torch.float64, generator=g) for g in generators], 1)
    # Half a chi-square of two degrees of freedom is exponential.
    halves = torch.stack([-(1 - torch.rand(1000, dtype=torch.float64, generator=g)).log() for g in generators], 1)
    noise = rows[..., 30] / halves.sqrt()
    solution = 5 * torch.stack([torch.randn(30, dtype=torch.float64, generator=g) for g in generators])
    features = rows[..., :30]
    return features, (features * solution).sum(-1) + 0.3 * noise


def sampled(rows: int, size: int, steps: int, seeds: Sequence[int]) -> Tensor:
    """Row numbers ``(steps, size, seeds)``, the same at every learning rate."""
    return torch.stack([torch.randint(rows, (steps, size), generator=Key(s).fold("batches").generator()) for s in seeds], -1)


@claim("on least absolute deviations linear decay ends within 2 % of the better of cosine and step schedule, and 2 % below a constant "
       "rate and 1/√t")
def linear_decay_is_enough(scale: Scale, seed: int) -> Evidence:
    seeds = range(seed, seed + (3 if scale is Scale.QUICK else 10))
    steps, rates = 2_000 if scale is Scale.QUICK else 20_000, torch.logspace(-3, 0.5, 15, dtype=torch.float64)
    features, answers = regression(seeds)
    index = torch.arange(len(seeds))

    def gradients(x: Tensor, batch: Tensor) -> Tensor:
        a, b = features[batch, index], answers[batch, index]
        return torch.einsum("bsd,rbs->rsd", a, (torch.einsum("bsd,rsd->rbs", a, x) - b).sign()) / len(a)

    batches = sampled(1000, 4, steps, seeds)
    ends = {name: descended(gradients, (len(seeds), 30), rates, batches, schedule) for name, schedule in SCHEDULES.items()}
    losses = {name: (torch.einsum("nsd,rsd->nrs", features, x) - answers[:, None]).abs().mean(0) for name, x in ends.items()}
    best = {name: found.amin(0) for name, found in losses.items()}
    chosen = {name: rates[found.argmin(0)] for name, found in losses.items()}
    return Evidence([
        at_most("loss, linear / the better of cosine and step", (best["linear"] / torch.minimum(best["cosine"], best["step"])).tolist(),
                1.02),
        *(at_most(f"loss, linear / {name}", (best["linear"] / best[name]).tolist(), 0.98) for name in ("constant", "1/√t")),
        *(recorded(f"loss, {name}", found.tolist()) for name, found in best.items()),
        *(recorded(f"learning rate, {name}", found.tolist()) for name, found in chosen.items()),
    ], curves={name: (rates.tolist(), found.median(1).values.tolist()) for name, found in losses.items()},
        axes=("learning rate", "mean absolute deviation"),
        notes=[f"1,000 rows, 30 features, coefficients of deviation 5, noise of 2 degrees of freedom, batches of 4, {steps:,} steps "
               f"from 0; every schedule at the best of 15 learning rates for each of {len(seeds)} seeds; losses on all rows. The step "
               "schedule is a tenth at 30, 60 and 90 percent. From a start five times nearer linear decay is 2 % below a constant rate "
               "and 1 % below 1/√t. The full scale is this problem for 20,000 steps, not a language model."])


def softmax_gradients(features: Tensor, labels: Tensor, classes: int) -> Gradients:
    """Of the mean cross-entropy over a batch of rows, for weights ``(rates, features, classes)``."""
    targets = one_hot(labels, classes).to(features.dtype)

    def gradients(w: Tensor, batch: Tensor) -> Tensor:
        a = features[batch]
        return torch.einsum("bf,rbc->rfc", a, torch.einsum("bf,rfc->rbc", a, w).softmax(-1) - targets[batch]) / len(a)

    return gradients


def refined_run(features: Tensor, labels: Tensor, classes: int, rates: Tensor, size: int, steps: int,
                seed: int) -> tuple[Table, Tensor]:
    """The schedule refined from a run of linear decay at its best rate, and the best losses of both, linear first.

    The norms are those of one run by itself, recorded from its optimizer.
    """
    gradients = softmax_gradients(features, labels, classes)
    batches = sampled(len(features), size, steps, [seed])[..., 0]
    shape = (features.shape[1], classes)

    def losses(schedule: Scheduler) -> Tensor:
        ends = descended(gradients, shape, rates, batches, schedule)
        found = torch.stack([cross_entropy(features @ w, labels) for w in ends])
        return torch.where(found.isfinite(), found, torch.inf)

    linear = losses(LinearDecay)
    w = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = SGD([w], lr=float(rates[linear.argmin()]))
    scheduler = LinearDecay(optimizer, steps)
    with GradNormRecorder(optimizer) as record:
        for batch in batches:
            w.grad = gradients(w.detach()[None], batch)[0]
            optimizer.step()
            scheduler.step()
    refined = refine(record.norms)
    return refined, torch.stack([linear.min(), losses(lambda optimizer, _: Tabulated(optimizer, refined)).min()])


def standardised(x: Tensor) -> Tensor:
    """Columns of mean 0 and deviation 1, those that do not vary left at 0, and a constant."""
    deviation = x.std(0, unbiased=False)
    columns = (x - x.mean(0)) / torch.where(deviation > 0, deviation, 1.0)
    return torch.cat([columns, torch.ones(len(x), 1, dtype=x.dtype)], 1)


def noisy_digits(seed: int) -> tuple[Tensor, Tensor]:
    """The digits' training pixels, and labels of which a fifth are replaced by another one."""
    (pixels, labels), _ = digits_split()
    generator = Key(seed).fold("flips").generator()
    flipped = torch.randperm(len(labels), generator=generator)[: round(0.2 * len(labels))]
    labels = labels.clone()
    labels[flipped] = (labels[flipped] + torch.randint(1, 10, (len(flipped),), generator=generator)) % 10
    return pixels.double(), labels


@claim("on digits with a fifth of the labels wrong the refined schedule warms up and anneals, and ends within 2 % of linear decay")
def refinement(scale: Scale, seed: int) -> Evidence:
    steps, rates = 1_000 if scale is Scale.QUICK else 20_000, torch.logspace(-3, 0.5, 8, dtype=torch.float64)
    seeds = range(seed, seed + 3)
    drawn = [noisy_digits(s) for s in seeds]
    digits = [refined_run(standardised(x), y, 10, rates, 16, steps, s) for s, (x, y) in zip(seeds, drawn, strict=True)]
    raw, (raw_linear, raw_refined) = refined_run(*drawn[0], 10, 3 * rates, 16, steps, seed)
    data = load_breast_cancer()
    separable = [refined_run(standardised(torch.tensor(data.data)), torch.tensor(data.target), 2, rates, 16, steps, s) for s in seeds]
    late = int(0.95 * steps)
    return Evidence([
        at_most("first value of the refined schedule / its largest", [table[0] for table, _ in digits], 0.5),
        at_most("value at 95 percent of the run / its largest", [table[late] for table, _ in digits], 0.2),
        between("loss, refined / linear", [float(refined / linear) for _, (linear, refined) in digits], 0.98, 1.02),
        *(recorded(f"loss on digits, {name}", [float(losses[i]) for _, losses in digits])
          for i, name in enumerate(("linear", "refined"))),
        recorded("first value / the largest, pixels as they are, one seed", raw[0]),
        recorded("loss, refined / linear, pixels as they are, one seed", float(raw_refined / raw_linear)),
        recorded("loss, refined / linear, breast cancer", [float(refined / linear) for _, (linear, refined) in separable]),
    ], curves={f"digits, seed {s}": (range(steps), table.values.tolist()) for s, (table, _) in zip(seeds, digits, strict=True)}
        | {"linear": (range(steps), [1 - t / steps for t in range(steps)])},
        axes=("step", "factor of the base rate"),
        notes=[f"Softmax regression on standardised features, batches of 16, {steps:,} steps from 0, both schedules at the best of 8 "
               "learning rates, losses on all training rows. The further gain of the paper is not visible at this size; on rows that "
               "are nearly separable refinement loses. The full scale is this problem for 20,000 steps, not a decoder."])


@claim("equal gradient norms refine to linear decay")
def identity(scale: Scale, seed: int) -> Evidence:
    found = {}
    for steps in (10, 100, 1000):
        line = 1 - torch.arange(1, steps + 1, dtype=torch.float64) / steps
        found[steps] = [float((refine([norm] * steps, p).values - line).abs().max()) for norm, p in ((0.01, 2), (7.0, 1))]
    return Evidence([exactly(f"largest |s_t − (1 − t / T)|, T = {steps}", max(gaps), 0.0, tolerance=1 / steps + 1e-12)
                     for steps, gaps in found.items()],
                    notes=["The refined schedule is divided by its largest value, (T − 1) / T of the line's: hence up to 1 / T."])
