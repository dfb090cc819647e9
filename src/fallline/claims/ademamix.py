"""AdEMAMix: slower to forget a batch, and AdamW's loss in fewer steps; no gain on a quadratic when both are tuned."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, between, claim, recorded
from fallline.claims._networks import at_rates, joined, separated, trained_networks, training_losses, validation, with_settings
from fallline.claims._text import text_model
from fallline.claims._tuning import Factory, cosine, side_by_side, spaced
from fallline.core.keys import Key
from fallline.core.objective import ModelProblem
from fallline.core.tree import Tree
from fallline.optim import Adam, AdamW, AdEMAMix

PAPER = Paper(
    slug="ademamix",
    title="The AdEMAMix Optimizer: Better, Faster, Older",
    arxiv="2409.03137",
    year=2024,
    room="optim",
    methods=("optim.AdEMAMix",),
    headline="a 1.3B model on 101B tokens is as good as with AdamW on 197B, 95 % more; slower forgetting of training data; gains for "
    "ViT when data is plentiful",
)
BETAS = (0.9, 0.999, 0.999)
BATCH, EVERY = 4, 4
RATES = {"AdamW": spaced(1e-2, 3, 4), "AdEMAMix": spaced(3e-3, 3, 4)}


def adamw(params: Any, **hyper: Any) -> torch.optim.Optimizer:
    """AdamW without decay, as the other side has none."""
    return AdamW(params, weight_decay=0.0, **hyper)


def ademamix(steps: int) -> Factory:
    """AdEMAMix with β₃ = 0.999 and warm-ups over the whole run, without the warning that such runs are short for it."""

    def make(params: Any, **hyper: Any) -> torch.optim.Optimizer:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="betas")
            return AdEMAMix(params, betas=BETAS, warmup_steps=steps, **hyper)

    return make


class OneBatch(fl.Training):
    """Every draw is all of the data."""

    def draw(self, key: Key, size: int | None = None, indices: Tensor | None = None, at: Tree | None = None) -> ModelProblem:
        return super().draw(key, indices=torch.arange(len(self.data[0])))


def forked(problems: Sequence[fl.Training], method: fl.Train, steps: int, at: int, after: int, key: int) -> tuple[Tensor, list[Tree]]:
    """By how much a held-out batch's loss is lower where step ``at`` took it, and where training ends that did not.

    The gain is at every fourth step from ``at`` to ``at + after``, ``(times, seeds)``; the batch is the first windows of each seed's
    validation text. Both runs are one until ``at``.
    """
    whole, size = joined(problems, 1, key), problems[0].batch_size
    batches = [tuple(tensor[:size] for tensor in p.validation) for p in problems]
    held_out = [OneBatch(p.model, p.loss_fn, batch, batch_size=size) for p, batch in zip(problems, batches, strict=True)]
    injected = OneBatch(whole.model, whole.loss_fn, [torch.stack(each, 1) for each in zip(*batches, strict=True)], batch_size=size)
    weights = lambda state: separated(method.report(whole, state).resolve(), problems)
    state = method.init(whole, Key(key))
    for _ in range(1, at):
        state = method.step(whole, state)
    other, gains = method.clone(state), []
    for step in range(at, steps + 1):
        state = method.step(whole, state)
        if step <= at + after:
            other = method.step(injected if step == at else whole, other)
            if (step - at) % EVERY == 0:
                gains.append(training_losses(held_out, weights(state))[0] - training_losses(held_out, weights(other))[0])
    return torch.stack(gains), weights(state)[0]


@claim("a batch seen once is forgotten by AdEMAMix within 100 steps to at most 0.9 of the extent of AdamW")
def forgetting(scale: Scale, seed: int) -> Evidence:
    steps, at, after = (300, 150, 100) if scale is Scale.QUICK else (6_000, 3_000, 2_000)
    problems = [text_model(s, width=32, depth=1, batch=BATCH) for s in range(seed, seed + 5)]
    sides: dict[str, Factory] = {"AdamW": adamw, "AdEMAMix": ademamix(steps)}
    gains, losses = {}, {}
    for name, optimizer in sides.items():
        tuning = trained_networks(problems[:1], optimizer, at_rates(RATES[name]), steps, seed, schedule=cosine(steps))
        best = int(validation(problems[:1], tuning).argmin())
        method = with_settings(optimizer, at_rates(RATES[name][best:best + 1]), cosine(steps))
        gains[name], ends = forked(problems, method, steps, at, after, seed)
        losses[name] = validation(problems, [ends])[0]
    regained = {name: gain.amax(0) - gain[-1] for name, gain in gains.items()}
    return Evidence([
        at_most("regained loss, AdEMAMix / AdamW", (regained["AdEMAMix"] / regained["AdamW"]).tolist(), 0.9),
        *(recorded(f"regained loss, {name}", found.tolist()) for name, found in regained.items()),
        *(recorded(f"largest gain from the batch, {name}", gain.amax(0).tolist()) for name, gain in gains.items()),
        *(recorded(f"share of it left {after} steps after the batch, {name}", (gain[-1] / gain.amax(0)).tolist())
          for name, gain in gains.items()),
        *(recorded(f"validation loss, {name}", found.tolist()) for name, found in losses.items()),
    ], curves={name: (range(0, after + 1, EVERY), gain.mean(1).tolist()) for name, gain in gains.items()},
        axes=("steps after the batch", "gain from it, nats"),
        notes=[f"Both sides for {steps:,} steps of {BATCH} with cosine decay, at the best of four rates on the first of the five "
               f"seeds; the batch is taken at step {at:,}. The gain is by how much lower its loss is than in the same run without it; "
               f"regained is what is lost of that between its largest and {after:,} steps after the batch. The losses at the end are "
               "those recorded, and only nearly equal.",
               "The full scale is this model for 6,000 steps, not a decoder of 20M."])


@claim("on a small decoder AdEMAMix's loss is at most that of AdamW after 1.2 times as many steps")
def fewer_steps(scale: Scale, seed: int) -> Evidence:
    steps = 250 if scale is Scale.QUICK else 8_000
    longer = steps * 6 // 5
    problems = [text_model(s, width=32, depth=1, batch=BATCH) for s in range(seed, seed + (2 if scale is Scale.QUICK else 3))]
    ours = trained_networks(problems, ademamix(steps),
                            [{"lr": lr, "alpha": alpha} for alpha in (4.0, 8.0) for lr in spaced(3e-3, 3, 5)], steps, seed,
                            schedule=cosine(steps))
    theirs = trained_networks(problems, adamw,
                              [{"lr": lr, "betas": (beta, 0.999)} for beta in (0.9, 0.99) for lr in spaced(1e-2, 3, 5)], longer, seed,
                              schedule=cosine(longer))
    losses = {name: validation(problems, weights).amin(0) for name, weights in (("AdEMAMix", ours), ("AdamW", theirs))}
    return Evidence([
        at_most(f"validation loss, AdEMAMix after {steps:,} steps − AdamW after {longer:,}",
                (losses["AdEMAMix"] - losses["AdamW"]).tolist(), 0.0),
        *(recorded(f"validation loss, {name}", found.tolist()) for name, found in losses.items()),
    ], notes=[f"Batches of {BATCH}, cosine decay to the end of each run; five rates with α of 4 and 8 against five with β₁ of 0.9 and "
              "0.99. At quick scale 250 steps and two seeds, for the time. The full scale is this model for 8,000 steps, "
              "not a decoder of 20M."])


def rotated_least_squares(seed: int, seeds: int) -> tuple[Tensor, Tensor]:
    """8,000 rows of 50 Gaussian features in random directions, the Hessian's condition number 1,000, and targets with noise of 0.5."""
    generator = Key(seed).fold("least squares").generator()

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    rotations = torch.linalg.qr(normal(seeds, 50, 50)).Q
    features = torch.einsum("nsi,sij->nsj", normal(8_000, seeds, 50) * torch.logspace(0, -1.5, 50, dtype=torch.float64), rotations)
    return features, (features * normal(seeds, 50)).sum(-1) + 0.5 * normal(8_000, seeds)


