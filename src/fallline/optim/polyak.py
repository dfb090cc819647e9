"""Preconditioned Polyak steps: as far as brings a model of the batch's loss to f*, in the norm of a preconditioner B.

    s = B⁻¹ g,  n = ⟨g, s⟩ over all tensors       PSPS   x ← x − (f − f*)₊ / n · s, or with a slack
                                                  SANIA  x ← x − λ s,  λ = 1 − √(1 − 2 (f − f*) / n), or 1 where 2 (f − f*) > n

Abdukhakimov, Xiang, Kamzolov, Takáč: Stochastic Gradient Descent with Preconditioned Polyak Step-size, arXiv 2310.02093.
Abdukhakimov, Xiang, Kamzolov, Gower, Takáč: SANIA, arXiv 2312.17369.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor

from fallline.core.operators import LinearOperator, conjugate_gradient
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.directions.hutchinson import OverCurvature
from fallline.optim.directions.metrics import CustomMetric
from fallline.optim.directions.quotient import Preconditioned
from fallline.optim.directions.scalings import DebiasedSquares, DebiasedVariance, RootOfSum, Sum
from fallline.optim.engine.hyperparameters import check_positive
from fallline.optim.engine.optimizer import EngineOptions
from fallline.optim.engine.parts import Direction, Gradient, StepSize, Tensors
from fallline.optim.engine.state import State, like
from fallline.optim.probing import Probing
from fallline.optim.step_sizes.polyak import Polyak, PolyakSlackL1, PolyakSlackL2, QuadraticPolyak

NEWTON = "Newton direction"
SLACKS: dict[str | None, type[StepSize]] = {None: Polyak, "l1": PolyakSlackL1, "l2": PolyakSlackL2}
TOLERANCE = 1e-4
"""‖H s − g‖ ≤ TOLERANCE ‖g‖."""
ITERATIONS = 100


@dataclass(frozen=True)
class Newton(Direction):
    """s with H s = g for the Hessian of the batch, observed."""

    def init(self, p: Tensor) -> dict[str, State]:
        return {"newton": like(p)}

    def probe(self, t: int, group: Mapping[str, Any]) -> tuple[str, ...]:
        return (NEWTON,)

    def observe(self, name: str, value: Tensor, s: Tensors, c: Any) -> Tensors:
        return {"newton": value}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        return s["newton"], {}


DIAGONALS: dict[str, Callable[[], Direction]] = {
    "hutchinson": OverCurvature, "adagrad": lambda: Preconditioned(denominator=RootOfSum()),
    "adam": lambda: Preconditioned(denominator=DebiasedSquares()), "adagrad_sqr": lambda: Preconditioned(denominator=Sum()),
    "adam_sqr": lambda: Preconditioned(denominator=DebiasedVariance()), "identity": Gradient, "newton_cg": Newton,
}


class _Preconditioned(Probing):
    """What both share: the preconditioner by name, and the estimates that some of them need."""

    choices: ClassVar[tuple[str, ...]]
    space: ClassVar[Mapping[str, Range]] = {}

    def __init__(self, params: Any, precond: str | Callable[[Tensor, Tensor], Tensor], beta: float, least: float, eps: float,
                 weight_decay: float, defaults: dict[str, Any], step_size: StepSize, **options: Any) -> None:
        named = isinstance(precond, str) and precond in self.choices
        if not named and (isinstance(precond, str) or not callable(precond)):
            raise ValueError(f"precond must be one of {', '.join(map(repr, self.choices))}, or a function (x, g) -> B⁻¹ g of flattened "
                             f"tensors, got {precond!r}")
        rule = DIAGONALS[precond]() if isinstance(precond, str) else CustomMetric(precond)
        needed: dict[str, Any] = {}
        if precond == "hutchinson":
            needed = {"beta2": beta, "alpha": least}
        elif isinstance(rule, Preconditioned):
            needed = {"eps": eps} if precond in ("adagrad", "adagrad_sqr") else {"eps": eps, "betas": (0.0, beta)}
        super().__init__(params, rule, {**defaults, **needed, "weight_decay": weight_decay}, step_size=step_size, **options)

    def estimate(self, oracle: str, realisation: Any, t: int) -> Mapping[Tensor, Tensor]:
        return newton_directions(self.param_groups, realisation) if oracle == NEWTON else super().estimate(oracle, realisation, t)


def newton_directions(groups: list[dict[str, Any]], realisation: Any) -> dict[Tensor, Tensor]:
    """s with (H + λ) s = g + λ x, λ the weight decay, by conjugate gradients, as far as curvature is positive; else g + λ x."""
    owned = {id(p): group for group in groups for p in group["params"] if p.grad is not None}
    names = {name: p for name, p in realisation.variables.items() if id(p) in owned}
    sign = {name: -1.0 if owned[id(p)]["maximize"] else 1.0 for name, p in names.items()}
    decay = {name: float(owned[id(p)]["weight_decay"]) for name, p in names.items()}

    def split(v: Tensor) -> dict[str, Tensor]:
        parts = v.split([p.numel() for p in names.values()])
        return {name: part.view(p.shape) for part, (name, p) in zip(parts, names.items(), strict=True)}

    def product(v: Tensor) -> Tensor:
        given = split(v)
        found = realisation.hvp(None, {n: given.get(n, torch.zeros_like(p)) for n, p in realisation.variables.items()})
        return torch.cat([(sign[name] * found[name] + decay[name] * given[name]).reshape(-1) for name in names])

    b = torch.cat([(sign[name] * p.grad + decay[name] * p).reshape(-1) for name, p in names.items()])
    solved = conjugate_gradient(LinearOperator((len(b), len(b)), product, dtype=b.dtype, device=b.device), b, tol=TOLERANCE,
                                max_iterations=min(ITERATIONS, len(b)))
    found = split(solved.solution if bool(solved.solution.any()) else b)
    return {p: found[name] for name, p in names.items()}


@register("psps")
class PSPS(_Preconditioned):
    """x ← x − (f − f*)₊ / n · B⁻¹ g,  n = ⟨g, B⁻¹ g⟩: in the norm of B, the nearest point where the batch's linear model is f*.

    Needs the loss of the step's batch: ``opt.step(closure)`` or ``opt.step(objective(x, y))``; it is read at every step, to refuse a
    negative one. Hutchinson's B = max(|D|, α), D ← β D + (1 − β) z ∘ (H z), needs the latter, and D starts as a mean of
    ``warm_samples`` probes. AdaGrad's is √Σ g² + 1e-10, Adam's √v̂ + 1e-10. One state tensor, none for the identity. Where batches
    cannot all reach f* (noisy labels, a penalty), give f*, or a slack, which estimates by how much they cannot. Processes that share a
    model must share the loss. f* and λ are those of the first group.

    Parameters
    ----------
    params : iterable of Tensor or dict
    precond : {"hutchinson", "adagrad", "adam", "identity"} or callable, default "hutchinson"
        Or a function ``(x, g) -> B⁻¹ g`` of one flattened tensor. The identity is SPS.
    beta : float, default 0.999
        β of Hutchinson's and Adam's averages.
    alpha : float, default 1e-8
    slack : {None, "l1", "l2"}, default None
        The L1 form follows the scalar-slack literature with n in the norm of B⁻¹.
    lam : float, default 0.1
        λ of the slack; a larger one allows less of it.
    f_star : float, default 0
        f* of every batch; a batch below it is left out.
    lr : float, default 1
        Multiplies the step.
    weight_decay : float, default 0
        Added to the gradient, and not to f; the paper has none.
    warm_samples : int, default 10
    seed : int, default 0
        Of the probes.
    **options
        ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine.
    """

    choices: ClassVar[tuple[str, ...]] = ("hutchinson", "adagrad", "adam", "identity")

    def __init__(self, params: Any, precond: str | Callable[[Tensor, Tensor], Tensor] = "hutchinson", beta: float = 0.999,
                 alpha: float = 1e-8, slack: Literal["l1", "l2"] | None = None, lam: float = 0.1, f_star: float = 0.0, lr: float = 1.0,
                 weight_decay: float = 0.0, warm_samples: int = 10, seed: int = 0, **options: Unpack[EngineOptions]) -> None:
        if slack not in SLACKS:
            raise ValueError(f"slack must be 'l1', 'l2' or None, got {slack!r}")
        check_positive("alpha", alpha, "it keeps B from 0; 1e-8 is typical")
        defaults = {"lr": lr, "f_star": f_star, **({"lam": lam} if slack else {})}
        super().__init__(params, precond, beta, alpha, 1e-10, weight_decay, defaults, SLACKS[slack](), warm_samples=warm_samples,
                         seed=seed, **options)
        self.space = {"lam": LogUniform(1e-3, 10.0)} if slack else {}  # type: ignore[misc]


@register("sania")
class SANIA(_Preconditioned):
    """x ← x − λ B⁻¹ g,  λ = 1 − √(1 − 2 (f − f*) / n), or 1 where 2 (f − f*) > n = ⟨g, B⁻¹ g⟩.

    To the nearest point, in the norm of B, where f + ⟨g, Δ⟩ + ½ ⟨Δ, B Δ⟩ is f*: about (f − f*) / n for small losses, never more than
    the full step. Nothing to tune. With ε = 0 the squared forms do not see a scaling of variables, Newton's no linear map. Needs the
    loss, which must be that of the step's batch and not negative; Newton and Hutchinson need ``opt.step(objective(x, y))``.

    Parameters
    ----------
    params : iterable of Tensor or dict
    precond : {"adagrad_sqr", "adam_sqr", "adagrad", "adam", "hutchinson", "newton_cg"} or callable, default "adagrad_sqr"
        B = Σ g² + ε; v̂ + ε; their roots; max(|D|, ε) as in ``PSPS``; the Hessian of the batch, by conjugate gradients to a residual of
        1e-4, as far as its curvature is positive; or a function ``(x, g) -> B⁻¹ g``.
    beta2 : float, default 0.999
    eps : float, default 1e-8
        ε; 0 for exact invariance, where entries without any gradient so far stay. The authors' code for networks has max(B, 0.1).
    lr : float, default 1
        Multiplies λ.
    weight_decay
        As in ``PSPS``.
    f_star : float, default 0
        f* of every batch. Where batches cannot all reach it λ does not shrink.
    warm_samples, seed
        Of the probes.
    **options
        ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine.
    """

    choices: ClassVar[tuple[str, ...]] = ("adagrad_sqr", "adam_sqr", "adagrad", "adam", "hutchinson", "newton_cg")

    def __init__(self, params: Any, precond: str | Callable[[Tensor, Tensor], Tensor] = "adagrad_sqr", beta2: float = 0.999,
                 eps: float = 1e-8, lr: float = 1.0, f_star: float = 0.0, weight_decay: float = 0.0, warm_samples: int = 10,
                 seed: int = 0, **options: Unpack[EngineOptions]) -> None:
        if precond == "hutchinson":
            check_positive("eps", eps, "it keeps max(|D|, ε) from 0; 1e-8 is typical")
        super().__init__(params, precond, beta2, eps, eps, weight_decay, {"lr": lr, "f_star": f_star}, QuadraticPolyak(),
                         warm_samples=warm_samples, seed=seed, **options)
