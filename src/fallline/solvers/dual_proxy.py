"""Networks that predict dual bounds of conic programs, trained without a solver.

    instance → network → raw y → y ∈ K* → best completion → L(y);        loss: −mean L(y)   (+ for a maximum)

Whatever the network says, L(y) bounds the optimum: training makes bounds tighter, never valid. There are no labels, for the loss is
the bound itself.

M. Tanneau, P. Van Hentenryck: Dual Lagrangian learning for conic optimization, NeurIPS 2024, arXiv 2402.03086.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fallline.core.keys import Key, as_key
from fallline.core.method import Fitted, Method, Train
from fallline.core.modules import seeded
from fallline.core.objective import Training
from fallline.core.result import Result
from fallline.solvers.conic_families import ConicFamily


@dataclass(frozen=True)
class BoundGaps:
    """How far bounds are from optima, |optimum| being 1: ``mean``, ``worst`` and ``least``, which no valid bound makes negative."""

    mean: float
    worst: float
    least: float


class DualProxy(nn.Module):
    """A network whose outputs are multipliers in the dual cone of a family's programs, and so dual bounds.

    Parameters
    ----------
    family : ConicFamily
    hidden : sequence of int, default (128, 128)
        Widths of the layers, with softplus between.
    key : Key or int, default 0
        Of the initial weights.

    Notes
    -----
    Instances enter the network as float32, each entry less its mean and over its deviation in the training data. Bounds are float64.
    The paper leaves open widths and normalisation.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, family: ConicFamily, hidden: Sequence[int] = (128, 128), key: Key | int = 0) -> None:
        super().__init__()
        if not isinstance(family, ConicFamily):
            raise TypeError(f"family must be a ConicFamily, got {family!r}")
        self.family = family
        widths = [family.inputs, *hidden, family.duals]

        def layers() -> nn.Module:
            made = [part for ends in pairwise(widths) for part in (nn.Linear(*ends), nn.Softplus())]
            return nn.Sequential(*made[:-1])

        self.network = seeded(layers, as_key(key))
        self.register_buffer("mean", torch.zeros(family.inputs, dtype=torch.float64))
        self.register_buffer("deviation", torch.ones(family.inputs, dtype=torch.float64))
        self.result: Result | None = None

    def forward(self, instances: Tensor) -> Tensor:
        """Return multipliers in the dual cone, (count, inputs) to (count, duals), in the instances' dtype."""
        scaled = (instances - self.mean) / self.deviation
        weight = next(self.network.parameters())
        return self.family.to_cone(self.network(scaled.to(weight.dtype)).to(instances.dtype))

    @torch.no_grad()
    def bound(self, instances: Tensor) -> Tensor:
        """Return valid bounds on the optimal values, (count, inputs) to (count,)."""
        return self.family.bound(self(instances), instances)

    def gaps(self, instances: Tensor, optima: Tensor | None = None) -> BoundGaps:
        """Return how tight the bounds are; ``optima`` (count,) come from the family's exact method if not given."""
        gaps = self.family.gap(self.bound(instances), self.family.optimum(instances) if optima is None else optima)
        return BoundGaps(float(gaps.mean()), float(gaps.max()), float(gaps.min()))

    def extra_repr(self) -> str:
        return f"family={self.family!r}"


def dual_lagrangian_learning(family: ConicFamily, hidden: Sequence[int] = (128, 128), *, method: Method | None = None,
                             batch_size: int = 64, key: Key | int = 0) -> Fitted:
    """Return what trains a ``DualProxy``: ``.fit(instances, budget=...)``, with the options of ``solve``.

    Parameters
    ----------
    family : ConicFamily
    hidden, key
        Of the network.
    method : Method, default ``Train(torch.optim.Adam, lr=1e-3)``
    batch_size : int, default 64

    Returns
    -------
    Fitted
        ``fit(instances)`` gives the proxy, with the run as its ``result``; ``fit(instances, validation)`` observes held-out instances.

    Examples
    --------
    >>> family = MultiKnapsack(50, 5)
    >>> proxy = dual_lagrangian_learning(family).fit(family.sample(2_000, key=0), budget=fl.Budget(steps=1_000))
    >>> proxy.bound(family.sample(1, key=1))
    """
    sign = -1.0 if family.sense == "min" else 1.0

    def loss(y: Tensor, instances: Tensor) -> Tensor:
        return sign * family.bound(y, instances).mean()

    def problem(instances: Tensor, validation: Tensor | None = None) -> Training:
        proxy = DualProxy(family, hidden, key).to(instances.device)
        proxy.mean.copy_(instances.mean(0))
        proxy.deviation.copy_(instances.std(0, correction=0).clamp(min=1e-12))
        held_out = None if validation is None else (validation, validation)
        return Training(proxy, loss, (instances, instances), validation=held_out, batch_size=min(batch_size, len(instances)),
                        name=repr(family))

    def wrap(result: Any) -> DualProxy:
        proxy = DualProxy(family, hidden, key).to(result.x["mean"].device)
        proxy.load_state_dict(result.x)
        proxy.result = result
        return proxy

    return Fitted(problem, Train(torch.optim.Adam, lr=1e-3) if method is None else method, wrap)
