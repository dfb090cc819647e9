"""Time and memory of one optimizer step

    python benchmarks/optim_step.py [--repeats 15] [--threads 2] [--only adamw,lion] [--quick]

Every contestant has parameters of its own with random gradients, which it gets back before each step (some libraries take them
away), and takes steps in turn with ``torch.optim.AdamW(fused=True)``, with nobody else in the caches. Two models: four GPT blocks
(35 M parameters in 50 tensors) and 600 tensors of 1,000.

A fused AdamW reads four and writes three words a parameter, which is the limit of the memory; a rule that moves other words has a
goal in proportion, with 5 % on top. Other goals are what the peers need in the same run. The peak is what tensors hold at most over
two steps beyond parameters and gradients: the state, and what a step needs for a while.

The first step is taken in a fresh process: with the compiler's caches empty, in the next process with the caches that the first one
left, and then on a second, smaller model in that process; medians of three such pairs of processes, because nothing races them.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable

import torch
from figures import Goal, Table
from harness import Contestant, Operation, Options, fresh, peer, race, run

import fallline.optim as optim

Shapes = list[tuple[int, ...]]


def gpt(blocks: int = 4, width: int = 768, vocabulary: int = 8192, context: int = 512) -> Shapes:
    """Shapes of a small GPT: 12 tensors a block, two embeddings."""
    block: Shapes = [(3 * width, width), (3 * width,), (width, width), (width,), (4 * width, width), (4 * width,)]
    block += [(width, 4 * width), (width,), (width,), (width,), (width,), (width,)]
    return [(vocabulary, width), (context, width)] + block * blocks


MODELS: dict[str, Shapes] = {"35 M in 50 tensors": gpt(), "600 tensors of 1,000": [(1000,)] * 600}
SMALL = gpt(1, 256, 1024, 128)
MANY = 100
"""HeavyBall compiles for each tensor of a list: many minutes for that many."""

REFERENCE = "torch AdamW fused"
PROCESS_PAIRS = 3

FIRST, CACHED, NEXT = "first step, s", "first step with caches, s", "first step of the next model, s"

CONTESTANTS: dict[str, Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]] = {
    "torch AdamW fused": lambda p: torch.optim.AdamW(p, fused=True),
    "torch AdamW foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "adamw": lambda p: optim.AdamW(p),
    "adamw compiled": lambda p: optim.AdamW(p, compile=True),
    "adamw compiled, ignore": lambda p: optim.AdamW(p, compile=True, nonfinite="ignore"),
    "adamw, ignore": lambda p: optim.AdamW(p, nonfinite="ignore"),
    "lion": lambda p: optim.Lion(p),
    "lion compiled": lambda p: optim.Lion(p, compile=True),
    "ademamix": lambda p: optim.AdEMAMix(p),
    "ademamix compiled": lambda p: optim.AdEMAMix(p, compile=True),
    "adam-8bit compiled": lambda p: optim.Adam8bit(p, compile=True),
    "pytorch-optimizer Lion": lambda p: peer("pytorch_optimizer", "Lion")(p),
    "pytorch-optimizer Lion foreach": lambda p: peer("pytorch_optimizer", "Lion")(p, foreach=True),
    "pytorch-optimizer AdEMAMix": lambda p: peer("pytorch_optimizer", "AdEMAMix")(p),
    "pytorch-optimizer AdEMAMix foreach": lambda p: peer("pytorch_optimizer", "AdEMAMix")(p, foreach=True),
    "HeavyBall AdamW": lambda p: peer("heavyball", "AdamW")(p),
    "HeavyBall AdEMAMix": lambda p: peer("heavyball", "AdEMAMix")(p),
    "bitsandbytes AdamW8bit": lambda p: peer("bitsandbytes.optim", "AdamW8bit")(p),
}


PEERS = ("pytorch-optimizer", "heavyball", "bitsandbytes")

GOALS: dict[str, list[Goal]] = {
    "35 M in 50 tensors": [
        Goal("adamw compiled", "ratio", 1.05, "the same seven words as the fused kernel"),
        Goal("lion compiled", "ratio", 0.75, "five words of seven"),
        Goal("ademamix compiled", "ratio", 1.35, "nine words of seven"),
        Goal("adam-8bit compiled", "ratio", 1.0, "its paper reports faster steps than 32 bits; it moves four words of seven"),
        Goal("adam-8bit compiled", "state bytes a parameter", 2.1, "two bytes, scales, and what is too small to quantise"),
        Goal("adamw", "ratio", "torch AdamW foreach", "the peer without a compiler"),
        Goal("lion", "ratio", "pytorch-optimizer Lion foreach", "the peer without a compiler"),
        Goal("ademamix", "ratio", "pytorch-optimizer AdEMAMix foreach", "the peer without a compiler"),
        Goal("adamw compiled", "ratio", "HeavyBall AdamW", "the peer that compiles"),
        Goal("ademamix compiled", "ratio", "HeavyBall AdEMAMix", "the peer that compiles"),
        Goal("adam-8bit compiled", "ratio", "bitsandbytes AdamW8bit", "the peer with 8 bits"),
        Goal("adamw compiled", FIRST, 7.0, "compilation must not take longer than the experiment"),
        Goal("adamw compiled", NEXT, 0.05, "a rule is compiled once for all models"),
    ],
    "600 tensors of 1,000": [
        Goal("adamw compiled", "ratio", 0.25, "many small tensors are packed into one"),
        Goal("adamw", "ratio", "torch AdamW foreach", "the peer without a compiler"),
        Goal("lion", "ratio", "pytorch-optimizer Lion foreach", "the peer without a compiler"),
        Goal("ademamix", "ratio", "pytorch-optimizer AdEMAMix foreach", "the peer without a compiler"),
    ],
}


class Stepping:
    """An optimizer with parameters of its own."""

    def __init__(self, make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer], shapes: Shapes) -> None:
        generator = torch.Generator().manual_seed(0)
        self.params = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
        self.gradients = [torch.randn(p.shape, generator=generator) for p in self.params]
        self.optimizer = make(self.params)

    def give_gradients(self) -> None:
        """Put the gradients where the optimizer looks for them."""
        for p, g in zip(self.params, self.gradients, strict=True):
            p.grad = g

    @property
    def operation(self) -> Operation:
        """One step."""
        return Operation(self.optimizer.step, self.give_gradients)


def state_bytes_of(make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer], shapes: Shapes) -> float | None:
    """Bytes a parameter of all state tensors after a step; None for libraries that keep theirs out of sight."""
    stepping = Stepping(make, shapes)
    stepping.operation.seconds()
    entries = [t for state in stepping.optimizer.state.values() for t in state.values()]
    size = sum(t.nbytes for t in entries if isinstance(t, torch.Tensor) and t.ndim)
    return size / sum(math.prod(s) for s in shapes) or None


def first_steps(name: str, shapes: Shapes, threads: int) -> tuple[float, float]:
    """Seconds of the first step in this process, and of the first step of the next model."""
    torch.set_num_threads(threads)
    make = CONTESTANTS[name]
    return Stepping(make, shapes).operation.seconds(), Stepping(make, SMALL).operation.seconds()


def figures(name: str, shapes: Shapes, options: Options) -> dict[str, float | None]:
    """The further figures of a row; the first step on the large model only."""
    found = {"state bytes a parameter": state_bytes_of(CONTESTANTS[name], shapes)}
    if options.quick or len(shapes) >= MANY:
        return found
    cold, cached = zip(*(process_pair(name, shapes, options.threads) for _ in range(PROCESS_PAIRS)), strict=True)
    middle = lambda steps, index: statistics.median(step[index] for step in steps)
    return found | {FIRST: middle(cold, 0), CACHED: middle(cached, 0), NEXT: middle(cold + cached, 1)}


def process_pair(name: str, shapes: Shapes, threads: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """`first_steps` in a process with empty caches, and in the next one with what that left."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {"TORCHINDUCTOR_CACHE_DIR": folder}
        return (
            fresh(first_steps, name, shapes, threads, environment=caches),
            fresh(first_steps, name, shapes, threads, environment=caches),
        )


def contestant(name: str, shapes: Shapes) -> Contestant:
    """An optimizer on a model."""
    return Contestant(name, lambda: Stepping(CONTESTANTS[name], shapes).operation)


def table(title: str, shapes: Shapes, options: Options) -> list[Table]:
    """All contestants on one model."""
    names = [name for name in CONTESTANTS if name != REFERENCE and (len(shapes) < MANY or not name.startswith("HeavyBall"))]
    further = lambda name, pairs: figures(name, shapes, options)
    contestants = [contestant(name, shapes) for name in names]
    return race(title, contestant(REFERENCE, shapes), contestants, options, memory=True, further=further, goals=GOALS[title])


def tables(options: Options) -> list[Table]:
    """A table a model."""
    models = {title: SMALL for title in MODELS} if options.quick else MODELS
    return [found for title, shapes in models.items() for found in table(title, shapes, options)]


if __name__ == "__main__":
    run(__file__, __doc__, tables, PEERS)
