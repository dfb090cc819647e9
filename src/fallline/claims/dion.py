"""Dion: processes that average no gradients are one, for a part of the traffic; and what low rank costs a language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_most, claim, recorded
from fallline.claims._tuning import best_loss
from fallline.core.keys import Key
from fallline.core.processes import run_gloo
from fallline.optim import AdamW, Dion, roles
from fallline.problems import digits_mlp, tiny_lm

PAPER = Paper(
    slug="dion",
    title="Dion: Distributed Orthonormalized Updates",
    arxiv="2504.05295",
    year=2025,
    room="optim",
    methods=("optim.Dion",),
    headline="language models of 120M to 3B parameters: better than AdamW by more as models and batches grow, and larger models do "
    "with a lower rank",
)
STEPS, BATCH = 40, 64


def train(seed: int, rank: int, world: int) -> dict[str, Any]:
    """Parameters after 40 steps in float64, each process with its part of the batches, and what it gave to means in the last one."""
    problem = digits_mlp(seed, widths=(96,))
    model: nn.Module = problem.model.double()
    group = torch.distributed.group.WORLD if world > 1 else None
    optimizer = Dion(model.parameters(), process_group=group)
    inputs, targets = problem.data
    for t in range(STEPS):
        rows = torch.randint(len(inputs), (BATCH,), generator=Key(seed).fold(t).generator()).tensor_split(world)[rank]
        optimizer.zero_grad()
        cross_entropy(model(inputs[rows].double()), targets[rows]).backward()
        optimizer.step()
    return {"parameters": [p.detach() for p in model.parameters()], "bytes": optimizer.reduced_bytes}


def of_a_process(rank: int, world: int, seeds: list[int]) -> list[dict[str, Any]]:
    """`train` for every seed."""
    return [train(seed, rank, world) for seed in seeds]


@claim("two and four processes that average no gradients are within 1e-8 of one, and send (m + n) r / m n of a matrix, to 5 %")
def processes(scale: Scale, seed: int) -> Evidence:
    seeds = list(range(seed, seed + 3))
    alone = of_a_process(0, 1, seeds)
    found = {world: run_gloo(of_a_process, world, world, seeds) for world in ((2, 4) if scale is Scale.QUICK else (2, 4, 8))}
    shapes = [p.shape for p in alone[0]["parameters"]]
    matrices = [shape for shape in shapes if len(shape) == 2]
    low = sum(sum(shape) * max(1, round(min(shape) / 4)) for shape in matrices)
    whole, rest = sum(shape.numel() for shape in matrices), sum(shape.numel() for shape in shapes if len(shape) == 1)
    sent = (found[2][0][0]["bytes"] / 8 - rest) / whole
    return Evidence([
        *(at_most(f"largest difference of a parameter, {world} processes",
                  [_distance(alone[i]["parameters"], [run[i]["parameters"] for run in runs]) for i in range(len(seeds))], 1e-8)
          for world, runs in found.items()),
        at_most("numbers sent for matrices / those of data parallelism", sent, low / whole + 0.05),
        recorded("(m + n) r / m n, of all matrices", low / whole),
    ], notes=[f"A network 64-96-10 on digits, {STEPS} steps of {BATCH}, rank a quarter, in float64. Biases are averaged as they are. "
              "The full scale adds 8 processes."])


def _distance(one: list[Tensor], others: list[list[Tensor]]) -> float:
    return max(float((a - b).abs().max()) for other in others for a, b in zip(one, other, strict=True))


class ForMatrices:
    """Dion for the matrices of blocks, Adam at a learning rate of its own for everything else."""

    @staticmethod
    def for_model(model: nn.Module, **hyper: Any) -> torch.optim.Optimizer:
        """Its parameter groups."""
        return Dion([group if group["role"] == "matrix" else {**group, "lr": 1e-2} for group in roles(model)], **hyper)

    def __call__(self, params: Any, **hyper: Any) -> torch.optim.Optimizer:
        """For a model without roles."""
        return Dion(params, **hyper)


@claim("on a small language model more rank is no worse, to 0.02 nats: 1 against 1/2 against 1/6; and rank 1/2 is within 0.05 of AdamW")
def language_model(scale: Scale, seed: int) -> Evidence:
    steps, seeds = (75, 2) if scale is Scale.QUICK else (3_000, 3)
    losses: dict[str, list[float]] = {"1": [], "1/2": [], "1/6": [], "AdamW": []}
    for s in range(seed, seed + seeds):
        problem: fl.Training = tiny_lm(s)
        for name, fraction in (("1", 1.0), ("1/2", 0.5), ("1/6", 1 / 6)):
            losses[name].append(best_loss(problem, ForMatrices(), (0.01, 0.03), steps, s, rank_fraction=fraction))
        losses["AdamW"].append(best_loss(problem, AdamW, (0.01, 0.03), steps, s))
    over = lambda a, b: [x - y for x, y in zip(losses[a], losses[b], strict=True)]
    return Evidence([
        at_most("loss at full rank less loss at rank 1/2", over("1", "1/2"), 0.02),
        at_most("loss at rank 1/2 less loss at rank 1/6", over("1/2", "1/6"), 0.02),
        at_most("loss at rank 1/2 less AdamW's", over("1/2", "AdamW"), 0.05),
        *(recorded(f"validation loss, {name if name == 'AdamW' else 'rank ' + name}", found) for name, found in losses.items()),
    ], notes=[f"Learning rates 0.01 and 0.03 on each side, {steps} steps, everything but the matrices of blocks by Adam at 0.01. Two "
              "seeds and half of the usual 150 steps at the quick scale, for its time; the full scale has three and 3,000 steps, not "
              "the paper's GPT of 120M."])
