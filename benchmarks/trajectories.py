"""Do other libraries take the same steps?

    python benchmarks/trajectories.py

trains a small network by our rule and by a peer's of the same name, in float64, from the same weights, on the same batches, at settings
that mean the same, and writes ``docs/peers.md``: how far the weights are apart after 1, 10 and 100 steps, relative to how far ours have
come, and why.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from harness import Missing, peer
from tables import grid
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fallline import optim
from fallline.core.keys import Key

PAGE = Path(__file__).parents[1] / "docs" / "peers.md"
LOOKED_AT = (1, 10, 100)
SAME = 1e-9
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Pair:
    """A rule, the peer's of the same name, and what tells them apart."""

    rule: str
    ours: Make
    peer: str
    theirs: Make
    why: str = ""
    matrices: bool = False
    """Whether only matrices are trained."""


def pytorch_optimizer(name: str, **settings: Any) -> Make:
    return lambda p: peer("pytorch_optimizer", name)(p, **settings)


MARS: dict[str, Any] = {"lr": 3e-3, "gamma": 0.025, "lr_1d": 3e-3}
FIRST_STEP = ("takes 0 for the gradient before the first one, as the authors' code does: the first gradient is 1 + γ β₁ / (1 − β₁) "
              "times as long before it is clipped")
PAIRS = [
    Pair("Adam", lambda p: optim.Adam(p), "torch `Adam`", lambda p: torch.optim.Adam(p)),
    Pair("AdamW", lambda p: optim.AdamW(p), "torch `AdamW`", lambda p: torch.optim.AdamW(p)),
    Pair("Nadam", lambda p: optim.Nadam(p), "torch `NAdam`", lambda p: torch.optim.NAdam(p),
         "lets β₁ grow along a schedule, as a later version of the method; ours is the survey's"),
    Pair("RMSprop", lambda p: optim.RMSprop(p), "torch `RMSprop`", lambda p: torch.optim.RMSprop(p, lr=1e-3, alpha=0.9, eps=1e-8),
         "has ε outside the root; the survey has it inside"),
    Pair("Lion", lambda p: optim.Lion(p, weight_decay=0.1), "pytorch-optimizer `Lion`", pytorch_optimizer("Lion", weight_decay=0.1)),
    Pair("AdaBelief", lambda p: optim.AdaBelief(p), "pytorch-optimizer `AdaBelief`", pytorch_optimizer("AdaBelief")),
    Pair("AdaBelief, rectified", lambda p: optim.AdaBelief(p, rectify=True), "pytorch-optimizer `AdaBelief`",
         pytorch_optimizer("AdaBelief", rectify=True),
         "starts to rectify at ρ_t ≥ 5, one step after RAdam's ρ_t > 4 would"),
    Pair("diffGrad", lambda p: optim.DiffGrad(p), "pytorch-optimizer `DiffGrad`", pytorch_optimizer("DiffGrad"),
         "adds ε before it debiases the root, as the authors' code does; the paper's formula adds it after"),
    Pair("EXAdam", lambda p: optim.EXAdam(p), "pytorch-optimizer `EXAdam`", pytorch_optimizer("EXAdam"),
         "leaves out the logarithm, as the authors' later code does; the paper has it"),
    Pair("EXAdam, `growth=False`", lambda p: optim.EXAdam(p, growth=False), "pytorch-optimizer `EXAdam`", pytorch_optimizer("EXAdam")),
    Pair("AdEMAMix", lambda p: optim.AdEMAMix(p, warmup_steps=200, betas=(0.9, 0.999, 0.99)), "pytorch-optimizer `AdEMAMix`",
         pytorch_optimizer("AdEMAMix", alpha=8.0, t_alpha_beta3=200, betas=(0.9, 0.999, 0.99))),
    Pair("AdEMAMix", lambda p: optim.AdEMAMix(p, warmup_steps=200, betas=(0.9, 0.999, 0.99)), "HeavyBall `AdEMAMix`",
         lambda p: peer("heavyball", "AdEMAMix")(p, alpha=8.0, alpha_warmup=200, beta3_warmup=200, betas=(0.9, 0.999, 0.99)),
         "takes max(√v̂, ε) in place of √v̂ + ε, and reckons in float32"),
    Pair("Gravity, α = 0", lambda p: optim.Gravity(p, alpha=0.0), "pytorch-optimizer `Gravity`",
         pytorch_optimizer("Gravity", lr=0.1, alpha=0.0),
         "counts steps from 1, as the authors' PyTorch code does; their Keras code, which made the paper's figures, counts from 0"),
    Pair("MARS", lambda p: optim.MARS(p), "pytorch-optimizer `MARS`", pytorch_optimizer("MARS", **MARS), FIRST_STEP),
    Pair("MARS, Lion", lambda p: optim.MARS(p, variant="lion"), "pytorch-optimizer `MARS`",
         pytorch_optimizer("MARS", mars_type="lion", **MARS), FIRST_STEP),
    Pair("MARS, Shampoo", lambda p: optim.MARS(p, variant="shampoo"), "pytorch-optimizer `MARS`",
         pytorch_optimizer("MARS", mars_type="shampoo", **MARS), FIRST_STEP + "; its Newton-Schulz iteration runs in bfloat16",
         matrices=True),
    Pair("SGD-SaI", lambda p: optim.SGDSaI(p), "pytorch-optimizer `SGDSaI`", pytorch_optimizer("SGDSaI"),
         "does not divide the scales by the largest, as the authors' code does not; takes ‖g‖ alone for vectors; starts the average "
         "at 0 where the authors start it at the first gradient"),
    Pair("Riemannian Adam", lambda p: optim.RiemannianAdam(p), "geoopt `RiemannianAdam`, amsgrad",
         lambda p: peer("geoopt.optim", "RiemannianAdam")(p, eps=1e-10, amsgrad=True),
         "debiases m and v with amsgrad as well; the paper's RAMSGrad debiases neither"),
    Pair("Riemannian Adam, `amsgrad=False`", lambda p: optim.RiemannianAdam(p, amsgrad=False), "geoopt `RiemannianAdam`",
         lambda p: peer("geoopt.optim", "RiemannianAdam")(p, eps=1e-10, amsgrad=False)),
]

