"""The pure form of rules that see a group as one vector: from sequences of parameters to sequences of items, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .joint import belongs, has_begun, steps_taken, vector_like, where_present
from .parts import Direction
from .state import State

Owned = tuple[Tensor, Mapping[str, Any], Direction]
"""A parameter of the optimizer, its group and its direction."""


class Joined:
    """The sequences of the pure form, parameters, gradients and states, with the vector of every group as one item, and back.

    ``present`` says which parameters have a gradient.
    """

    def __init__(self, owned: Sequence[Owned], params: Sequence[Tensor],
                 present: Sequence[bool], states: Sequence[Mapping[str, Any]]) -> None:
        self.params, self.present, self.states = params, present, states
        self.items: list[list[int]] = []
        """The positions of the parameters of every item; frozen ones of a joint rule are in none."""
        vectors: dict[Any, list[int]] = {}
        begun = {id(group) for (_, group, _), state in zip(owned, states, strict=True) if has_begun([state])}
        for i, (own, group, direction) in enumerate(owned):
            if direction.scope != "joint":
                self.items.append([i])
            elif belongs(own, present[i], states[i], id(group) in begun):
                key = (id(group), direction)
                if key not in vectors:
                    self.items.append(vectors.setdefault(key, []))
                vectors[key].append(i)
        self.joint = [owned[item[0]][2].scope == "joint" for item in self.items]

    def points(self) -> list[Tensor]:
        """Of every item: its parameter, or the vector."""
        return [self._vector(item, self.params) if joint else self.params[item[0]]
                for item, joint in zip(self.items, self.joint, strict=True)]

    def gradients(self, given: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Likewise, with zeros for those not present; None where no parameter of the item has one."""
        return [self._vector(item, given) if joint and any(self.present[i] for i in item) else given[item[0]]
                for item, joint in zip(self.items, self.joint, strict=True)]

    def coefficients(self, k: int, numbers: dict[str, Any], point: Tensor) -> dict[str, Any]:
        """Of item ``k`` at a point."""
        item = self.items[k]
        if not self.joint[k]:
            return numbers
        return where_present(numbers, [self.params[i].numel() for i in item], [self.present[i] for i in item], point)

    def _vector(self, item: list[int], given: Sequence[Tensor | None]) -> Tensor:
        params, found = [self.params[i] for i in item], [given[i] for i in item]
        kind = vector_like(params).dtype
        flat = [p.new_zeros(p.numel()) if t is None else t.reshape(-1) for p, t in zip(params, found, strict=True)]
        return torch.cat([t.to(kind) for t in flat])

    def state(self, k: int, declared: Mapping[str, State]) -> dict[str, Any]:
        """The state of item ``k``."""
        item = self.items[k]
        first = dict(self.states[item[0]])
        if not self.joint[k]:
            return first
        first["step"] = steps_taken([self.states[i] for i in item])
        for name, entry in declared.items():
            if entry.shape is None and name in first:
                rows = () if entry.rows is None else (entry.rows,)
                first[name] = torch.cat([self.states[i][name].reshape((*rows, -1)) for i in item], -1)
        return first

    def apart(self, params: Sequence[Tensor], states: Sequence[Mapping[str, Any]], declared: Sequence[Mapping[str, State]],
              ) -> tuple[list[Tensor], list[dict[str, Any]]]:
        """Parameters and states in the optimizer's order from those of all items."""
        found, kept = list(self.params), [dict(state) for state in self.states]
        for k, item in enumerate(self.items):
            if not self.joint[k]:
                found[item[0]], kept[item[0]] = params[k], dict(states[k])
                continue
            lengths = [self.params[i].numel() for i in item]
            for i, part in zip(item, params[k].split(lengths), strict=True):
                p = self.params[i]
                found[i] = part.view(p.shape).to(p.dtype) if self.present[i] else p
            for j, i in enumerate(item):
                kept[i] = self._own_state(states[k], declared[k], lengths, j, self.params[i])
        return found, kept

    def _own_state(self, state: Mapping[str, Any], declared: Mapping[str, State], lengths: list[int], j: int,
                   p: Tensor) -> dict[str, Any]:
        own = {}
        for name, value in state.items():
            entry = declared.get(name)
            if entry is None or (entry.shape is not None and j == 0):
                own[name] = value
            elif entry.shape is None:
                own[name] = value.split(lengths, -1)[j].reshape((*value.shape[:-1], *p.shape))
        return own
