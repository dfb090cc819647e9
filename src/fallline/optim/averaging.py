"""Polynomial averages of the iterates.

    x̄_t = (1 − a) x̄_{t−1} + a x_t,   a = (γ + 1) / (t + γ)

Shamir, Zhang: Stochastic Gradient Descent for Non-smooth Optimization, ICML 2013, arXiv 1212.1824.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fallline.optim.engine.parts import Average


def _newest(gamma: float, t: int) -> float:
    """a = (γ + 1) / (t + γ)."""
    return (gamma + 1) / (t + gamma)


def _check_gamma(gamma: float) -> None:
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be a finite number >= 0, got {gamma}; 8 is typical, 0 is the plain mean")


@dataclass(frozen=True)
class PolynomialDecay(Average):
    """x̄_t = (1 − a) x̄_{t−1} + a x_t with a = (γ + 1) / (t + γ), as an optimizer's answer; γ = 0 is the plain mean."""

    gamma: float = 8.0

    def __post_init__(self) -> None:
        _check_gamma(self.gamma)

    def weight(self, group: Mapping[str, Any], t: int) -> float:
        return _newest(self.gamma, t)


def _averaged(gamma: float, average: Tensor, newest: Tensor, taken: Tensor | int) -> Tensor:
    return torch.lerp(average, newest, _newest(gamma, int(taken) + 1))


class PolynomialAverage(AveragedModel):
    """x̄_t = (1 − a) x̄_{t−1} + a x_t with a = (γ + 1) / (t + γ), of a model's weights under any optimizer.

    A ``torch.optim.swa_utils.AveragedModel``: call ``average.update_parameters(model)`` after every step and evaluate ``average``.
    ``DoG`` keeps the same average by itself.

    Parameters
    ----------
    model : nn.Module
    gamma : float, default 8
        γ; 0 is the plain mean.

    Notes
    -----
    Buffers are the model's at each update: ``torch.optim.swa_utils.update_bn`` makes batch normalisation's statistics those of the
    average. Half-precision weights are averaged in half precision, where late iterates are rounded away. Shamir and Zhang,
    arXiv 1212.1824, as used by Ivgi et al., arXiv 2302.12022.
    """

    def __init__(self, model: nn.Module, gamma: float = 8.0) -> None:
        _check_gamma(gamma)
        super().__init__(model, avg_fn=functools.partial(_averaged, gamma))
