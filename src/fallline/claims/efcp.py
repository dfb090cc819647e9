"""EFCP: a window of gradients at 1 % of their entries serves nearly as well as the whole, if what is left out is fed back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, recorded
from fallline.claims._networks import trained_networks, training_losses
from fallline.core.keys import Key
from fallline.core.tree import Tree
from fallline.optim import MFAC, Optimizer, SparseMFAC
from fallline.optim.directions.compressed import CompressedFisher, TopK
from fallline.optim.engine.parts import Tensors

PAPER = Paper(
    slug="efcp",
    title="Error Feedback Can Accurately Compress Preconditioners",
    arxiv="2306.06098",
    year=2024,
    room="optim",
    methods=("optim.SparseMFAC", "optim.SparseGGT"),
    headline="99 % sparsity without loss of accuracy for ResNet-18 on ImageNet, vision transformers and BERT; the preconditioner's "
    "memory cut by up to two orders of magnitude",
)
SETTINGS = [{"damp": damp, "lr": lr} for damp in (1e-3, 1e-2) for lr in (0.01, 0.03, 0.1)]


@dataclass(frozen=True)
class Forgetful(CompressedFisher):
    """Without error feedback: what compression leaves out is lost."""

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        v, new = super().__call__(g, p, s, c)
        return v, {**new, "error": torch.zeros_like(g)}


def forgetful(params: Any, m: int, **options: Any) -> Optimizer:
    """SparseMFAC at 1 % without error feedback."""
    return Optimizer(params, Forgetful(m, TopK(0.01)), {"lr": 1e-3, "damp": 1e-4, "momentum": 0.0, "weight_decay": 0.0}, **options)


ARMS: dict[str, Any] = {"dense": MFAC, "with feedback": SparseMFAC, "without": forgetful}


def gaussians(seed: int, width: int) -> fl.Training:
    """2,048 points of ten normal classes, 64 features scaled by 1 to 0.1, and a tanh network 64-width-10; batches of 64."""
    generator = Key(seed).fold("gaussians").generator()
    centres, noise = torch.randn(10, 64, generator=generator), torch.randn(2048, 64, generator=generator)
    labels = torch.randint(10, (2048,), generator=generator)
    points = (centres[labels] + noise) * torch.logspace(0, -1, 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Key(seed).fold("weights").integer())
        model = nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10))
    return fl.Training(model, cross_entropy, (points, labels), batch_size=64)


def best_loss(arm: str, seed: int, scale: Scale) -> float:
    """On all training data, at the best of six settings."""
    m, steps, width = (32, 200, 64) if scale is Scale.QUICK else (256, 2_000, 512)
    problem = gaussians(seed, width)
    weights = trained_networks([problem], ARMS[arm], SETTINGS, steps, seed, m=m)
    return float(training_losses([problem], weights).min())


def window_bytes(optimizer: Any, names: tuple[str, ...], problem: fl.Training) -> int:
    """Of the window's tables after a step."""
    p: Tree = nn.Parameter(torch.cat([x.reshape(-1) for x in problem.x0.values()]))
    p.grad = torch.ones_like(p)
    made = optimizer([p], m=32)
    made.step()
    return sum(made.state[p][name].numel() * made.state[p][name].element_size() for name in names)


@claim("with 1 % of the entries M-FAC's loss is at most 3 times that with all; without error feedback at least 3 times as large again")
def feedback(scale: Scale, seed: int) -> Evidence:
    found = {arm: [best_loss(arm, s, scale) for s in range(seed, seed + 3)] for arm in ARMS}

    def ratios(above: str, below: str) -> list[float]:
        return [a / b for a, b in zip(found[above], found[below], strict=True)]

    problem = gaussians(seed, 64)
    sparse, dense = window_bytes(SparseMFAC, ("indices", "values"), problem), window_bytes(MFAC, ("window",), problem)
    return Evidence([
        at_most("training loss, with feedback / dense", ratios("with feedback", "dense"), 3.0),
        at_least("training loss, without / with feedback", ratios("without", "with feedback"), 3.0),
        at_most("bytes of the window, 1 % / dense", sparse / dense, 0.03),
        *(recorded(f"training loss, {arm}", losses) for arm, losses in found.items()),
    ], notes=["Ten normal classes in 64 features scaled by 1 to 0.1, a tanh network 64-64-10, m = 32, 200 batches of 64; each arm "
              "at the best of λ = 1e-3, 1e-2 and three learning rates. The full scale has a width of 512, m = 256 and 2,000 batches, "
              "not ten million parameters and m = 1024."])
