"""Target-based surrogate optimization: one gradient of the loss at the model's outputs, many steps of the model towards it.

    z_t = z(θ_t) the outputs on a batch of B samples,   u = ∇ℓ(z_t)            the one call of the loss, whose mean over the batch is f
    g_t(θ) = ⟨u, z(θ) − z_t⟩ + ‖z(θ) − z_t‖² / (2 η_t B)
    θ_{t+1} = m steps of gradient descent on g_t from θ_t, of the model alone

    η_t = η,   η / √t,   or η T^{−t/T}

Where a sample's loss is L-smooth in its outputs and η ≤ 1/L, g_t + f(θ_t) lies above f, so that on all data f never rises. One step of
gradient descent, m = 1, is a step on f.

Lavington, Vaswani, Babanezhad, Schmidt, Le Roux: Target-based Surrogates for Stochastic Optimization, ICML 2023, arXiv 2302.02607.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NoReturn, Unpack, get_args

import torch
from torch import Tensor

from fallline.core.errors import MissingOracle, NonFiniteError
from fallline.core.line_search import backtracking
from fallline.core.objective import ModelProblem
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.engine.alarms import all_finite
from fallline.optim.engine.hyperparameters import check_positive
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.oracles import acts, of_minimised, refuse
from fallline.optim.engine.parts import Direction, Gradient

Inner = Literal["armijo", "gd", "adam", "lbfgs"]
Schedule = Literal["constant", "sqrt", "exponential"]
RATES: dict[str, float] = {"armijo": 10.0, "gd": 0.1, "adam": 1e-3, "lbfgs": 1.0}
SUFFICIENT, LONGER = 0.5, 2.0


@register("sso")
class SSO(Optimizer):
    """θ ← m inner steps on ⟨u, z(θ) − z_t⟩ + ‖z(θ) − z_t‖² / (2ηB), u the gradient of the loss at the outputs z_t.

    For losses whose gradient is dear where the model's is not: simulators, experts who label, losses over many. Needs the outputs and
    the loss of them apart: ``opt.step(objective(x, y))``; the outputs are one tensor. Dropout masks are the same all through a step,
    and batch-norm statistics move once.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, optional
        The inner learning rate; by default 0.1 for "gd", 0.001 for "adam", 10 for "armijo", where it is the first trial, and 1 for
        "lbfgs", whose line search needs none. A group with 0 rests.
    eta : float, default 2
        η: 1/L is safe, with L the smoothness of one sample's loss in its outputs: 2 for cross-entropy, 4 for the logistic loss, 1 for
        ½ (z − y)², half the number of outputs for ``mse_loss``, which averages over them too. Larger is often faster.
    inner_steps : int, default 10
        m; the authors take 1 to 1,000. On small batches many steps fit the batch.
    inner : {"armijo", "gd", "adam", "lbfgs"}, default "armijo"
        What takes them. They start anew every step: nothing is kept.
    eta_schedule : {"constant", "sqrt", "exponential"}, default "constant"
        Of η_t. Constant is for full batches and where the model fits every sample; the others let the noise die out.
    horizon : int, optional
        T, how many steps there will be; needed by "exponential".
    weight_decay : float, default 0
        Adds ½ weight_decay ‖θ‖² to the surrogate: it is part of the objective, and calls no loss. The paper has none.
    **options
        ``nonfinite``, ``maximize`` of the engine.

    Notes
    -----
    ``oracle_calls`` says how often the loss was differentiated: once a step. A problem counts that as ``oracle_calls``, passes through
    the model and back as ``gradients``, and the line search's passes as ``values``.

    The loss has to be a mean over the batch's samples, as everywhere here: u is then B times less than a sample's own gradient, which
    the B in the surrogate makes up for. Armijo asks for half of the decrease that the slope promises, halves its trials, and begins an
    inner step at twice the last one; the authors' code asks for the same decrease and takes factors 0.9 and 1.8. Their code also
    has twice the quadratic term; here it is the paper's.
    """

    space: ClassVar[Mapping[str, Range]] = {"eta": LogUniform(0.5, 64.0)}

    def __init__(self, params: Any, lr: float | None = None, eta: float = 2.0, inner_steps: int = 10, inner: Inner = "armijo",
                 eta_schedule: Schedule = "constant", horizon: int | None = None, weight_decay: float = 0.0,
                 **options: Unpack[EngineOptions]) -> None:
        check_positive("eta", eta, "1/L is typical: 2 for cross-entropy")
        for name, value, choices in (("inner", inner, get_args(Inner)), ("eta_schedule", eta_schedule, get_args(Schedule))):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
        for name, number in (("inner_steps", inner_steps), ("horizon", 1 if horizon is None else horizon)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {number!r}")
        if eta_schedule == "exponential" and horizon is None:
            raise ValueError("horizon must be given with eta_schedule='exponential': the number of steps that will be taken")
        self.eta, self.inner_steps, self.inner, self.eta_schedule, self.horizon = eta, inner_steps, inner, eta_schedule, horizon
        super().__init__(params, Gradient(), {"lr": RATES[inner] if lr is None else lr, "weight_decay": weight_decay}, **options)
        # A group has the number of steps, so that it is saved.
        self.param_groups[0].setdefault("oracle_calls", 0)

    def __getstate__(self) -> dict[str, Any]:
        own = ("eta", "inner_steps", "inner", "eta_schedule", "horizon")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def update(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refused: there is no pure form of a rule that evaluates the model itself."""
        raise MissingOracle("SSO.update() takes gradients only, but every step needs the model's outputs: use step(objective(x, y))")

    @property
    def oracle_calls(self) -> int:
        """How often the loss was differentiated at the outputs."""
        return int(self.param_groups[0]["oracle_calls"])

    def needs_more_than_gradients(self) -> str:
        return "the model's outputs"

    def check_group(self, group: Mapping[str, Any]) -> None:
        if group["maximize"] != self.param_groups[0]["maximize"]:
            raise ValueError("maximize must be the same in all groups: there is one surrogate for all of them")

    def eta_at(self, t: int) -> float:
        """η_t, from t = 1."""
        if self.eta_schedule == "sqrt":
            return self.eta / math.sqrt(t)
        if self.eta_schedule == "exponential" and self.horizon is not None:
            return float(self.eta * self.horizon ** (-t / self.horizon))
        return self.eta

    def coefficients(self, direction: Direction, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        # The gradient that the engine sees is the whole step.
        return {**super().coefficients(direction, group, t), "lr": 1.0, "weight_decay": 0.0}

    def evaluate(self, closure: Callable[[], Any] | None) -> Any:
        if closure is None and not acts(self.param_groups):
            return None
        if not isinstance(closure, ModelProblem):
            refuse("SSO", "the model's outputs")
        calls = self.param_groups[0]["oracle_calls"] + 1
        surrogate = Surrogate(closure, self, self.eta_at(calls))
        before = {p: p.detach().clone() for p in surrogate.rates}
        try:
            INNER[self.inner](surrogate, self.inner_steps)
            if not surrogate.finite and self.nonfinite == "raise":
                raise NonFiniteError("SSO's surrogate has NaN or infinite values or slopes; lower eta or lr, or look at the data")
            with torch.no_grad():
                moved = {p: x - p if surrogate.finite else torch.full_like(p, math.nan) for p, x in before.items()}
                steps = of_minimised(moved, self.param_groups)
        finally:
            with torch.no_grad():
                for p, x in before.items():
                    p.copy_(x)
        for p in closure.variables.values():
            p.grad = None
        for p, step in steps.items():
            self.state.setdefault(p, {})
            p.grad = step
        self.param_groups[0]["oracle_calls"] = calls
        return surrogate.loss


class Surrogate:
    """g_t, of the parameters in place; it calls the loss when it is made, and never again."""

    def __init__(self, realisation: ModelProblem, optimizer: SSO, eta: float) -> None:
        self.realisation, groups = realisation, optimizer.param_groups
        used = {id(p) for p in realisation.variables.values()}
        chosen = [(p, group) for group in groups for p in group["params"] if id(p) in used]
        if not chosen:
            raise ValueError("params must be parameters of the objective's model, and none is")
        self.rates = {p: float(group["lr"]) for p, group in chosen}
        self._decay = {p: float(group["weight_decay"]) for p, group in chosen if group["weight_decay"]}
        self._first: Tensor | None = self._outputs()
        self._targets = self._first.detach()
        self._slope, self.loss = self._differentiated(self._targets.clone().requires_grad_())
        if groups[0]["maximize"]:
            self._slope = -self._slope
        self._curvature = 1 / (eta * realisation.samples)
        self.finite = True
        """Whether values and slopes have been so far."""

    def _differentiated(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """u and the loss."""
        self.realisation.counts.add("oracle_calls")
        loss = self.realisation.loss(outputs)
        if loss.numel() != 1 or not loss.requires_grad:
            raise TypeError("loss_fn must return one number that depends on the outputs through torch operations, got a tensor of "
                            f"shape {tuple(loss.shape)}" + ("" if loss.requires_grad else " that does not require gradients"))
        (slope,) = torch.autograd.grad(loss.reshape(()), outputs)
        return slope, loss.detach().reshape(())

    def _outputs(self) -> Tensor:
        outputs = self.realisation.outputs()
        if not isinstance(outputs, Tensor):
            raise TypeError(f"the model's outputs must be one tensor for SSO, got a {type(outputs).__name__}; let the model return the "
                            "tensor that the loss is differentiated by")
        return outputs

    def _at(self, outputs: Tensor) -> Tensor:
        moved = outputs - self._targets
        value = (self._slope * moved).sum() + self._curvature / 2 * moved.square().sum()
        for p, decay in self._decay.items():
            value = value + decay / 2 * p.square().sum()
        return value

    def value(self) -> float:
        """g_t here."""
        self.realisation.counts.add("values")
        with torch.no_grad():
            return float(self._at(self._outputs()))

    def differentiate(self) -> Tensor:
        """Put ∇g_t into ``.grad`` and return g_t; the first time at θ_t, from the outputs that are known."""
        self.realisation.counts.add("gradients")
        self.realisation.counts.add("samples", self.realisation.samples)
        with torch.enable_grad():
            outputs = self._outputs() if self._first is None else self._first
            self._first = None
            value = self._at(outputs)
            gradients = torch.autograd.grad(value, list(self.rates), allow_unused=True)
        for p, g in zip(self.rates, gradients, strict=True):
            p.grad = torch.zeros_like(p) if g is None else g
        self.finite = self.finite and all_finite([value.detach(), *(g for g in gradients if g is not None and g.numel())], [])
        return value.detach()


def _descend(rule: Callable[..., torch.optim.Optimizer]) -> Callable[[Surrogate, int], None]:
    """Steps of a rule of torch's."""

    def run(surrogate: Surrogate, steps: int) -> None:
        optimizer = rule([{"params": [p], "lr": rate} for p, rate in surrogate.rates.items()])
        for _ in range(steps):
            surrogate.differentiate()
            optimizer.step()

    return run


def _armijo(surrogate: Surrogate, steps: int) -> None:
    """Gradient descent with backtracking, along the gradient times the groups' rates."""
    longest = 1.0
    for _ in range(steps):
        value = float(surrogate.differentiate())
        directions = [(p, p.detach().clone(), -rate * p.grad) for p, rate in surrogate.rates.items() if p.grad is not None]
        slope = float(torch.stack([(p.grad * d).sum().double() for p, _, d in directions if p.grad is not None]).sum())
        if not (math.isfinite(slope) and slope < 0 and math.isfinite(value)):
            return

        def move(step: float, directions: list[tuple[Tensor, Tensor, Tensor]] = directions) -> None:
            with torch.no_grad():
                for p, x, d in directions:
                    p.copy_(x + step * d)

        def tried(step: float, move: Callable[[float], None] = move) -> float:
            move(step)
            return surrogate.value()

        found = backtracking(tried, value, slope, step=longest, c1=SUFFICIENT)
        move(found.step)
        if not found.success:
            return
        longest = min(1.0, LONGER * found.step)


def _lbfgs(surrogate: Surrogate, steps: int) -> None:
    moving = [p for p, rate in surrogate.rates.items() if rate]
    if moving:
        torch.optim.LBFGS(moving, max_iter=steps, tolerance_grad=0.0, tolerance_change=0.0,
                          line_search_fn="strong_wolfe").step(surrogate.differentiate)


INNER: dict[str, Callable[[Surrogate, int], None]] = {"armijo": _armijo, "gd": _descend(torch.optim.SGD),
                                                      "adam": _descend(torch.optim.Adam), "lbfgs": _lbfgs}