def half_squares(w: Tensor, features: Tensor, targets: Tensor) -> Tensor:
    """Half the mean squared error, ``(…, seeds)``."""
    return 0.5 * ((features * w).sum(-1) - targets).square().mean(0)


@claim("on noisy least squares AdEMAMix's error is at most 1 / 2.5 of Adam's at equal small rates, and like Adam's when both are tuned")
def quadratic(scale: Scale, seed: int) -> Evidence:
    steps, seeds = 2_000, 3 if scale is Scale.QUICK else 10
    rates = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    features, targets = rotated_least_squares(seed, seeds)
    answer = torch.linalg.lstsq(features.transpose(0, 1), targets.T[..., None]).solution[..., 0]
    problem = fl.FiniteSum(lambda w, a, b: half_squares(torch.stack(w), a[:, None], b[:, None]).sum(), (features, targets),
                           [torch.zeros(seeds, 50, dtype=torch.float64) for _ in rates], batch_size=16)
    excess = {}
    for name, optimizer, hyper in (("Adam", Adam, {}), ("AdEMAMix", ademamix(steps), {"alpha": 5.0})):
        ends = fl.solve(problem, fl.Train(side_by_side(optimizer, rates), **hyper), fl.Budget(steps=steps), key=seed, every=steps).x
        excess[name] = torch.stack([half_squares(w, features, targets) for w in ends]) - half_squares(answer, features, targets)
    equal = excess["Adam"] / excess["AdEMAMix"]
    best = {name: found.amin(0) for name, found in excess.items()}
    return Evidence([
        *(at_least(f"error at lr {lr:g}, Adam / AdEMAMix", row.tolist(), 2.5) for lr, row in zip(rates[:4], equal[:4], strict=True)),
        between("error at the best of six rates, AdEMAMix / Adam", (best["AdEMAMix"] / best["Adam"]).tolist(), 0.7, 1.4),
        *(recorded(f"error at the best rate, {name}", found.tolist()) for name, found in best.items()),
    ], curves={name: (rates, found.median(1).values.tolist()) for name, found in excess.items()}, axes=("learning rate", "error"),
        notes=["50 variables, condition number 1,000, batches of 16, 2,000 steps at a constant rate, β₃ = 0.999, α = 5. The error is "
               "the loss above the least one. The full scale is ten seeds."])
