"""Networks trained side by side: one run holds one for every setting and seed, at a fraction of the price of as many runs.

Every network has its own weights and its own optimizer's settings. A batch takes the same rows for all settings; each seed has its own
initial weights, and its rows in an order of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import fallline as fl
from fallline.claims._tuning import Factory
from fallline.core.keys import Key
from fallline.core.objective import Loss
from fallline.core.tree import Tree

Weights = list[list[Tree]]
"""Of the network with setting i on problem s: ``weights[i][s]``."""
Settings = Sequence[Mapping[str, Any]]
Schedule = Callable[[torch.optim.Optimizer], Any]


def at_rates(rates: Iterable[float]) -> Settings:
    """A setting for every learning rate."""
    return [{"lr": lr} for lr in rates]


class SideBySide(nn.Module):
    """Networks of one architecture as one, seed after seed within every setting: ``(batch, seeds, …) -> (batch, networks, …)``."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.architecture = (networks[0],)  # in a tuple, for its own weights are none of this module's
        self.names = [name for name, _ in networks[0].named_parameters()]
        self.weights = nn.ParameterList(p.detach().clone() for network in networks for p in network.parameters())

    def forward(self, x: Tensor) -> Tensor:
        weights, each = list(self.weights), len(self.names)
        stacked = {name: torch.stack(weights[i::each]) for i, name in enumerate(self.names)}
        return torch.vmap(lambda w, rows: functional_call(self.architecture[0], w, (rows,)), in_dims=(0, 1), out_dims=1)(
            stacked, _for_all(x, len(weights) // each))


def _for_all(columns: Tensor, networks: int) -> Tensor:
    """A column for every network from one for every seed."""
    return columns.repeat(1, networks // columns.shape[1], *(1 for _ in columns.shape[2:]))


def summed(loss_fn: Loss) -> Loss:
    """The sum of the networks' losses; one that is no longer finite is left out, so that the others' run goes on."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        losses = torch.vmap(loss_fn, in_dims=1)(outputs, _for_all(targets, outputs.shape[1]))
        return torch.where(losses.isfinite(), losses, 0.0).sum()

    return loss


def joined(problems: Sequence[fl.Training], settings: int, key: int) -> fl.Training:
    """Problems that differ in their seed as one, with ``settings`` networks for each."""
    orders = [torch.randperm(len(p.data[0]), generator=Key(key).fold("order", s).generator()) for s, p in enumerate(problems)]
    inputs, targets = (torch.stack([p.data[i][order] for p, order in zip(problems, orders, strict=True)], 1) for i in (0, 1))
    networks = SideBySide([p.model for _ in range(settings) for p in problems])
    return fl.Training(networks, summed(problems[0].loss_fn), (inputs, targets), batch_size=problems[0].batch_size)


def with_settings(optimizer: Factory, settings: Settings, schedule: Schedule | None = None, **hyper: Any) -> fl.Train:
    """The method that trains what `joined` made: every setting is a parameter group."""

    def make(parameters: list[Tensor], **hyper: Any) -> torch.optim.Optimizer:
        each = len(parameters) // len(settings)
        groups = [{"params": parameters[i * each:(i + 1) * each], **setting} for i, setting in enumerate(settings)]
        return optimizer(groups, nonfinite="ignore", **hyper)

    return fl.Train(make, schedule=schedule, **hyper)


def separated(x: Tree, problems: Sequence[fl.Training]) -> Weights:
    """The weights of each network from those of all."""
    names, tensors = list(problems[0].x0), list(x.values())
    networks = [dict(zip(names, tensors[i:i + len(names)], strict=True)) for i in range(0, len(tensors), len(names))]
    return [networks[i:i + len(problems)] for i in range(0, len(networks), len(problems))]


def trained_networks(problems: Sequence[fl.Training], optimizer: Factory, settings: Settings, steps: int, key: int, *,
                     schedule: Schedule | None = None, every: int = 1,
                     watch: Callable[[int, Weights], Any] | None = None, **hyper: Any) -> Weights:
    """The weights after ``steps``, of every setting (``{"lr": 1e-3}``, …) on every problem.

    ``watch(step, weights)`` is called after every so many steps, and ends the run by returning True. The driver is left out, which
    would end it for all where one network is no longer finite.
    """
    problem, method = joined(problems, len(settings), key), with_settings(optimizer, settings, schedule, **hyper)
    state = method.init(problem, Key(key))

    def weights() -> Weights:
        return separated(method.report(problem, state).resolve(), problems)

    for step in range(1, steps + 1):
        state = method.step(problem, state)
        if watch is not None and step % every == 0 and watch(step, weights()) is True:
            break
    return weights()


def training_losses(problems: Sequence[fl.Training], weights: Weights) -> Tensor:
    """The loss on all training data, ``(settings, seeds)``, infinite where a network diverged."""
    return _table([[float(p.value(w)) for p, w in zip(problems, row, strict=True)] for row in weights])


def validation(problems: Sequence[fl.Training], weights: Weights, metric: str = "loss") -> Tensor:
    """What the problems observe, ``(settings, seeds)``, infinite where a network diverged."""
    return _table([[p.observe(w)[metric] for p, w in zip(problems, row, strict=True)] for row in weights])


def _table(rows: list[list[float]]) -> Tensor:
    found = torch.tensor(rows, dtype=torch.float64)
    return torch.where(found.isfinite(), found, torch.inf)
