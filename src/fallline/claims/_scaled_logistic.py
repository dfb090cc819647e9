"""Logistic regression on separable data whose columns are scaled badly: the claims of preconditioned Polyak steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from fallline.claims._logistic import gradients, losses
from fallline.claims._tuning import Factory, side_by_side
from fallline.core.keys import Key

ROWS, SIZE, BATCH, STEPS, RATES = 400, 30, 32, 1_500, 6


@dataclass(frozen=True)
class Data:
    """Features ``(rows, size)``, labels ±1, and which rows every step looks at, ``(steps, batch)``."""

    features: Tensor
    labels: Tensor
    batches: Tensor

    def loss(self, w: Tensor) -> float:
        """The mean loss over all rows."""
        return float(softplus(-self.labels * (self.features @ w)).mean())


def separable(seed: int, spread: float, steps: int = STEPS, flipped: float = 0.0) -> Data:
    """Rows of standard normal features with the labels of a linear rule, a share of them ``flipped``.

    Columns are multiplied by e^U(−spread, spread). The same seed gives the same rows, rule and batches whatever the spread.
    """
    generator = Key(seed).fold("separable").generator()
    rows = torch.randn(ROWS, SIZE, dtype=torch.float64, generator=generator)
    labels = (rows @ torch.randn(SIZE, dtype=torch.float64, generator=generator)).sign()
    scales = (2 * torch.rand(SIZE, dtype=torch.float64, generator=generator) - 1).mul(spread).exp()
    batches = torch.randint(ROWS, (steps, BATCH), generator=generator)
    turned = torch.rand(ROWS, generator=generator) < flipped
    return Data(rows * scales, torch.where(turned, -labels, labels), batches)


class Batch:
    """The mean loss on some rows, as a closure that knows its gradient and curvature in closed form."""

    def __init__(self, w: nn.Parameter, features: Tensor, labels: Tensor) -> None:
        self.variables, self.w, self.features, self.labels = {"w": w}, w, features, labels

    def __call__(self) -> Tensor:
        margins = self.labels * (self.features @ self.w.detach())
        self.w.grad = -((self.labels * torch.sigmoid(-margins)) @ self.features) / len(margins)
        return softplus(-margins).mean()

    def hvp(self, x: None, v: dict[str, Tensor]) -> dict[str, Tensor]:
        """The Hessian times ``v``."""
        p = torch.sigmoid(self.features @ self.w.detach())
        return {"w": (p * (1 - p) * (self.features @ v["w"])) @ self.features / len(p)}


def descended(data: Data, make: Factory, watch: Callable[[float], None] | None = None) -> float:
    """The loss over all rows after the steps, from 0; ``watch`` is told it after every step."""
    w = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = make([w])
    features, labels = data.features[data.batches], data.labels[data.batches]
    for rows, own in zip(features, labels, strict=True):
        optimizer.step(Batch(w, rows, own))  # type: ignore[arg-type]
        if watch is not None:
            watch(data.loss(w.detach()))
    return data.loss(w.detach())


def tuned(datas: Sequence[Data], make: Factory, rates: Sequence[float]) -> list[float]:
    """The least loss over the rates for each of the data, all run side by side with their own batches."""
    features, labels = torch.stack([d.features for d in datas], 1), torch.stack([d.labels for d in datas], 1)
    batches = torch.stack([d.batches for d in datas], 2)
    points = [nn.Parameter(torch.zeros(len(datas), SIZE, dtype=torch.float64)) for _ in rates]
    optimizer = side_by_side(make, rates)(points)
    seeds = torch.arange(len(datas))
    for rows in batches:
        found = gradients(torch.stack([p.detach() for p in points]), features[rows, seeds], labels[rows, seeds])
        for p, g in zip(points, found, strict=True):
            p.grad = g
        optimizer.step()
    ends: list[float] = losses(torch.stack([p.detach() for p in points]), features, labels).amin(0).tolist()
    return ends
