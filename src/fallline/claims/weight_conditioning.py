"""Weight conditioning: rows scaled to length 1 are nearly as well conditioned as can be, and the same learning rate goes further."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import adaptive_avg_pool2d, mse_loss
from torch.nn.utils.parametrizations import weight_norm

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, recorded
from fallline.claims._tuning import Factory, observed
from fallline.core.keys import Key
from fallline.optim import SGD, Adam, condition
from fallline.optim.conditioning import equilibrate

PAPER = Paper(
    slug="weight-conditioning",
    title="Weight Conditioning for Smooth Optimization of Neural Networks",
    arxiv="2409.03424",
    year=2024,
    room="optim",
    methods=("optim.condition", "optim.remove_conditioning", "optim.condition_report"),
    headline="competitive with or better than batch, weight and spectral normalisation and weight standardisation on convolutional "
    "networks, vision transformers, radiance fields with Gaussian activations, and 3-D shape models",
)
ROWS, COLUMNS = 40, 60


def condition_numbers(matrices: Tensor) -> Tensor:
    """σ_max / σ_min of every matrix of a batch, by the eigenvalues of W Wᵀ."""
    eigenvalues = torch.linalg.eigvalsh(matrices @ matrices.mT)
    return (eigenvalues[..., -1] / eigenvalues[..., 0]).sqrt()


def best_row_scaling(matrices: Tensor, draws: int, steps: int, key: Key) -> Tensor:
    """The least condition number found for diag(e^u) W: over normal u, and by descent on log κ from the equilibrated rows.

    With left singular vectors a (largest) and z (smallest), ∂ log κ / ∂u_i = a_i² − z_i².
    """
    generator = key.generator()
    best = torch.full((len(matrices),), math.inf, dtype=torch.float64)
    for _ in range(draws):
        scales = 2 * torch.randn(len(matrices), ROWS, 1, dtype=torch.float64, generator=generator)
        best = torch.minimum(best, condition_numbers(scales.exp() * matrices))
    rows = equilibrate(matrices.flatten(0, 1)).view_as(matrices)
    logs = torch.zeros(len(matrices), ROWS, 1, dtype=torch.float64)
    for step in range(steps):
        scaled = logs.exp() * rows
        values, vectors = torch.linalg.eigh(scaled @ scaled.mT)
        best = torch.minimum(best, (values[:, -1] / values[:, 0]).sqrt())
        logs = logs - (1 - step / steps) * (vectors[..., -1:] ** 2 - vectors[..., :1] ** 2)
    return best


@claim("rows scaled to length 1 are within √m of the best row scaling in condition number, and five times better than none")
def equilibration(scale: Scale, seed: int) -> Evidence:
    draws, steps = (20, 25) if scale is Scale.QUICK else (2_000, 1_000)
    generator = Key(seed).fold("matrices").generator()
    matrices = torch.randn(200, ROWS, COLUMNS, dtype=torch.float64, generator=generator)
    matrices = matrices * torch.empty(200, ROWS, 1, dtype=torch.float64).uniform_(-4, 4, generator=generator).exp()
    plain = condition_numbers(matrices)
    scaled = condition_numbers(equilibrate(matrices.flatten(0, 1)).view_as(matrices))
    best = best_row_scaling(matrices, draws, steps, Key(seed).fold("scalings"))
    return Evidence([
        at_most("condition number, equilibrated rows / best row scaling, largest of 200 matrices", float((scaled / best).max()),
                math.sqrt(ROWS)),
        at_least("condition number, plain / equilibrated rows, median of 200 matrices", float((plain / scaled).median()), 5.0),
        recorded("condition number, equilibrated rows / best row scaling, median", float((scaled / best).median())),
    ], notes=[f"200 normal matrices of {ROWS} × {COLUMNS} whose rows are scaled by e to the power of a uniform number in [−4, 4]. The "
              f"best scaling is the best of {draws:,} random ones and of {steps:,} steps of descent on the logarithm of the condition "
              "number from the equilibrated rows; the full scale draws 2,000 and takes 1,000 steps."])


class Gaussian(nn.Module):
    """e^{−x² / 2s²} with s = 0.1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-50 * x**2)


def waves(size: int) -> Tensor:
    """A picture of 24 plane waves of up to 4 periods a side, amplitude falling like their frequency, standardised; ``(size, size)``."""
    generator = Key(0).fold("waves").generator()
    line = torch.linspace(-1, 1, size)
    frequencies = 8 * torch.rand(24, 2, generator=generator) - 4
    phases = 2 * math.pi * torch.rand(24, generator=generator)
    turns = frequencies[:, 0, None, None] * line[:, None] + frequencies[:, 1, None, None] * line
    picture = (torch.cos(math.pi * turns + phases[:, None, None]) / (1 + frequencies.norm(dim=1)[:, None, None])).sum(0)
    return (picture - picture.mean()) / picture.std(correction=0)


