"""Any rule, with the parameters held where the rule would be after its last step were repeated (XGrad).

    θ ← move(θ, inner(g));   point = θ − s · η u, without decay

g is the gradient at the point. θ is kept; it is the answer. Guan, Li, Shi, Xu: XGrad, arXiv 2305.18240.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fallline.optim.engine.arithmetic import add_scaled, scaled
from fallline.optim.engine.parts import Around, Move, Replace, Tensors
from fallline.optim.engine.state import State, like, working_dtype


@dataclass(frozen=True)
class Held(Replace):
    """The next point as it is: the rule inside has decayed its own weights."""

    coupled = False


@dataclass(frozen=True)
class Predicted(Around):
    """The next predicted point, from the inner rule's step on the weights it keeps; to be used with :class:`Held`."""

    brings_decay: ClassVar[bool] = False

    move: Move
    steps: float = 1.0

    def init(self, p: Tensor) -> dict[str, State]:
        return {**self.inner.init(p), "weights": like(p, precision=working_dtype(p.dtype), initial="parameter")}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        x = s["weights"]
        if self.move.coupled:
            g = add_scaled(g, c.weight_decay, x)
        u, new = self.inner(g, x, s, c)
        x = self.move(x, u, c, True)
        ahead = self.move(x.clone(), scaled(u, self.steps), c, False)
        return ahead, {**new, "weights": x}

    def solution(self, p: Tensor, s: Tensors, c: Any) -> Tensor:
        return s["weights"]
