"""SGD-SaI: half of AdamW's state, its loss on a small decoder or not, and what the scales are."""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.stats import spearmanr
from torch.optim.lr_scheduler import LambdaLR

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, exactly, recorded
from fallline.claims._networks import Schedule, at_rates, trained_networks, validation
from fallline.claims._text import text_model
from fallline.claims._tuning import Factory, spaced, state_bytes
from fallline.core.keys import Key
from fallline.optim import AdamW, Momentum, SGDSaI, gsnr_report

PAPER = Paper(
    slug="sgd-sai",
    title="No More Adam: Learning Rate Scaling at Initialization is All You Need",
    arxiv="2412.11768",
    year=2024,
    room="optim",
    methods=("optim.SGDSaI",),
    headline="as good as AdamW or better for ViT on ImageNet and GPT-2 pre-training, also for LoRA and diffusion models; saves 5.93 GB "
    "of 32-bit optimizer state for GPT-2 with 1.5B parameters and 25.15 GB for Llama2-7B",
)


def momentum(params: list[dict[str, Any]], **hyper: Any) -> torch.optim.Optimizer:
    """Momentum at a tenth of the rate: SGD-SaI averages the gradients that momentum's velocity sums."""
    return Momentum([{**group, "lr": group["lr"] / 10} for group in params], momentum=0.9, **hyper)


RATES = spaced(1.0, 100 ** (1 / 3), 4)
SIDES: dict[str, tuple[Factory, list[float], dict[str, Any]]] = {
    "AdamW": (AdamW, [1e-3, 3e-3, 1e-2, 3e-2], {"weight_decay": 0.0}),
    "momentum": (momentum, RATES, {}),
    "SGD-SaI": (SGDSaI, RATES, {"weight_decay": 0.0}),
}


def warmed(steps: int) -> Schedule:
    """A tenth of the steps to the full rate, then half a cosine to 0."""
    warm = steps // 10

    def factor(t: int) -> float:
        return (t + 1) / warm if t < warm else 0.5 + 0.5 * math.cos(math.pi * (t - warm) / (steps - warm))

    return lambda optimizer: LambdaLR(optimizer, factor)


@claim("half of AdamW's state and a loss at most 5 % above on a small decoder, at no fewer learning rates than momentum near the best")
def small_decoder(scale: Scale, seed: int) -> Evidence:
    steps, batch, (width, depth) = (200, 16, (32, 1)) if scale is Scale.QUICK else (5_000, 64, (192, 6))
    problems = [text_model(s, width, depth, batch) for s in range(seed, seed + 3)]
    # Seed by seed, since the largest of all tensors' scales is that of one network.
    losses = {name: torch.cat([validation([p], trained_networks([p], optimizer, at_rates(rates), steps, seed, schedule=warmed(steps),
                                                                **hyper)) for p in problems], 1)
              for name, (optimizer, rates, hyper) in SIDES.items()}
    best = {name: found.amin(0) for name, found in losses.items()}
    near = {name: (found <= 1.05 * best[name]).sum(0).double() for name, found in losses.items()}
    sizes = {optimizer: state_bytes(problems[0], fl.Train(optimizer)) for optimizer in (SGDSaI, AdamW)}
    reports = [gsnr_report(p.draw(Key(seed))).rows for p in problems]
    ranks = [float(spearmanr([row[1] for row in rows], [row[3] for row in rows]).statistic) for rows in reports]
    return Evidence([
        exactly("state bytes, SGD-SaI / AdamW", sizes[SGDSaI] / sizes[AdamW], 0.5),
        at_most("best loss, SGD-SaI / AdamW", (best["SGD-SaI"] / best["AdamW"]).tolist(), 1.05),
        at_least("learning rates within 5 % of the best loss, SGD-SaI − momentum", (near["SGD-SaI"] - near["momentum"]).tolist(), 0.0),
        recorded("best loss, SGD-SaI / momentum", (best["SGD-SaI"] / best["momentum"]).tolist()),
        recorded("rank correlation of the scales with √n", ranks),
        *(recorded(f"best loss, {name}", found.tolist()) for name, found in best.items()),
        *(recorded(f"learning rates within 5 % of the best loss, {name}", near[name].tolist()) for name in ("momentum", "SGD-SaI")),
    ], curves={name: (SIDES[name][1], found.mean(1).tolist()) for name, found in losses.items()}, axes=("learning rate", "loss"),
        notes=[f"Validation loss after {steps:,} steps of {batch}, a tenth of them for warming up, cosine decay, no weight decay; four "
               "rates each. Momentum's are a tenth of SGD-SaI's, whose average has a tenth of the length of momentum's sum.",
               "The full scale is a decoder of width 192 and depth 6 on this text, not ViT-Ti and a GPT of 30M."])
