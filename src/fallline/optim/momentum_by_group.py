"""Optimizers whose momentum comes after a preconditioner, and is kept where a group has one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fallline.optim.directions.kronecker.grafting import Grafted
from fallline.optim.engine.optimizer import Optimizer


def momentum_of(group: Mapping[str, Any]) -> float:
    """μ."""
    return float(group["momentum"])


class MomentumByGroup(Optimizer):
    """Groups whose ``momentum`` is 0 keep no buffer; one that returns starts anew."""

    def _forget(self) -> None:
        super()._forget()
        self._buffered: list[bool] = []

    def with_momentum(self, rule: Grafted, group: Mapping[str, Any]) -> Grafted:
        """The rule with or without momentum, as the group has it."""
        return replace(rule, momentum=momentum_of if momentum_of(group) > 0 else None)

    def before_step(self) -> None:
        buffered = [momentum_of(group) > 0 for group in self.param_groups]
        if buffered != self._buffered:
            self._buffered, self._plan = buffered, None
            for group, kept in zip(self.param_groups, buffered, strict=True):
                for p in () if kept else group["params"]:
                    state = self.state.get(p, {})
                    for name in [name for name in state if name.partition(".")[0] == "momentum"]:
                        state.pop(name)  # B = Σ μ^k … starts anew when μ returns
