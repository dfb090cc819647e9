"""Blocks and a rule to choose among them, prepared for one problem: what does not change from step to step is made once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fallline.core.blocks import tournament
from fallline.core.blocks.forests import greedy_forest, neighbours
from fallline.core.blocks.models import BlockModel, LinearBlocks, QuadraticBlocks
from fallline.core.blocks.partition import Partition
from fallline.core.blocks.prox import separable_decrease
from fallline.core.blocks.schemes import Blocks, Variable, VariableForest
from fallline.core.blocks.selection import Cyclic, GaussSouthwell, Random, Selection, quadratic_forms
from fallline.core.blocks.updates import block_norm, pseudo_inverse
from fallline.core.keys import Key
from fallline.core.operators.columns import SparseColumns
from fallline.core.terms import Term

TOURNAMENT = 200_000  # blocks from which a tournament over the changed scores beats a look at all of them, on one core


@dataclass(frozen=True)
class Sight:
    """What a greedy rule looks at.

    Attributes
    ----------
    x, gradient : Tensor (n,)
    bounds : Tensor (n,)
        L_i, or running estimates where none are known.
    term : Term, optional
    """

    x: Tensor
    gradient: Tensor
    bounds: Tensor
    term: Term | None = None

    def at(self, index: Tensor) -> Sight:
        """Return the same for these variables alone."""
        term = None if self.term is None else self.term.restricted(index)
        return Sight(self.x[index], self.gradient[index], self.bounds[index], term)

    def shares(self, D: Tensor) -> Tensor:
        """Return what each variable promises: g²/D without a term."""
        return separable_decrease(self.term, self.x, self.gradient, D)


@dataclass
class Plan:
    """A scheme of blocks and a selection rule for one problem; ``made`` keeps what updates make of single blocks.

    Attributes
    ----------
    partition : Partition, optional
        None for variable blocks.
    weights : Tensor (n,), optional
        D_i of the rule's measure, where the problem's bounds fix them.
    inverses : Tensor (blocks, w, w), optional
        H_b⁻¹ of every block, padded by zeros, for "gsq".
    """

    scheme: Blocks
    rule: Selection
    partition: Partition | None = None
    graph: list[list[int]] | None = None
    weights: Tensor | None = None
    inverses: Tensor | None = None
    many: bool = False
    made: dict[tuple[str, int], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, scheme: Blocks, rule: Selection, model: BlockModel, bounds: Tensor, term: Term | None) -> Plan:
        """Return the plan for a problem with these bounds; columns of zeros are left out of a partition where there is no term."""
        plan, n = cls(scheme, rule), len(bounds)
        if isinstance(scheme, VariableForest):
            plan.graph = neighbours(model.bound_columns(), n)
        elif not isinstance(scheme, Variable):
            plan.partition = scheme.partition(model, n, bounds.device)
            if isinstance(model, LinearBlocks) and model.bounded and term is None:
                dead = bounds <= torch.finfo(bounds.dtype).tiny
                plan.partition = plan.partition.without(dead) if bool(dead.any()) and not bool(dead.all()) else plan.partition
        if isinstance(rule, GaussSouthwell) and model.bounded:
            plan._measure(rule, model, bounds, term)
        return plan

    def _measure(self, rule: GaussSouthwell, model: BlockModel, bounds: Tensor, term: Term | None) -> None:
        partition = self.partition
        if partition is not None and rule.measure == "gsq":
            self.inverses = _inverses(model, partition)
        elif partition is not None and rule.measure == "gsl":
            self.weights = torch.stack([block_norm(model, partition[k]) for k in range(len(partition))])[partition.member]
        else:
            self.weights = self._from_bounds(rule, bounds, term)
        sparse = isinstance(model, QuadraticBlocks) and isinstance(model.columns, SparseColumns)
        self.many = partition is not None and len(partition) >= TOURNAMENT and sparse and self.inverses is None

    def _from_bounds(self, rule: GaussSouthwell, bounds: Tensor, term: Term | None) -> Tensor:
        if rule.measure == "gs":
            return torch.ones_like(bounds) if term is None else bounds.amax().expand_as(bounds)
        if isinstance(self.scheme, Variable):
            return min(self.scheme.size, len(bounds)) * bounds
        if self.partition is None:
            return bounds
        if rule.measure == "gsl":
            member = self.partition.member
            return bounds.new_zeros(len(self.partition)).index_reduce_(0, member, bounds, "amax")[member]
        return self.partition.lengths[self.partition.member] * bounds

    def _weights(self, sight: Sight) -> Tensor:
        assert isinstance(self.rule, GaussSouthwell)
        return self._from_bounds(self.rule, sight.bounds, sight.term) if self.weights is None else self.weights

    def scores(self, sight: Sight, numbers: Tensor | None = None) -> Tensor:
        """Return the measure of every block of the partition, or of these at the cost of these."""
        assert self.partition is not None
        if self.inverses is not None:
            return quadratic_forms(self.partition, self.inverses, sight.gradient)
        weights = self._weights(sight)
        if numbers is None:
            return self.partition.sums(sight.shares(weights))
        return self.partition.some_sums(lambda index: sight.at(index).shares(weights[index]), numbers)

    def choose(self, sight: Sight, active: Tensor, tree: Tensor | None, t: int, key: Key) -> tuple[int | None, Tensor]:
        """Return the number of the block that moves next, where it has one, and its variables.

        Parameters
        ----------
        sight : Sight
        active : Tensor (n,) of bool
            Variables that the term holds.
        tree : Tensor, optional
            The tournament of all scores, where there are many blocks.
        t : int
            The step.
        key : Key
        """
        if self.partition is not None:
            if isinstance(self.rule, Cyclic | Random):
                number = self.rule.block(len(self.partition), t, key)
            else:  # a block's size must be known here, for which a device is waited for
                number = int(self.scores(sight).argmax()) if tree is None else tournament.largest(tree)
            return number, self.partition[number]
        n, device = len(sight.x), sight.x.device
        size = min(self.scheme.size, n) if isinstance(self.scheme, Variable) else n
        if isinstance(self.rule, Random):
            return None, torch.tensor(self.rule.variables(n, size, t, key), device=device)
        shares = sight.shares(self._weights(sight))
        if sight.term is not None:
            # Of variables with nothing to gain alone, those that the term does not hold come first: they are solved together.
            shares = torch.where(active, shares, shares.clamp(min=torch.finfo(shares.dtype).tiny))
        if self.graph is None:
            return None, shares.topk(size).indices
        return None, torch.tensor(greedy_forest(self.graph, shares.argsort(descending=True).tolist()), device=device)


def _inverses(model: BlockModel, partition: Partition) -> Tensor:
    """H_b⁻¹ of every block, padded by zeros to the largest."""
    found = [pseudo_inverse(model.bound(partition[k])) for k in range(len(partition))]
    whole = [each for each in found if each is not None]
    if len(whole) < len(found):
        raise ValueError("select='gsq' needs bounds on the Hessian that are positive semidefinite, and that of a block is not")
    width = int(partition.lengths.max())
    return torch.stack([torch.nn.functional.pad(each, (0, width - len(each), 0, width - len(each))) for each in whole])
