"""Step sizes under which the last iterate of stochastic (sub)gradient methods is as good as an average.

    Lipschitz        T known: η_t = η (T − t + 1) / T^{3/2}, O(1 / √T);   unknown: η / √t, O(log T / √T)
    smooth           the same, at most 1 / (2 L)
    strongly convex  η / (μ (t + 2 L / μ)), O(log T / T);   T known: its second half falls linearly from there, O(1 / T)
    heavy-tailed     noise with a finite p-th moment, 1 < p ≤ 2: η (T − t + 1) / T^{1 + 1/p} or η / t^{1/p}, O(T^{−(p − 1)/p})

t = 1, …, T. η is the group's ``lr``, of the order of the distance to the solution over the length of a gradient, whatever T (and near 1
where the problem is strongly convex). The last step is positive, and nothing is averaged. The paper's constants of the last two lines
may be others: here they are those of the simplest steps with these rates.

Liu, Zhou: Revisiting the Last-Iterate Convergence of Stochastic Gradient Methods, ICLR 2024, arXiv 2312.08531.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from torch.optim import Optimizer

from fallline.optim.schedules.base import RateSchedule, check_count

Setting = Literal["lipschitz", "smooth", "strongly_convex", "heavy_tailed"]

NEEDED = {"lipschitz": (), "smooth": ("L",), "strongly_convex": ("mu",), "heavy_tailed": ("p",)}
ALLOWED = {**NEEDED, "strongly_convex": ("mu", "L")}


class LastIterate(RateSchedule):
    """The steps of the module's table, for ``CompositeSMD`` or any other torch optimizer.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Any; each group's ``lr`` is its η.
    steps : int, optional
        T; after them the rate is 0, and one more ``step()`` raises ``ValueError``. None, the default, if it is not known.
    setting : {"lipschitz", "smooth", "strongly_convex", "heavy_tailed"}, default "lipschitz"
        What is known of the problem, with the facts below.
    mu : float, optional
        μ > 0, for strong convexity only, of the function or of the term.
    L : float, optional
        > 0, a bound on the curvature, for smooth functions, strongly convex or not.
    p : float, optional
        In (1, 2], for heavy tails only.

    Raises
    ------
    ValueError
        If a fact is missing, out of its range, or has no place in the setting.
    """

    def __init__(self, optimizer: Optimizer, steps: int | None = None, setting: Setting = "lipschitz", *, mu: float | None = None,
                 L: float | None = None, p: float | None = None) -> None:
        if steps is not None:
            check_count("steps", steps, 1, "None if the number of steps is not known")
        if setting not in NEEDED:
            raise ValueError(f"setting must be one of {', '.join(map(repr, NEEDED))}, got {setting!r}")
        for name, value in (("mu", mu), ("L", L), ("p", p)):
            _check_fact(name, value, setting)
        self.steps, self.setting, self.mu, self.L, self.p = steps, setting, mu, L, p
        super().__init__(optimizer)

    def rate(self, base: float, t: int) -> float:
        if self.mu is not None:
            return base * self._harmonic(t + 1, self.mu)
        power = 1 / (self.p or 2.0)
        eta = base * ((t + 1) ** -power if self.steps is None else (self.steps - t) / self.steps ** (1 + power))
        return eta if self.L is None else min(eta, 1 / (2 * self.L))

    def _harmonic(self, t: int, mu: float) -> float:
        half = t if self.steps is None else min(t, math.ceil(self.steps / 2))
        falling = 1.0 if self.steps is None else (self.steps - t + 1) / (self.steps - half + 1)
        return falling / (mu * half + 2 * (self.L or 0.0))

    def settings(self) -> dict[str, Any]:
        facts = {name: getattr(self, name) for name in ALLOWED[self.setting] if getattr(self, name) is not None}
        return {"steps": self.steps, "setting": self.setting, **facts}


def _check_fact(name: str, value: float | None, setting: str) -> None:
    if value is None:
        if name in NEEDED[setting]:
            raise ValueError(f"{name} must be given for setting={setting!r}, got None")
        return
    if name not in ALLOWED[setting]:
        raise ValueError(f"{name} must be left out of setting={setting!r}, got {value!r}; it belongs to "
                         f"{', '.join(repr(other) for other in ALLOWED if name in ALLOWED[other])}")
    if name == "p" and not 1 < value <= 2:
        raise ValueError(f"p must be in (1, 2], got {value!r}; 2 is a finite variance")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
