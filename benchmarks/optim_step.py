"""Time of one optimizer step, side by side with ``torch.optim.AdamW(fused=True)`` in one run.

    python benchmarks/optim_step.py [--repeats 15] [--threads 2] [--only adamw,lion]

Every row is the ratio of medians over alternating repeats: contestant and reference take a step in turn, so that a disturbance
hits both alike. Two models: four GPT blocks (35 M parameters in 50 tensors) and 600 tensors of 1,000.
"""

from __future__ import annotations

import argparse
import importlib
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from harness import record

import fallline.optim as optim
from fallline.optim.directions.quotient import Averaged, DebiasedSquares
from fallline.optim.engine.arithmetic import blend
from fallline.optim.engine.parts import DecoupledDecay, Direction
from fallline.optim.engine.state import State, like

Shapes = list[tuple[int, ...]]


def gpt(blocks: int = 4, width: int = 768, vocabulary: int = 8192, context: int = 512) -> Shapes:
    """Shapes of a small GPT: 12 tensors a block, two embeddings."""
    block: Shapes = [(3 * width, width), (3 * width,), (width, width), (width,), (4 * width, width), (4 * width,)]
    block += [(width, 4 * width), (width,), (width,), (width,), (width,), (width,)]
    return [(vocabulary, width), (context, width)] + block * blocks


MODELS: dict[str, Shapes] = {"35 M in 50 tensors": gpt(), "600 tensors of 1,000": [(1000,)] * 600}

REFERENCE = "torch AdamW fused"

CONTESTANTS: dict[str, Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]] = {
    "torch AdamW fused": lambda p: torch.optim.AdamW(p, fused=True),
    "torch AdamW foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "adamw": lambda p: optim.AdamW(p),
    "adamw compiled": lambda p: optim.AdamW(p, compile=True),
    "adamw compiled, ignore": lambda p: optim.AdamW(p, compile=True, nonfinite="ignore"),
    "adamw, ignore": lambda p: optim.AdamW(p, nonfinite="ignore"),
    "lion": lambda p: optim.Lion(p),
    "lion compiled": lambda p: optim.Lion(p, compile=True),
    "two averages": lambda p: TwoAverages(p),
    "two averages compiled": lambda p: TwoAverages(p, compile=True),
    "adam-8bit compiled": lambda p: optim.Adam8bit(p, compile=True),
    "pytorch-optimizer Lion": lambda p: peer("pytorch_optimizer", "Lion")(p),
    "pytorch-optimizer Lion foreach": lambda p: peer("pytorch_optimizer", "Lion")(p, foreach=True),
    "pytorch-optimizer AdEMAMix": lambda p: peer("pytorch_optimizer", "AdEMAMix")(p),
    "pytorch-optimizer AdEMAMix foreach": lambda p: peer("pytorch_optimizer", "AdEMAMix")(p, foreach=True),
    "HeavyBall AdamW": lambda p: peer("heavyball", "AdamW")(p),
    "HeavyBall AdEMAMix": lambda p: peer("heavyball", "AdEMAMix")(p),
    "bitsandbytes AdamW8bit": lambda p: peer("bitsandbytes.optim", "AdamW8bit")(p),
}


def peer(module: str, name: str) -> Callable[..., torch.optim.Optimizer]:
    """A class of another library; the extra ``peers`` installs them."""
    found: Callable[..., torch.optim.Optimizer] = getattr(importlib.import_module(module), name)
    return found


@dataclass(frozen=True)
class FastAndSlow(Direction):
    """u = (m̂ + α s) / (√v̂ + ε) with a fast average m and a slow one s: the words that AdEMAMix moves, without its schedules."""

    fast: Averaged = field(default_factory=Averaged)
    below: DebiasedSquares = field(default_factory=DebiasedSquares)

    def coefficients(self, group: Mapping[str, Any], t: int) -> dict[str, float]:
        own = {"debias1": self.fast.scale(group, t), "debias2": 1 / self.below.scale(group, t), "slow": 1e-4, "alpha": 5.0}
        return {**self.fast.coefficients(group, t), **self.below.coefficients(group, t), **own}

    def init(self, p: torch.Tensor) -> dict[str, State]:
        return {**self.fast.init(p), **self.below.init(p), "slow_avg": like(p)}

    def __call__(self, g: torch.Tensor, p: torch.Tensor, s: Any, c: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        m, new = self.fast(g, s, c)
        root, more = self.below(g, s, c)
        slow = blend(s["slow_avg"], g, c.slow)
        return (m * c.debias1 + slow * c.alpha) / root * c.debias2, {**new, **more, "slow_avg": slow}


class TwoAverages(optim.Optimizer):
    """AdEMAMix-like, for the time it takes."""

    def __init__(self, params: Any, **options: Any) -> None:
        defaults = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
        super().__init__(params, FastAndSlow(), defaults, move=DecoupledDecay(), **options)


def parameters(shapes: Shapes) -> list[torch.nn.Parameter]:
    """Random parameters with random gradients."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    return params


class Contestant:
    """An optimizer with parameters of its own."""

    def __init__(self, make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer], shapes: Shapes) -> None:
        self.params = parameters(shapes)
        self.gradients = [p.grad for p in self.params]
        self.optimizer = make(self.params)

    def seconds(self) -> float:
        """The time of one step; gradients are given back first, because some libraries take them away."""
        for p, g in zip(self.params, self.gradients, strict=True):
            p.grad = g
        start = time.perf_counter()
        self.optimizer.step()
        return time.perf_counter() - start


def race(shapes: Shapes, names: list[str], repeats: int) -> dict[str, dict[str, float]]:
    """Print and return one table: every contestant in turn with the reference, and with nobody else in the caches."""
    count = sum(math.prod(s) for s in shapes)
    rows = {}
    for name in names:
        reference, contestant = Contestant(CONTESTANTS[REFERENCE], shapes), Contestant(CONTESTANTS[name], shapes)
        first = contestant.seconds()
        reference.seconds()
        for _ in range(2):
            reference.seconds(), contestant.seconds()
        pairs = [(reference.seconds(), contestant.seconds()) for _ in range(repeats)]
        size = state_bytes(contestant.optimizer)  # some libraries keep theirs out of sight
        theirs, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        rows[name] = {"ratio to torch AdamW fused": ours / theirs, "milliseconds": 1e3 * ours, "first step in seconds": first,
                      "state bytes a parameter": size / count if size else None}
        print(f"  {name:36} {ours / theirs:6.2f} x   {1e3 * ours:8.2f} ms   first step {first:6.2f} s", flush=True)
    return rows


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all state tensors."""
    return sum(t.nbytes for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor) and t.ndim)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="comma-separated words; rows that contain none of them are left out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    words = [w for w in options.only.split(",") if w]
    names = [n for n in CONTESTANTS if n == "torch AdamW fused" or not words or any(w in n for w in words)]
    tables = {}
    for title, shapes in MODELS.items():
        print(f"{title} ({sum(p.numel() for p in parameters(shapes)):,} parameters)")
        # HeavyBall compiles for each tensor of a list: many minutes for 600.
        racing = [n for n in names if len(shapes) < 100 or not n.startswith("HeavyBall")]
        tables[title] = race(shapes, racing, options.repeats)
    if not words:
        record("optim_step", tables, threads=options.threads, repeats=options.repeats)


if __name__ == "__main__":
    main()
