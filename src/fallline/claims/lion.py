"""Lion: half of AdamW's state, a loss no worse, and a gain that grows with the batch."""

from __future__ import annotations

import torch
from torch import Tensor

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_most, claim, exactly, recorded
from fallline.claims._tuning import best_loss, cosine, spaced, state_bytes
from fallline.core.keys import Key
from fallline.optim import AdamW, Lion
from fallline.problems.text import Decoder, token_loss

PAPER = Paper(
    slug="lion",
    title="Symbolic Discovery of Optimization Algorithms",
    arxiv="2302.06675",
    year=2023,
    room="optim",
    methods=("optim.Lion",),
    headline="up to 2 % more accuracy for ViT on ImageNet and up to 5 times less compute on JFT; 88.3 % zero-shot and 91.1 % "
    "fine-tuned on ImageNet; up to 2.3 times less compute for diffusion models; the gain grows with the batch size",
)
VOCABULARY, CONTEXT = 64, 16
# The paper's rule: a fifth of AdamW's learning rate, five times its decay.
SIDES = {"AdamW": (AdamW, {"weight_decay": 0.01}, spaced(1e-2, 3, 4)), "Lion": (Lion, {"weight_decay": 0.05}, spaced(2e-3, 3, 4))}


def markov_text(length: int, key: Key) -> Tensor:
    """Seven symbols in ten follow from the one before by a fixed permutation, the others are drawn from Zipf's law."""
    generator = key.generator()
    follows = torch.randperm(VOCABULARY, generator=generator).tolist()
    frequencies = 1 / torch.arange(1, VOCABULARY + 1, dtype=torch.float64)
    drawn = torch.multinomial(frequencies, length, replacement=True, generator=generator).tolist()
    kept = (torch.rand(length, generator=generator) < 0.7).tolist()
    text = [drawn[0]]
    for symbol, keep in zip(drawn[1:], kept[1:], strict=True):
        text.append(follows[text[-1]] if keep else symbol)
    return torch.tensor(text)


def text_model(seed: int, width: int, depth: int, batch: int) -> fl.Training:
    """A decoder on 40,000 symbols, validated on 8,000 more."""
    windows = markov_text(48_000, Key(seed).fold("text")).unfold(0, CONTEXT + 1, 1)
    train, valid = windows[:40_000], windows[40_000::CONTEXT]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Key(seed).fold("weights").integer())
        model = Decoder(VOCABULARY, CONTEXT, width, heads=4, depth=depth)
    return fl.Training(model, token_loss, (train[:, :-1], train[:, 1:]), validation=(valid[:, :-1], valid[:, 1:]), batch_size=batch)


def best_losses(problem: fl.Training, samples: int, key: int) -> dict[str, float]:
    """Both sides' best validation loss over their four learning rates after as many samples."""
    steps = round(samples / problem.batch_size)
    return {name: best_loss(problem, optimizer, rates, steps, key, schedule=cosine(steps), **hyper)
            for name, (optimizer, hyper, rates) in SIDES.items()}


@claim("half of AdamW's state, a loss at most 5 % above AdamW's on a small decoder, and no worse against it at batch 128 than at 8")
def memory_and_loss(scale: Scale, seed: int) -> Evidence:
    (width, depth), (small, middle, large) = ((32, 1), (8, 16, 128)) if scale is Scale.QUICK else ((192, 12), (64, 256, 4096))
    samples = 150 * middle if scale is Scale.QUICK else 1_000 * middle
    ratios: dict[int, list[float]] = {small: [], middle: [], large: []}
    losses: dict[str, list[float]] = {name: [] for name in SIDES}
    for s in range(seed, seed + 3):
        for batch, found in ratios.items():
            best = best_losses(text_model(s, width, depth, batch), samples, s)
            found.append(best["Lion"] / best["AdamW"])
            for name in SIDES if batch == middle else ():
                losses[name].append(best[name])
    problem = text_model(seed, width, depth, middle)
    sizes = {name: state_bytes(problem, fl.Train(optimizer, lr=1e-3)) for name, (optimizer, _, _) in SIDES.items()}
    growth = [late - early for late, early in zip(ratios[large], ratios[small], strict=True)]
    return Evidence([
        exactly("state bytes, Lion / AdamW", sizes["Lion"] / sizes["AdamW"], 0.5),
        at_most(f"best loss, Lion / AdamW, batch {middle}", ratios[middle], 1.05),
        at_most(f"q({large}) − q({small}), q = best loss of Lion / AdamW at equal samples", growth, 0.01),
        recorded(f"q({small})", ratios[small]),
        recorded(f"q({large})", ratios[large]),
        *(recorded(f"best loss, {name}", found) for name, found in losses.items()),
    ], notes=[f"Validation loss after {samples:,} samples, that is {samples // middle} steps of {middle}, best of four learning "
              "rates on both sides, cosine decay, lr times weight decay equal on both sides.",
              "The paper sees the gain grow with the batch over hundreds of thousands of steps; here the large batch takes "
              f"{round(samples / large)} steps. The full scale is a decoder of width 192 and depth 12 at the paper's batches of 64 to "
              "4,096, on this text and not on images."])