HEAD = """# Peers, step by step

The same rule under the same name is not always the same in two libraries. Here a network of 64-64-64-10 units is trained by our rule
and by a peer's, in float64, from the same weights, on the same batches, at settings that mean the same. The columns are the distance
between the two after so many steps, relative to the distance that ours have come: below 1e-9 the rules are the same, at 1 the weights
have nothing in common. Where the two differ, the last column says what the peer does that the paper does not, or the other way round;
ours are checked in the tests against references written from the papers' formulas.

`python benchmarks/trajectories.py` makes this page."""

FOOT = """## What the authors' own code does

Read beside the papers, where it is public:

- **AdEMAMix**: the same; warm-ups are linear in the half-life of β₃ there, which is our closed formula.
- **AdaBelief**: rectification is on by default in the authors' package, and off in the paper's algorithm and here.
- **diffGrad**: in the first version, behind the paper's figures by its own comment, the gradient before is a reference to the gradient
  now, which is overwritten in place: the friction is then ½ throughout, and the rule is Adam at half the learning rate. The second
  version copies it, as the paper has it and as we do.
- **EXAdam**: the latest version has no logarithm; the paper's abstract has one.
- **Gravity**: the Keras version counts steps from 0 and the PyTorch version from 1.
- **MARS**: the gradient before the first one is 0 there, and the first gradient itself here; after the first step all is the same.
- **SGD-SaI**: the scales are not divided by the largest there: a learning rate of theirs is one of ours divided by the largest scale,
  which is about the root of the number of entries of the largest tensor. Tensors without spread are scaled by ‖g‖ / ε there.
- **XGrad**: the same for Adam, AdamW and momentum."""


def network(matrices: bool) -> nn.Module:
    """The digits network, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        linear = [nn.Linear(64, width, bias=not matrices) for width in (64, 64, 10)]
    model = nn.Sequential(linear[0], nn.Tanh(), linear[1], nn.Tanh(), linear[2])
    return model.double()


def trajectory(make: Make, matrices: bool) -> dict[int, Tensor]:
    """All weights, in one vector, at the start and after the steps that are looked at."""
    model = network(matrices)
    params = list(model.parameters())
    optimizer = make(params)
    seen = {0: torch.cat([p.detach().flatten() for p in params])}
    for t in range(1, max(LOOKED_AT) + 1):
        generator = Key(0).fold(t).generator()
        x = torch.randn(32, 64, dtype=torch.float64, generator=generator)
        y = (x[:, :10] + 0.5 * torch.randn(32, 10, dtype=torch.float64, generator=generator)).argmax(1)
        optimizer.zero_grad()
        cross_entropy(3 * model(x), y).backward()
        optimizer.step()
        if t in LOOKED_AT:
            seen[t] = torch.cat([p.detach().flatten() for p in params])
    return seen


def apart(pair: Pair) -> list[float]:
    """The relative distances."""
    ours, theirs = trajectory(pair.ours, pair.matrices), trajectory(pair.theirs, pair.matrices)
    return [float((ours[t] - theirs[t]).norm() / (ours[t] - ours[0]).norm()) for t in LOOKED_AT]


def shown(x: float) -> str:
    """Two digits; below 1e-9 it is rounding."""
    return "< 1e-9" if x < SAME else "∞" if not math.isfinite(x) else f"{x:.2g}"


def page() -> str:
    """The page."""
    rows = []
    for pair in PAIRS:
        try:
            found = apart(pair)
        except Missing as missing:
            rows.append([pair.rule, pair.peer, *["—"] * len(LOOKED_AT), str(missing)])
            continue
        differs = max(found) >= SAME
        verdict = f"the peer {pair.why}" if differs and pair.why else "differs, and we do not know why" if differs else "the same"
        rows.append([pair.rule, pair.peer, *map(shown, found), verdict])
        print(rows[-1], flush=True)
    head = ["rule", "peer", *(f"{t} step{'s' * (t > 1)}" for t in LOOKED_AT), ""]
    table = grid(head, rows, rest="---")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "pytorch_optimizer", "heavyball", "geoopt"))
    return f"{HEAD}\n\n{table}\n\nWith {libraries}.\n\n{FOOT}\n"


if __name__ == "__main__":
    PAGE.write_text(page())
