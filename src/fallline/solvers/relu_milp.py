"""Mixed-integer programs with ReLU networks in them.

    h = max(a, 0),  a ∈ [l, u] affine in the variables:      u ≤ 0: h = 0;      l ≥ 0: h = a;
    else  h ≥ a,  h ≥ 0,  h ≤ a − l(1 − δ),  h ≤ uδ,  δ ∈ {0, 1}

l and u come from the bounds of the variables, through every layer; the tighter they are, the fewer binaries and the better the
relaxation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array
from torch import nn

Array = NDArray[np.float64]
OPTIMAL, LIMIT = 0, 1
"""What SciPy's ``milp`` calls a proven optimum, and the best found when a limit was reached."""


@dataclass(frozen=True, eq=False)
class Affine:
    """k affine functions of some variables: ``matrix @ v[variables] + constant``.

    Attributes
    ----------
    variables : array (s,)
        Their numbers in the program.
    matrix : array (k, s)
    constant : array (k,)
    """

    variables: NDArray[np.int64]
    matrix: Array
    constant: Array

    def then(self, weight: Array, bias: Array | float = 0.0) -> Affine:
        """Return ``weight @ self + bias``."""
        return Affine(self.variables, weight @ self.matrix, weight @ self.constant + bias)

    @staticmethod
    def stack(parts: Iterable[Affine]) -> Affine:
        """Return all the functions as one, each over its own variables."""
        parts = list(parts)
        variables = np.concatenate([part.variables for part in parts])
        matrix = np.zeros((sum(len(part.constant) for part in parts), len(variables)))
        row = column = 0
        for part in parts:
            k, s = part.matrix.shape
            matrix[row:row + k, column:column + s] = part.matrix
            row, column = row + k, column + s
        return Affine(variables, matrix, np.concatenate([part.constant for part in parts]))


class Program:
    """A mixed-integer linear program under construction, to be minimised by HiGHS."""

    def __init__(self) -> None:
        self._low: list[float] = []
        self._high: list[float] = []
        self._integer: list[bool] = []
        self._cost = np.zeros(0)
        self._entries: list[tuple[NDArray[np.int64], NDArray[np.int64], Array]] = []
        self._at_least: list[float] = []
        self._offset = 0.0
        self.binaries = 0

    def variables(self, low: Array, high: Array, integer: bool = False, cost: Array | float = 0.0) -> Affine:
        """Add variables within bounds, and return them."""
        start = len(self._low)
        self._low += low.tolist()
        self._high += high.tolist()
        self._integer += [integer] * len(low)
        self._cost = np.append(self._cost, np.broadcast_to(cost, len(low)))
        self.binaries += integer * len(low)
        return Affine(np.arange(start, start + len(low)), np.eye(len(low)), np.zeros(len(low)))

    def charge(self, function: Affine, weight: float = 1.0) -> None:
        """Add ``weight`` times the sum of the functions to what is minimised."""
        np.add.at(self._cost, function.variables, weight * function.matrix.sum(0))
        self._offset += weight * float(function.constant.sum())

    def require(self, function: Affine, at_least: Array | float = 0.0) -> None:
        """Add ``function ≥ at_least``, row by row."""
        rows, columns = np.nonzero(function.matrix)
        self._entries.append((rows + len(self._at_least), function.variables[columns], function.matrix[rows, columns]))
        self._at_least += (at_least - function.constant).tolist()

    def at(self, function: Affine, solution: Array) -> Array:
        """Return the functions' values at a solution."""
        return function.matrix @ solution[function.variables] + function.constant

    def range(self, function: Affine) -> tuple[Array, Array]:
        """Return bounds on the functions from those of their variables, widened by rounding."""
        low, high = (np.asarray(bound)[function.variables] for bound in (self._low, self._high))
        up, down = function.matrix.clip(min=0), function.matrix.clip(max=0)
        ends = up @ low + down @ high + function.constant, up @ high + down @ low + function.constant
        slack = 1e-9 * (1 + np.abs(ends[0]) + np.abs(ends[1]))
        return ends[0] - slack, ends[1] + slack

    def relu(self, function: Affine) -> Affine:
        """Return max(function, 0), with binaries where the sign is open."""
        low, high = self.range(function)
        on, open_ = low >= 0, (low < 0) & (high > 0)
        kept = Affine(function.variables, function.matrix * on[:, None], function.constant * on)
        if not open_.any():
            return kept
        least, most = low[open_], high[open_]
        h = self.variables(np.zeros(len(most)), most)
        delta = self.variables(np.zeros(len(most)), np.ones(len(most)), integer=True)
        identity = np.eye(len(most))
        a = Affine(function.variables, function.matrix[open_], function.constant[open_])
        self.require(Affine.stack([h, a]).then(np.hstack([identity, -identity])))
        self.require(Affine.stack([a, h, delta]).then(np.hstack([identity, -identity, np.diag(least)]), -least))
        self.require(Affine.stack([delta, h]).then(np.hstack([np.diag(most), -identity])))
        return Affine.stack([kept, h]).then(np.hstack([np.eye(len(on)), np.eye(len(on))[:, open_]]))

    def network(self, layers: nn.Sequential, function: Affine) -> Affine:
        """Return the outputs of linear layers and ReLUs for these inputs."""
        for layer in layers:
            if isinstance(layer, nn.Linear):
                bias = 0.0 if layer.bias is None else layer.bias.detach().double().cpu().numpy()
                function = function.then(layer.weight.detach().double().cpu().numpy(), bias)
            elif isinstance(layer, nn.ReLU):
                function = self.relu(function)
            else:
                raise TypeError(f"layers must be Linear or ReLU, got {type(layer).__name__}")
        return function

    def solve(self, **options: Any) -> tuple[Array, float]:
        """Return the variables at a minimum and its value; ``options`` are HiGHS's. With a limit, they are the best found within it.

        Raises
        ------
        ValueError
            The program has no minimum, or HiGHS found none within its limits.
        """
        constraints = []
        if self._at_least:
            rows, columns, values = (np.concatenate(part) for part in zip(*self._entries, strict=True))
            matrix = csr_array((values, (rows, columns)), shape=(len(self._at_least), len(self._low)))
            constraints.append(LinearConstraint(matrix, np.array(self._at_least), math.inf))
        scale = np.abs(self._cost).max(initial=0.0) or 1.0  # HiGHS has absolute tolerances
        found = milp(self._cost / scale, integrality=np.array(self._integer), bounds=Bounds(np.array(self._low), np.array(self._high)),
                     constraints=constraints, options=options)
        if found.x is None or found.status not in (OPTIMAL, LIMIT):
            raise ValueError(f"the program has no solution: {found.message}")
        return found.x, scale * float(found.fun) + self._offset
