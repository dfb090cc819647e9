"""Learning rate and momentum from the ends of the batch Hessian's spectrum, on the fly.

m Lanczos steps with the Hessian of a batch give Ritz values θ. With λmax = max θ and λmin = max(min θ, floor · λmax)

    lr = (2 / (√λmax + √λmin))²,      momentum = ((√λmax − √λmin) / (√λmax + √λmin))²

which are the heavy ball's best for a quadratic with eigenvalues from λmin to λmax.

Granziol, Zohren, Roberts: Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to Neural Network Training,
JMLR 2022, arXiv 2006.09092.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from fallline.core.keys import Key
from fallline.core.operators import lanczos
from fallline.core.warning import warn
from fallline.optim.survey import Momentum


@dataclass(frozen=True)
class HeavyBall:
    """A learning rate and momentum, and the eigenvalues they are best for."""

    lr: float
    momentum: float
    largest: float
    smallest: float


def heavy_ball(largest: float, smallest: float) -> HeavyBall:
    """lr = (2 / (√λmax + √λmin))² and momentum = ((√λmax − √λmin) / (√λmax + √λmin))², for 0 < λmin ≤ λmax."""
    if not 0 < smallest <= largest < math.inf:
        raise ValueError(f"the eigenvalues must satisfy 0 < smallest <= largest, got smallest={smallest} and largest={largest}")
    total = math.sqrt(largest) + math.sqrt(smallest)
    return HeavyBall((2 / total) ** 2, ((math.sqrt(largest) - math.sqrt(smallest)) / total) ** 2, largest, smallest)


class LanczosLR:
    """Sets ``lr`` and ``momentum`` of an optimizer with momentum from Ritz values of the batch Hessian.

    Call ``step(realisation)`` before each ``optimizer.step(realisation)``. Every ``every`` calls, the first included, it takes ``m``
    Hessian-vector products.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Every group has ``momentum``: ``torch.optim.SGD``, ``fl.optim.Momentum``.
    every : int, default 100
        Calls between estimates.
    m : int, default 20
        Lanczos steps; as many vectors of the parameters' size are held while they run. All are re-orthogonalised, in float32 too.
    floor : float, default 1e-3
        The least λmin / λmax. It takes the place of negative curvature and of the bulk at zero, and bounds the momentum: 0.88 at 1e-3.
    seed : int, default 0
        Of the start vectors.

    Raises
    ------
    ValueError
        If a group has no momentum, or has dampening or Nesterov's momentum, for which the formulas are not.

    Notes
    -----
    The paper does not settle how often to refresh and how to damp λmin; ``every`` and ``floor`` are this library's. A batch's λmax is
    larger than that of all data, which keeps small batches safe. Ritz values lie inside the spectrum, so that λmin comes out too large:
    by a tenth or two with m = 20 at λmax/λmin = 100, which costs about a third of the heavy ball's rate. Where no Ritz value is
    positive the groups are left as they are, and a warning says so.

    Examples
    --------
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    >>> tuner = LanczosLR(optimizer, every=200)
    >>> for x, y in batches:
    ...     realisation = objective(x, y)
    ...     tuner.step(realisation)
    ...     optimizer.step(realisation)
    """

    def __init__(self, optimizer: torch.optim.Optimizer, every: int = 100, m: int = 20, floor: float = 1e-3, seed: int = 0) -> None:
        for name, value in (("every", every), ("m", m)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
        if not 0 < floor <= 1:
            raise ValueError(f"floor must be in (0, 1], got {floor}; 1e-3 bounds the momentum by 0.88")
        if not isinstance(optimizer, torch.optim.SGD) and type(optimizer) is not Momentum:
            raise ValueError("optimizer must be a heavy ball, torch.optim.SGD or fallline.optim.Momentum, for which the formulas are, "
                             f"got {type(optimizer).__name__}")
        for i, group in enumerate(optimizer.param_groups):
            if group.get("dampening") or group.get("nesterov"):
                raise ValueError(f"optimizer must be a plain heavy ball, got dampening or nesterov in group {i}: "
                                 "the formulas are not for them")
        self.optimizer, self.every, self.m, self.floor, self.seed = optimizer, every, m, floor, seed
        self.calls = 0
        self.last: HeavyBall | None = None

    def propose(self, realisation: Any) -> HeavyBall | None:
        """Return what the curvature of this batch asks for, changing nothing; None where no Ritz value is positive."""
        if not (hasattr(realisation, "variables") and hasattr(realisation, "hessian_operator")):
            raise TypeError(f"realisation must have variables and a Hessian, got {type(realisation).__name__}; pass objective(inputs, "
                            "targets) or problem.draw(key).bind(variables)")
        variables = {name: p.detach() for name, p in realisation.variables.items()}
        dtypes = {p.dtype for p in variables.values()}
        if not dtypes <= {torch.float32, torch.float64} or len(dtypes) != 1:
            raise ValueError(f"parameters must be float32 or float64 throughout, got {sorted(map(str, dtypes))}")

        found = lanczos(realisation.hessian_operator(), self.m, generator=Key(self.seed).fold("lanczos", self.calls).generator())
        values = torch.linalg.eigvalsh(found.tridiagonal.double())
        largest, smallest = float(values[-1]), float(values[0])
        return heavy_ball(largest, max(smallest, self.floor * largest)) if largest > 0 else None

    def step(self, realisation: Any) -> None:
        """Set the groups' ``lr`` and ``momentum`` if it is time.

        Parameters
        ----------
        realisation
            The loss on this batch: ``objective(inputs, targets)``, or ``problem.draw(key).bind(variables)``.
        """
        due = self.calls % self.every == 0
        found = self.propose(realisation) if due else None
        self.calls += 1
        if found is not None:
            self.last = found
            for group in self.optimizer.param_groups:
                group["lr"], group["momentum"] = found.lr, found.momentum
        elif due:
            warn("no Ritz value of this batch's Hessian is positive; the learning rate and momentum stay as they were")

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` needs to go on; the groups' values are in the optimizer's own."""
        return {"calls": self.calls, "last": None if self.last is None else vars(self.last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from another one's ``state_dict``."""
        self.calls = int(state["calls"])
        self.last = None if state["last"] is None else HeavyBall(**state["last"])

    def __repr__(self) -> str:
        found = "nothing estimated yet" if self.last is None else (
            f"lr {self.last.lr:.4g}, momentum {self.last.momentum:.4g} from eigenvalues {self.last.smallest:.4g} to "
            f"{self.last.largest:.4g}")
        return f"LanczosLR(every={self.every}, m={self.m}, floor={self.floor}; {found})"
