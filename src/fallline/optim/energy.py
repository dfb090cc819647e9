"""Gradient descent with energy: stable for every step size.

    ℓ = √(f + c),  r₀ = ℓ(x₀);   v = ∇f / (2 ℓ),  d = A(x) v;   r ← r / (1 + 2 η ⟨v, d⟩);   x ← x − 2 η r d

Exactly, r²_{k+1} = r²_k − (r_{k+1} − r_k)² − ‖x_{k+1} − x_k‖²_{A⁻¹} / η: r falls whatever η is.

Liu, Nurbekyan, Tian, Yang: Adaptive Preconditioned Gradient Descent with Energy, arXiv 2310.06733.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from fallline.core.errors import NonFiniteError
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.core.warning import warn
from fallline.optim.directions.metrics import Affine, CustomMetric, Positive, Simplex
from fallline.optim.engine.layout import local
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.oracles import acts, refuse
from fallline.optim.engine.parts import Direction, Gradient, Scalars, StepSize, Tensors, View
from fallline.optim.engine.state import State, like, working_dtype

UNDERFLOW = 1e-8
Constraint = str | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Energy(StepSize):
    """r_{k+1} / ℓ with r_{k+1} = r_k / (1 + ⟨g, η u⟩ / (2 ℓ²)), since 2 η r d = η (r / ℓ) u; r is not a number until it starts at ℓ.

    Groups with η of their own are a metric of their own: η is inside the product.
    """

    needs: ClassVar[tuple[str, ...]] = ("loss", "step_dot_gradient")

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return _constants(group)

    def check_loss(self, loss: float, group: Mapping[str, Any]) -> None:
        _check_positive("AEPG", loss, group)

    def scalars(self) -> dict[str, float]:
        return {"energy": math.nan, "first_energy": math.nan}

    def __call__(self, statistics: Tensors, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        root = (c.sign * statistics["loss"] + c.constant).sqrt()
        before = torch.where(s["energy"].isnan(), root, s["energy"])
        slope = statistics["step_dot_gradient"] / (2 * root * root)
        share = self.share(before / root, slope, statistics)
        energy = before / (1 + share * slope)
        first = torch.where(s["first_energy"].isnan(), root, s["first_energy"])
        return share * energy / root, {"energy": energy, "first_energy": first}

    def share(self, ratio: Tensor, slope: Tensor, statistics: Tensors) -> Tensor | float:
        """The part of η that is taken, from r_k / ℓ and ⟨g, η u⟩ / (2 ℓ²)."""
        return 1.0


@dataclass(frozen=True)
class EnergyInside(Energy):
    """The same with an η so short that no step takes more than ``fraction`` of any entry of x away: r is charged for what is taken."""

    needs: ClassVar[tuple[str, ...]] = (*Energy.needs, "largest_relative_decrease")
    fraction: float = 0.9

    def share(self, ratio: Tensor, slope: Tensor, statistics: Tensors) -> Tensor | float:
        # σ (r / ℓ) D / (1 + σ q) = fraction, with D the largest relative decrease of η u, q the slope; D itself is bounded otherwise.
        limit = self.fraction / (ratio * statistics["largest_relative_decrease"] - self.fraction * slope)
        return torch.where(limit > 0, limit.clamp(max=1.0), 1.0)


@dataclass(frozen=True)
class EntrywiseEnergy(Direction):
    """u = r v · 2 with v = g / (2 ℓ) and r ← r / (1 + 2 η v²), an r for each entry."""

    supports_complex: ClassVar[bool] = True
    uses_rate: ClassVar[bool] = True

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return _constants(group)

    def init(self, p: Tensor) -> dict[str, State]:
        # In few bits 1 + 2 η v² is 1, and r would not fall.
        return {"energy": like(p, nonnegative=True, precision=working_dtype(p.dtype), initial=math.nan)}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        root = (c.sign * c.loss.to(g) + c.constant).sqrt()
        v = g / (2 * root)
        r = torch.where(s["energy"].isnan(), root, s["energy"]) / (1 + 2 * c.lr * v * v)
        return 2 * r * v, {"energy": r}


def _constants(group: Mapping[str, Any]) -> Scalars:
    return {"constant": group["c"], "sign": -1.0 if group["maximize"] else 1.0}


def _check_positive(name: str, loss: float, group: Mapping[str, Any]) -> None:
    """Refuse f + c ≤ 0 of what is minimised."""
    total = (-loss if group["maximize"] else loss) + group["c"]
    if total <= 0:
        raise ValueError(f"{name} needs f + c > 0, but f + c is {total:g} with c = {group['c']:g}; take a larger c")
    if math.isnan(total):
        raise NonFiniteError(f"{name} was given a loss that is not a number; lower lr, or pass nonfinite=\"skip\"")


class _WithEnergy(Optimizer):
    """What both share: the loss is needed, f + c must be positive, and r can start anew."""

    positive: ClassVar[Mapping[str, str]] = {"c": "about 10 f(x₀) is safe; 1 is the paper's"}
    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-3, 10.0)}

    def check_group(self, group: Mapping[str, Any]) -> None:
        for name in ("c", "maximize"):
            if group[name] != self.param_groups[0][name]:
                raise ValueError(f"{name} must be the same in all groups of {type(self).__name__}, whose energy is that of one loss, "
                                 f"got {self.param_groups[0][name]!r} and {group[name]!r}")

    def evaluate(self, closure: Callable[[], Any] | None) -> Any:
        if closure is None and acts(self.param_groups):
            refuse(type(self).__name__, "the loss", closure=True)
        return super().evaluate(closure)

    def restart(self) -> None:
        """Let the energy start anew from √(f + c) at the next step, after it has become too small to move anything."""
        self._plan = None  # what is left out of the state starts again
        for state in self.state.values():
            for name in ("energy", "first_energy"):
                state.pop(name, None)


@register("aepg")
class AEPG(_WithEnergy):
    """r ← r / (1 + 2 η ⟨v, A v⟩);  x ← x − 2 η r A v,  v = ∇f / (2 √(f + c)).

    One number r, ``opt.energy``, which falls at every step whatever η is. It must not fall to 0: then nothing moves, a warning says so
    once it is below 1e-8 of its start, and ``opt.restart()`` starts it anew; a larger c widens the range of η where it stays away from
    0. Needs the loss: ``opt.step(closure)`` or ``opt.step(objective(x, y))``; it is read at every step, to refuse f + c ≤ 0. With
    random batches r still falls, along noisy values.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 0.1
        η. Groups may have their own.
    c : float, default 1
        About 10 f(x₀) is safer. The same for all groups.
    precond : callable, optional
        ``(x, g) -> A(x) g`` on one flattened tensor; A symmetric and positive semidefinite.
    constraint : "simplex", "positive" or (B, b), optional
        Each tensor on the simplex or in the positive orthant, by the metric of the entropy, no step taking more than 0.9 of an
        entry; or B x = b, by projected gradients. The start must satisfy it.
    weight_decay : float, default 0
        Added to the gradient, and not to f; the paper has none.
    **options
        ``nonfinite``, ``maximize``, ``storage`` of the engine; steps in two passes run eagerly.
    """

    def __init__(self, params: Any, lr: float = 0.1, c: float = 1.0, precond: Callable[[Tensor, Tensor], Tensor] | None = None,
                 constraint: Constraint | None = None, weight_decay: float = 0.0, **options: Unpack[EngineOptions]) -> None:
        if precond is not None and constraint is not None:
            raise ValueError("precond and constraint are two choices of one metric; give one of them")
        if precond is not None and not callable(precond):
            raise ValueError(f"precond must be a function (x, g) -> A(x) g of flattened tensors, got {precond!r}")
        self.constraint, self._warned, self._checked = constraint, False, 0
        inside = isinstance(constraint, str)
        rule = _metric(constraint) if precond is None else CustomMetric(precond)
        super().__init__(params, rule, {"lr": lr, "c": c, "weight_decay": weight_decay},
                         step_size=EnergyInside() if inside else Energy(), **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "constraint": self.constraint, "_warned": self._warned, "_checked": self._checked}

    @property
    def energy(self) -> float:
        """r; not a number before the first step."""
        return self._number("energy")

    def restart(self) -> None:
        super().restart()
        self._warned = False

    def _number(self, name: str) -> float:
        return next((float(state[name]) for state in self.state.values() if name in state), math.nan)

    def before_step(self) -> None:
        for group in self.param_groups[self._checked :]:
            for p in group["params"]:
                _check_start(local(p), self.constraint)
        self._checked = len(self.param_groups)
        if self.state and not self._warned and self.energy < UNDERFLOW * self._number("first_energy"):
            self._warned = True
            warn(f"AEPG's energy has fallen to {self.energy:.1e}, {UNDERFLOW:g} of its start: steps have become too short to matter; "
                 "call restart(), with a smaller lr or a larger c")


@register("aegd")
class AEGD(_WithEnergy):
    """v = ∇f / (2 √(f + c));  r ← r / (1 + 2 η v²);  x ← x − 2 η r v, entry by entry, r from √(f(x₀) + c).

    Parameters as in ``AEPG``, without metric and constraint; one state tensor.
    """

    def __init__(self, params: Any, lr: float = 0.1, c: float = 1.0, weight_decay: float = 0.0,
                 **options: Unpack[EngineOptions]) -> None:
        super().__init__(params, EntrywiseEnergy(), {"lr": lr, "c": c, "weight_decay": weight_decay}, **options)

    def share(self, views: Sequence[View], loss: Any) -> dict[str, Any]:
        if loss is None and acts(self.param_groups):
            refuse("AEGD", "the loss", closure=True)
        home = views[0].gradient
        value = torch.zeros(()) if loss is None else torch.as_tensor(loss).reshape(())
        if loss is not None and self.nonfinite != "ignore":
            _check_positive("AEGD", float(value.detach()), self.param_groups[0])
        return {"loss": value.to(home)}


def _metric(constraint: Constraint | None) -> Direction:
    if constraint is None:
        return Gradient()
    pair = isinstance(constraint, tuple) and len(constraint) == 2 and all(isinstance(x, Tensor) for x in constraint)
    if not pair and constraint not in ("simplex", "positive"):
        raise ValueError(f"constraint must be 'simplex', 'positive' or a pair of tensors (B, b) for B x = b, got {constraint!r}")
    if isinstance(constraint, str):
        return Simplex() if constraint == "simplex" else Positive()
    rows, right = constraint
    if not (rows.is_floating_point() and right.is_floating_point()):
        raise ValueError(f"constraint (B, b) must be floating-point tensors, got {rows.dtype} and {right.dtype}")
    if rows.ndim != 2 or right.shape != rows.shape[:1]:
        raise ValueError(f"constraint (B, b) must be a matrix and a vector with as many entries as B has rows, got shapes "
                         f"{tuple(rows.shape)} and {tuple(right.shape)}")
    _, values, directions = torch.linalg.svd(rows, full_matrices=False)
    return Affine(directions[values > values.max() * max(rows.shape) * torch.finfo(rows.dtype).eps])


def _check_start(x: Tensor, constraint: Constraint | None) -> None:
    if isinstance(constraint, str):
        if not bool((x > 0).all()):
            raise ValueError(f"constraint={constraint!r} needs a start with positive entries, got a smallest entry {float(x.min()):g}")
        if constraint == "simplex" and abs(float(x.sum()) - 1) > 1e-4:
            raise ValueError(f"constraint='simplex' needs a start whose entries sum to 1, got {float(x.sum()):g}; divide by the sum")
    elif constraint is not None:
        rows, right = constraint
        if rows.shape[1] != x.numel():
            raise ValueError(f"constraint B has {rows.shape[1]} columns, but the parameter has {x.numel()} entries")
        residual = float((rows.to(x) @ x.flatten() - right.to(x)).norm())
        if residual > 1e-4 * (1 + float(right.norm())):
            raise ValueError(f"constraint B x = b does not hold at the start, ‖B x − b‖ is {residual:g}; start from "
                             "torch.linalg.lstsq(B, b)")