def photograph(size: int) -> Tensor:
    """scikit-image's camera man if it is installed, else scikit-learn's flower, grey, averaged down, standardised; ``(size, size)``."""
    try:
        pixels = torch.tensor(importlib.import_module("skimage.data").camera(), dtype=torch.float64)
    except ImportError:
        pixels = torch.tensor(load_sample_image("flower.jpg")[:, 106:533].mean(-1))
    picture = adaptive_avg_pool2d(pixels[None], size)[0].float()
    return (picture - picture.mean()) / picture.std(correction=0)


def weight_normalised(model: nn.Module) -> nn.Module:
    """Weight normalisation of all layers but the last."""
    for layer in [m for m in model.modules() if isinstance(m, nn.Linear)][:-1]:
        weight_norm(layer)
    return model


SIDES: dict[str, Callable[[nn.Module], nn.Module]] = {"plain": lambda model: model, "conditioned": condition,
                                                      "weight norm": weight_normalised}


def coordinate_problem(side: str, scale: Scale, seed: int) -> fl.Problem:
    """Mean squared error of a network from pixel coordinates in [−1, 1]² to grey values, all pixels in every gradient."""
    size, width, activation = (32, 64, nn.Tanh) if scale is Scale.QUICK else (128, 128, Gaussian)
    line = torch.linspace(-1, 1, size)
    inputs = torch.cartesian_prod(line, line)
    targets = (waves(size) if scale is Scale.QUICK else photograph(size)).reshape(-1, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Key(seed).fold("weights").integer())
        layers: list[nn.Module] = [nn.Linear(2, width), activation()]
        for _ in range(3):
            layers += [nn.Linear(width, width), activation()]
        model = SIDES[side](nn.Sequential(*layers, nn.Linear(width, 1)))
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return fl.Smooth(lambda w: mse_loss(functional_call(model, w, (inputs,)), targets), weights)


def losses(optimizer: Factory, rates: Sequence[float], sides: Sequence[str], scale: Scale, seed: int) -> dict[str, Tensor]:
    """Final losses ``(rates, seeds)`` of every side."""
    steps, seeds = (200, 2) if scale is Scale.QUICK else (300, 3)
    found: dict[str, Any] = {side: [[] for _ in rates] for side in sides}
    for side in sides:
        for s in range(seed, seed + seeds):
            problem = coordinate_problem(side, scale, s)
            for row, lr in zip(found[side], rates, strict=True):
                row.append(observed(problem, fl.Train(optimizer, lr=lr), steps, s, "value"))
    return {side: torch.tensor(rows) for side, rows in found.items()}


NOTE = ("A network 2-64-64-64-64-1 with tanh, torch's own initial weights, is fitted to a 32 × 32 picture for 200 full-batch steps, "
        "at two seeds; the picture is a sum of 24 random plane waves of up to 4 periods a side with mean 0 and variance 1, so that a "
        "loss of 1 is that of a constant. All layers but the last are conditioned, or weight-normalised with a learnable gain. The "
        "full scale is a 128 × 128 photograph, width 128, Gaussian activations, 300 steps, three seeds.")


@claim("gradient descent on a coordinate network gets at least a fifth lower at the same learning rate")
def descent(scale: Scale, seed: int) -> Evidence:
    rates = (0.03, 0.1)
    found = losses(SGD, rates, ("plain", "conditioned"), scale, seed)
    normalised = losses(SGD, rates[1:], ("weight norm",), scale, seed)["weight norm"]
    ratios = (found["conditioned"] / found["plain"]).tolist()
    return Evidence([
        *(at_most(f"loss, conditioned / plain, lr {lr:g}", ratio, 0.8) for lr, ratio in zip(rates, ratios, strict=True)),
        *(recorded(f"loss, {side}, lr {lr:g}", row)
          for side, rows in found.items() for lr, row in zip(rates, rows.tolist(), strict=True)),
        recorded(f"loss, weight norm, lr {rates[1]:g}", normalised[0].tolist()),
    ], notes=[NOTE])


@claim("Adam gets at least 15 % lower at the same small learning rate; at the best learning rate of each the gain need not remain")
def adaptive(scale: Scale, seed: int) -> Evidence:
    rates = (1e-3, 3e-3, 1e-2, 3e-2)
    found = losses(Adam, rates, ("plain", "conditioned") if scale is Scale.QUICK else tuple(SIDES), scale, seed)
    ratios = (found["conditioned"] / found["plain"]).tolist()
    best = {side: rows.min(0).values for side, rows in found.items()}
    return Evidence([
        *(at_most(f"loss, conditioned / plain, lr {lr:g}", ratio, 0.85) for lr, ratio in zip(rates[:2], ratios[:2], strict=True)),
        *(recorded(f"loss, conditioned / plain, lr {lr:g}", ratio) for lr, ratio in zip(rates[2:], ratios[2:], strict=True)),
        *(recorded(f"loss, {side} / plain, best lr of each", (row / best["plain"]).tolist())
          for side, row in best.items() if side != "plain"),
        *(recorded(f"best loss, {side}", row.tolist()) for side, row in best.items()),
    ], curves={side: (rates, rows.median(1).values.tolist()) for side, rows in found.items()}, axes=("learning rate", "loss"),
        notes=[NOTE, "Weight normalisation is compared under gradient descent here, and under Adam at the full scale.",
               "The gain is one of speed at an equal learning rate, and the best learning rate of each need not keep it."])
