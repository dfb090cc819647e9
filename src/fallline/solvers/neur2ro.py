"""Neur2RO: two-stage robust programs with a network Φ(x, ξ) ≈ min_y (q + Qξ)ᵀy in place of the second stage.

    main        min_{x, y} cᵀx + (q + Qξ_k)ᵀy,   k = argmax_k Φ(x, ξ_k),   y feasible with x         ("argmax")
             or min_x cᵀx + max_k Φ(x, ξ_k)                                                          ("network")
    adversary   max_{ξ ∈ U} Φ(x, ξ), which joins the scenarios ξ_k
    stop        when it is among them, or its Φ no more than the largest that the main program knew

Both are mixed-integer linear programs, as Φ has ReLUs alone.

J. Dumouchelle, E. Julien, J. Kurtz, E. B. Khalil: Neur2RO: neural two-stage robust optimization, ICLR 2024, arXiv 2310.04345.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fallline.core.budget import Budget
from fallline.core.checks import check_count
from fallline.core.driver import solve
from fallline.core.keys import Key, as_key
from fallline.core.method import Method, Train
from fallline.core.modules import seeded
from fallline.core.objective import Training
from fallline.core.result import Result
from fallline.solvers.relu_milp import Affine, Array, Program
from fallline.solvers.set_network import SetNetwork
from fallline.solvers.two_stage import RobustSolution, TwoStageFamily, TwoStageInstance

SAME = 1e-3
"""Distance in ℓ1 below which a scenario is one that is there."""


@dataclass(frozen=True)
class SecondStages:
    """What a network learns from: ``rows`` (N, n, 2 + k) of items with zeros for none, scaled ``values`` (N,); and the scales.

    ``feature_range`` (2, k) holds the least and the largest of every feature, ``value_range`` those of the values by number of items.
    """

    rows: Tensor
    values: Tensor
    feature_range: Array
    value_range: Mapping[int, tuple[float, float]]


class Neur2RO:
    """Learns the second stage of a family's programs, and solves them with the network in its place.

    ``Neur2RO(family).collect(500, 10, 50).train().solve(instance)``.

    Parameters
    ----------
    family : TwoStageFamily
    embed, post, value
        Widths of the ``SetNetwork``.
    key : Key or int, default 0
        Of samples, weights and batches.

    Notes
    -----
    Features and values are scaled to (0, 1), values for each number of items apart. ``predict`` and the main program "network" undo
    that, and take instances of a number of items that was collected; "argmax" takes any. An embedding is affine in a binary x_i and
    gets no binaries in the main program; the authors' code encodes its ReLUs.
    """

    def __init__(self, family: TwoStageFamily, *, embed: tuple[int, int] = (32, 16), post: tuple[int, int] = (64, 8), value: int = 8,
                 key: Key | int = 0) -> None:
        if not isinstance(family, TwoStageFamily):
            raise TypeError(f"family must be a TwoStageFamily, got {family!r}")
        self.family, self.embed, self.post, self.value, self.key = family, embed, post, value, as_key(key)
        self.data: SecondStages | None = None
        self.network: SetNetwork | None = None
        self.result: Result | None = None

    def collect(self, n_inst: int = 500, n_x: int = 10, n_xi: int = 50) -> Neur2RO:
        """Solve second stages: of ``n_inst`` random instances, for ``n_x`` first stages each, under ``n_xi`` scenarios each."""
        for name, count in (("n_inst", n_inst), ("n_x", n_x), ("n_xi", n_xi)):
            check_count(name, count, "there is nothing to learn from otherwise")
        instances = [self.family.sample(self.key.fold("instance", i)) for i in range(n_inst)]
        pairs = [self.family.sample_pairs(each, n_x, n_xi, self.key.fold("pairs", i)) for i, each in enumerate(instances)]
        costs = [each.recourse_values(*pair) for each, pair in zip(instances, pairs, strict=True)]
        sizes = np.array([len(each.cost) for each in instances])
        features = np.concatenate([each.features for each in instances])
        scale = np.stack([features.min(0), features.max(0)])
        per_size = {int(n): [cost for cost, size in zip(costs, sizes, strict=True) if size == n] for n in np.unique(sizes)}
        ranges = {n: (float(min(map(np.min, found))), float(max(map(np.max, found)))) for n, found in per_size.items()}
        widest = int(sizes.max())
        rows = np.concatenate([np.pad(_rows(each, *pair, scale), ((0, 0), (0, widest - len(each.cost)), (0, 0)))
                               for each, pair in zip(instances, pairs, strict=True)])
        values = np.concatenate([(cost - ranges[n][0]) / _spread(ranges[n]) for cost, n in zip(costs, sizes.tolist(), strict=True)])
        self.data = SecondStages(torch.tensor(rows, dtype=torch.float32), torch.tensor(values, dtype=torch.float32), scale, ranges)
        return self

    def train(self, method: Method | None = None, budget: Budget | None = None, batch_size: int = 256) -> Neur2RO:
        """Fit the network to what was collected, a fifth of which is held out and observed at the end.

        Parameters
        ----------
        method : Method, default ``Train(torch.optim.Adam, lr=1e-3)``
        budget : Budget, default 500 epochs
        batch_size : int, default 256
        """
        if self.data is None:
            raise ValueError("there is nothing to learn from: call collect() first")
        rows, values = self.data.rows, self.data.values
        order = torch.randperm(len(values), generator=self.key.fold("held out").generator())
        held_out, used = order[: max(1, len(order) // 5)], order[len(order) // 5:]
        network = seeded(lambda: SetNetwork(rows.shape[-1] - 2, self.embed, self.post, self.value), self.key.fold("weights"))
        training = Training(network, nn.functional.mse_loss, (rows[used], values[used]), validation=(rows[held_out], values[held_out]),
                            batch_size=min(batch_size, len(used)), name=f"the second stage of {self.family!r}")
        epochs = Budget(steps=500 * math.ceil(len(used) / training.batch_size))
        self.result = solve(training, method or Train(torch.optim.Adam, lr=1e-3), budget or epochs, key=self.key.fold("batches"),
                            every=100, observe_every=10**9)
        assert isinstance(network, SetNetwork)
        network.load_state_dict(self.result.x)
        self.network = network.double().eval()
        return self

    def predict(self, instance: TwoStageInstance, x: Array, xi: Array) -> Array:
        """Return what the network takes for second-stage costs of pairs, (B, n) and (B, n) to (B,)."""
        network, data = self._trained()
        low, spread = self._scale(instance)
        with torch.no_grad():
            return low + spread * network(torch.as_tensor(_rows(instance, x, xi, data.feature_range))).numpy()

    def solve(self, instance: TwoStageInstance, main: Literal["argmax", "network"] = "argmax", *, tol: float = 1e-4,
              max_rounds: int = 100, **options: Any) -> RobustSolution:
        """Return a first stage that is robust by the network.

        Parameters
        ----------
        instance : TwoStageInstance
        main : {"argmax", "network"}, default "argmax"
            What a first stage costs: its exact recourse in the scenario that the network takes for the worst (the authors' choice for
            knapsacks), or what the network says.
        tol : float, default 1e-4
            Of the adversary's value over the main program's, relative.
        max_rounds : int, default 100
        **options
            Of HiGHS for every program, such as ``time_limit``.

        Returns
        -------
        RobustSolution
            Its ``value`` is the main program's, an estimate; ``instance.worst_case(x)`` gives the truth.
        """
        if main not in ("argmax", "network"):
            raise ValueError(f"main must be 'argmax' or 'network', got {main!r}")
        check_count("max_rounds", max_rounds, "the main program must be solved once")
        scenarios = [instance.nominal()]
        while True:
            x, value, known = self._main(instance, scenarios, main, options)
            xi, worst = self._adversary(instance, x, options)
            new = worst > known + tol * abs(worst) and min(np.abs(xi - each).sum() for each in scenarios) >= SAME
            if not new or len(scenarios) == max_rounds:
                return RobustSolution(x, value, scenarios)
            scenarios.append(xi)

    def _main(self, instance: TwoStageInstance, scenarios: list[Array], main: str,
              options: Mapping[str, Any]) -> tuple[Array, float, float]:
        """x and the value of the main program, and the largest Φ(x, ξ_k), scaled."""
        network, data = self._trained()
        program, count = Program(), len(scenarios)
        x = instance.first_stage(program)
        outputs = network.over_x(program, x, scenarios, _scaled(instance.features, data.feature_range))
        low, high = program.range(outputs)
        largest = program.variables(low.max(keepdims=True), high.max(keepdims=True))
        identity, ones = np.eye(count), np.ones((count, 1))
        program.require(Affine.stack([largest, outputs]).then(np.hstack([ones, -identity])))
        if main == "network":
            least, spread = self._scale(instance)
            program.charge(largest.then(np.array([[spread]]), least))
        else:
            one = program.variables(np.zeros(count), np.ones(count), integer=True)
            program.require(one.then(np.vstack([ones.T, -ones.T])), np.array([1.0, -1.0]))
            # The scenario chosen is one with the largest output: largest ≤ output_k + (most − low_k)(1 − one_k).
            slack = high.max() - low
            program.require(Affine.stack([outputs, largest, one]).then(np.hstack([identity, -ones, -np.diag(slack)]), slack))
            y = instance.second_stage(program, x)
            bottom, top = instance.recourse_range()
            z = program.variables(np.array([bottom]), np.array([top]), cost=1.0)
            prices = np.stack([instance.q + instance.Q @ xi for xi in scenarios])
            program.require(Affine.stack([z, y, one]).then(np.hstack([ones, -prices, (bottom - top) * identity])), bottom - top)
        found, value = program.solve(**options)
        return abs(found[x.variables].round()), value, float(program.at(outputs, found).max())

    def _adversary(self, instance: TwoStageInstance, x: Array, options: Mapping[str, Any]) -> tuple[Array, float]:
        """The ξ in U of the largest Φ(x, ξ), and that, scaled."""
        network, data = self._trained()
        program = Program()
        xi = program.variables(instance.low, instance.high)
        program.require(xi.then(-instance.A, instance.b))
        program.charge(network.over_xi(program, x, xi, _scaled(instance.features, data.feature_range)), -1.0)
        found, value = program.solve(**options)
        return found[xi.variables].clip(instance.low, instance.high), -value

    def _trained(self) -> tuple[SetNetwork, SecondStages]:
        if self.network is None or self.data is None:
            raise ValueError("there is no network yet: call collect() and train() first")
        return self.network, self.data

    def _scale(self, instance: TwoStageInstance) -> tuple[float, float]:
        """The least value of the instance's number of items, and the range."""
        _, data = self._trained()
        n = len(instance.cost)
        if n not in data.value_range:
            known = ", ".join(map(str, data.value_range))
            raise ValueError(f"instance must have a number of items that was collected, {known}, got {n}")
        return data.value_range[n][0], _spread(data.value_range[n])

    def __repr__(self) -> str:
        return f"Neur2RO({self.family!r}, embed={self.embed}, post={self.post}, value={self.value})"


def _spread(ends: tuple[float, float]) -> float:
    return max(ends[1] - ends[0], 1e-12)


def _scaled(features: Array, scale: Array) -> Array:
    return (features - scale[0]) / np.where(scale[1] > scale[0], scale[1] - scale[0], 1.0)


def _rows(instance: TwoStageInstance, x: Array, xi: Array, scale: Array) -> Array:
    """(x_i, ξ_i, scaled features_i) of every item of every pair, (B, n, 2 + k)."""
    features = np.broadcast_to(_scaled(instance.features, scale), (len(x), *instance.features.shape))
    return np.concatenate([x[..., None], xi[..., None], features], -1)
