"""Lion: half of AdamW's state, a loss no worse, and a gain that grows with the batch."""

from __future__ import annotations

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_most, claim, exactly, recorded
from fallline.claims._text import text_model
from fallline.claims._tuning import best_loss, cosine, spaced, state_bytes
from fallline.optim import AdamW, Lion

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
# The paper's rule: a fifth of AdamW's learning rate, five times its decay.
SIDES = {"AdamW": (AdamW, {"weight_decay": 0.01}, spaced(1e-2, 3, 4)), "Lion": (Lion, {"weight_decay": 0.05}, spaced(2e-3, 3, 4))}


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
