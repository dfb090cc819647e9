"""Time of one step of every rule that a peer has as well

    python benchmarks/optim_rules.py [--repeats 15] [--threads 2] [--quick]

As in ``optim_step.py``, which also measures first steps: every contestant takes turns with ``torch.optim.AdamW(fused=True)`` on four
GPT blocks (35 M parameters in 50 tensors) and on 600 tensors of 1,000. A fused AdamW moves seven words a parameter; a compiled rule's
goal is 1.15 times its own words over seven, and the best of its peers; an eager rule's goal is the best of the peers without a
compiler. A rule that needs a sum or a maximum over each tensor reads what goes into it once more, which counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from figures import Goal, Table
from harness import Contestant, Options, peer, race, run
from optim_step import MANY, MODELS, REFERENCE, SMALL, Shapes, Stepping, state_bytes_of

import fallline.optim as optim

PEERS = ("pytorch-optimizer", "heavyball")
Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Rule:
    """A rule of ours, the words a parameter that its step moves, and the peers' of the same name."""

    make: Callable[..., torch.optim.Optimizer]
    words: int
    peers: tuple[tuple[str, str], ...] = ()


RULES: dict[str, Rule] = {
    "adabelief": Rule(optim.AdaBelief, 7, (("pytorch_optimizer", "AdaBelief"),)),
    "adamomentum": Rule(optim.AdaMomentum, 7),
    "diffgrad": Rule(optim.DiffGrad, 9, (("pytorch_optimizer", "DiffGrad"),)),
    "exadam": Rule(optim.EXAdam, 7, (("pytorch_optimizer", "EXAdam"),)),
    "ademamix": Rule(optim.AdEMAMix, 9, (("pytorch_optimizer", "AdEMAMix"), ("heavyball", "AdEMAMix"))),
    "adam-gs": Rule(optim.AdamGS, 7),
    "nadam": Rule(optim.Nadam, 7, (("torch.optim", "NAdam"), ("heavyball", "NAdam"))),
    "gravity": Rule(optim.Gravity, 6, (("pytorch_optimizer", "Gravity"),)),
    "sgd-sai": Rule(optim.SGDSaI, 5, (("pytorch_optimizer", "SGDSaI"),)),
    "mars": Rule(optim.MARS, 11, (("pytorch_optimizer", "MARS"),)),
    "lion": Rule(optim.Lion, 5, (("pytorch_optimizer", "Lion"),)),
    "lion-k l2": Rule(lambda p, **options: optim.LionK(p, kappa="l2", **options), 7),
    "xgrad over adam": Rule(optim.XGrad, 8),
}
COMPILES = {"heavyball"}
NAMES = {"pytorch_optimizer": "pytorch-optimizer", "heavyball": "HeavyBall", "torch.optim": "torch"}


def of_peer(module: str, name: str, **options: Any) -> Make:
    """A peer's optimizer at its defaults."""
    return lambda p: peer(module, name)(p, **options)


def contestants(many: bool) -> dict[str, Make]:
    """Ours, eager and compiled, and the peers', by name; a peer with two forms takes part with both."""
    found: dict[str, Make] = {}
    for name, rule in RULES.items():
        found[name] = rule.make
        found[f"{name} compiled"] = lambda p, rule=rule: rule.make(p, compile=True)
        for module, theirs in rule.peers:
            if module in COMPILES and many:
                continue  # it compiles for each tensor of a list: many minutes for that many
            found[f"{NAMES[module]} {theirs}"] = of_peer(module, theirs)
            if module not in COMPILES:
                found[f"{NAMES[module]} {theirs} foreach"] = of_peer(module, theirs, foreach=True)
    return found


def goals(many: bool) -> list[Goal]:
    """What the rows shall be."""
    found = []
    for name, rule in RULES.items():
        if not many:
            found.append(Goal(f"{name} compiled", "ratio", round(1.15 * rule.words / 7, 2), f"{rule.words} words of seven, and 15 %"))
        for module, theirs in rule.peers:
            row = f"{NAMES[module]} {theirs}"
            if module in COMPILES:
                found += [] if many else [Goal(f"{name} compiled", "ratio", row, "the peer that compiles")]
            else:
                found.append(Goal(name, "ratio", f"{row} foreach", "the peer without a compiler"))
    return found


def table(title: str, shapes: Shapes, options: Options) -> list[Table]:
    """All contestants on one model."""
    many = len(shapes) >= MANY
    makes = contestants(many)
    entrants = [Contestant(name, lambda make=make: Stepping(make, shapes).operation) for name, make in makes.items()]
    reference = Contestant(REFERENCE, lambda: Stepping(lambda p: torch.optim.AdamW(p, fused=True), shapes).operation)
    further = lambda name, pairs: {"state bytes a parameter": state_bytes_of(makes[name], shapes)} if name in makes else {}
    return race(title, reference, entrants, options, memory=False, further=further, goals=goals(many))


def tables(options: Options) -> list[Table]:
    """A table a model."""
    models = {title: SMALL for title in MODELS} if options.quick else MODELS
    return [found for title, shapes in models.items() for found in table(title, shapes, options)]


if __name__ == "__main__":
    run(__file__, __doc__, tables, PEERS)
