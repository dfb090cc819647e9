"""MARS's estimate of the gradient, under any direction.

    c = g_t + γ β₁ / (1 − β₁) (g_t − g̃);   c ← c / max(1, ‖c‖) over each tensor;   u = inner(c)

g̃ is the gradient of the step before, or, exactly, that of the same realisation at the point before; in the first step it is g_t.

Yuan, Liu, Wu, Zhou, Gu: MARS, ICML 2025, arXiv 2411.10438.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fallline.optim.engine.arithmetic import add_scaled
from fallline.optim.engine.parts import Around, Scalars, Tensors
from fallline.optim.engine.reduction import reduce
from fallline.optim.engine.state import State, like, working_dtype

PREVIOUS = "gradient at the previous point"


def previous_points(states: Mapping[Tensor, Mapping[str, Any]]) -> dict[Tensor, Tensor]:
    """Where to ask: the point before of every parameter that takes part in this step, the others staying where they are."""
    return {p: state["previous_point"] for p, state in states.items() if "previous_point" in state and p.grad is not None}


@dataclass(frozen=True)
class VarianceReduced(Around):
    """u = inner(c) with g̃ the gradient of the step before."""

    @property
    def reduces(self) -> bool:  # type: ignore[override]
        """c is no longer than 1 over each tensor."""
        return True

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        beta1 = group["betas"][0]
        correction = 0.0 if t == 1 else group["gamma"] * beta1 / (1 - beta1)
        return {**self.inner.coefficients(group, t), "correction": correction}

    def init(self, p: Tensor) -> dict[str, State]:
        return {**self.inner.init(p), "previous_gradient": like(p)}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        corrected = add_scaled(g, c.correction, g - s["previous_gradient"])
        corrected = corrected / reduce(corrected * corrected).sqrt().clamp(min=1.0)
        u, new = self.inner(corrected, p, s, c)
        return u, {**new, "previous_gradient": g}


@dataclass(frozen=True)
class ExactlyVarianceReduced(VarianceReduced):
    """The same with g̃ observed: the gradient of this step's realisation at the point before, which is kept for that."""

    def init(self, p: Tensor) -> dict[str, State]:
        return {**super().init(p), "previous_point": like(p, precision=working_dtype(p.dtype), initial="parameter")}

    def probe(self, t: int, group: Mapping[str, Any]) -> tuple[str, ...]:
        return (*self.inner.probe(t, group), *((PREVIOUS,) if t > 1 else ()))

    def observe(self, name: str, value: Tensor, s: Tensors, c: Any) -> Tensors:
        return {"previous_gradient": value} if name == PREVIOUS else self.inner.observe(name, value, s, c)

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        before = p.clone()  # the move may overwrite p
        u, new = super().__call__(g, p, s, c)
        return u, {**new, "previous_point": before}
