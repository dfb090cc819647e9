"""8-bit state: the loss of 32 bits at a quarter of the bytes, and what block-wise scales and the dynamic map are each worth."""

from __future__ import annotations

import torch
from torch import Tensor

import fallline as fl
from fallline.claims import Evidence, Figure, Paper, Scale, at_least, at_most, between, claim
from fallline.claims._tuning import observed, state_bytes
from fallline.core.keys import Key
from fallline.optim import Adam, Adam8bit, Quantized
from fallline.problems import digits_mlp, tiny_lm

PAPER = Paper(
    slug="adam-8bit",
    title="8-bit Optimizers via Block-wise Quantization",
    arxiv="2110.02861",
    year=2022,
    room="optim",
    methods=("optim.Adam8bit", "optim.SGDM8bit", "optim.Quantized", "optim.StableEmbedding"),
    headline="32-bit quality with unchanged hyperparameters on a 1.5B language model, GLUE, ImageNet, WMT and MoCo; about 75 % of the "
    "optimizer's memory saved; faster steps than 32-bit",
)


@claim("at Adam's own learning rate the final loss is within 1 % of 32-bit Adam's, with at most 0.27 of the state's bytes")
def same_loss(scale: Scale, seed: int) -> Evidence:
    figures: list[Figure] = []
    for name in ("tiny-lm", "digits-mlp"):
        ratios, sizes = [], []
        for s in range(seed, seed + 3):
            problem = tiny_lm(s) if name == "tiny-lm" else digits_mlp(s, widths=(256,))
            steps = 150 if scale is Scale.QUICK else 1_500
            full, small = fl.Train(Adam, lr=3e-3), fl.Train(Adam8bit, lr=3e-3, min_size=1)
            ratios.append(observed(problem, small, steps, s) / observed(problem, full, steps, s))
            sizes.append(state_bytes(problem, small) / state_bytes(problem, full))
        figures += [between(f"loss of 8 bits / loss of 32 bits, {name}", ratios, 0.99, 1.01),
                    at_most(f"state bytes of 8 bits / of 32 bits, {name}", sizes[0], 0.27)]
    return Evidence(figures, notes=["Validation losses at lr = 0.003, the same for both. The full scale is the same models for 1,500 "
                                    "steps, not a GPT of 100M."])


def relative_error(x: Tensor, approximation: Tensor) -> float:
    """The mean of |x − x̂| / |x|."""
    return float(((x - approximation) / x).abs().mean())


def linear(x: Tensor, block: int) -> Tensor:
    """The same blocks with 255 evenly spaced values of [0, max]."""
    blocks = x.view(-1, block)
    top = blocks.amax(1, keepdim=True)
    return ((blocks / top * 255).round() / 255 * top).view(-1)


@claim("with outliers block-wise scales lower the error tenfold, and on squared Gaussians the dynamic map beats a linear one threefold")
def quantiser(scale: Scale, seed: int) -> Evidence:
    size = 2**20 if scale is Scale.QUICK else 2**26
    outliers, maps = [], []
    for s in range(seed, seed + 3):
        generator = Key(s).generator()
        x = torch.randn(size, generator=generator)
        squares = x.square()
        x[torch.randint(size, (10,), generator=generator)] = 1e3
        outliers.append(relative_error(x, Quantized(x).dequantize()) / relative_error(x, Quantized(x, block=size).dequantize()))
        dynamic = relative_error(squares, Quantized(squares, signed=False).dequantize())
        maps.append(relative_error(squares, linear(squares, 2048)) / dynamic)
    return Evidence([
        at_most("error with scales by block / with one scale", outliers, 0.1),
        at_least("error of the linear map / of the dynamic map", maps, 3.0),
    ], notes=[f"{size:,} Gaussian numbers, ten of them 1,000; mean relative errors."])
