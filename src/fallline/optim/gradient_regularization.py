"""Gradient regularisation by a second evaluation of the same realisation, over any rule.

    forward    g + γ (∇L(θ + ε g) − g) / ε             backward    g + γ (g − ∇L(θ − ε g)) / ε
    double     g + γ H g                                flooding    g where L ≥ b, −g below

with g = ∇L(θ): gradients of L + (γ / 2) ‖∇L‖², exactly or up to O(ε). γ = ε in forward form is SAM without normalisation, ∇L(θ + ε g).

Karakida, Takase, Hayase, Osawa: Understanding Gradient Regularization in Deep Learning, ICML 2023, arXiv 2210.02720.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NoReturn

import torch
from torch import Tensor

from fallline.core.errors import MissingOracle
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.engine.hyperparameters import check_finite, check_positive
from fallline.optim.engine.oracles import acts, gradients_at, of_minimised, refuse
from fallline.optim.engine.over import Base, Over
from fallline.optim.engine.parts import Add, DecoupledDecay, Displace, Replace
from fallline.optim.survey import SGD

MODES = ("forward", "backward", "double", "flooding")


@register("grad-reg")
class GradReg(Over):
    """Steps of a base rule along g + γ (∇L(θ + ε g) − g) / ε, the gradient of L + (γ / 2) ‖∇L‖² up to O(ε).

    Needs the loss again at another point: ``opt.step(objective(x, y))``, whose dropout masks are the same for both and whose batch
    statistics move once, or any closure that evaluates the same batch whenever it is called; ``"double"`` needs ``objective(x, y)``.
    The weights come back exactly. ``"forward"`` and ``"backward"`` cost two gradients, ``"double"`` one and a Hessian-vector product.
    γ, ε and the mode are fixed when it is made. The ascent is not normalised; γ L₂ η must stay below 1 for the largest curvature L₂.

    Parameters
    ----------
    params : iterable of Tensor or dict
    base : str or class, default SGD
        Any rule of the library.
    gamma : float, default 0.01
        γ.
    eps : float, default 0.05
        ε, the length of the ascent in units of g.
    mode : {"forward", "backward", "double", "flooding"}, default "forward"
    level : float, default 0
        b of flooding, |L − b| + b: below it the step goes uphill. γ and ε have no part in it: alternating steps of length η around b
        are what the other modes do with ε = η.
    **hyperparameters
        Of the base; and ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine. A base's own ``gamma``, ``eps``, ``mode``
        or ``level`` is set in the base: ``base=functools.partial(AdamW, eps=1e-6)``.

    Notes
    -----
    In half precision θ + ε g may round to θ, and nothing is left of the regularisation: keep the weights in float32 and compute under
    autocast. A closure that is not ``objective(x, y)`` adds to the gradients of parameters that this optimizer does not have.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 1.0), "gamma": LogUniform(1e-4, 1.0)}

    def __init__(self, params: Any, base: Base = SGD, gamma: float = 0.01, eps: float = 0.05,
                 mode: Literal["forward", "backward", "double", "flooding"] = "forward", level: float = 0.0,
                 **hyperparameters: Any) -> None:
        check_positive("gamma", gamma, "0.01 is typical")
        check_positive("eps", eps, "0.05 is typical")
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}")
        check_finite("level", level, "the loss to stay at")
        self.gamma, self.eps, self.mode, self.level = gamma, eps, mode, level
        super().__init__(params, base, hyperparameters)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in ("gamma", "eps", "mode", "level")}}

    def check_base(self) -> None:
        super().check_base()
        if self.reevaluates:
            raise TypeError(f"GradReg cannot go over {type(self.base).__name__} as it is set: it compares gradients at its own points, "
                            "which would not be regularised; use a base such as SGD, Momentum or Adam")

    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        for p in group["params"]:
            move = self.rule.move_for(p, group)
            if type(move) not in (Add, Displace, DecoupledDecay, Replace):
                raise TypeError(f"GradReg cannot go over {type(self.base).__name__} here: its move is a {type(move).__name__}, and "
                                "θ + ε g would leave where its parameters belong")

    def update(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refused: there is no pure form of a rule that evaluates the loss itself."""
        raise MissingOracle("GradReg.update() takes gradients only, but every step needs the loss again at another point: use "
                            "step(objective(x))")

    def evaluate(self, closure: Callable[[], Any] | None) -> Any:
        if closure is None or (self.mode == "double" and not hasattr(closure, "hvp")):
            if not acts(self.param_groups):
                return super().evaluate(closure)
            refuse("GradReg", "Hessian-vector products" if closure is not None else "the loss again at another point",
                   closure=self.mode != "double")
        loss = super().evaluate(closure)
        if loss is None and self.mode == "flooding":
            raise ValueError("closure must return the loss for mode='flooding', which compares it with level, and it returned None")
        found = {p: p.grad for group in self.param_groups for p in group["params"] if p.grad is not None}
        with torch.no_grad():
            regularised = self._regularised(of_minimised(found, self.param_groups), closure, loss)
            for p, g in of_minimised(regularised, self.param_groups).items():
                p.grad = g
        return loss

    def _regularised(self, gradients: Mapping[Tensor, Tensor], closure: Any, loss: Any) -> dict[Tensor, Tensor]:
        """The direction of descent of what is minimised, from its gradients."""
        if self.mode == "flooding":
            sign = torch.where(torch.as_tensor(loss) < self.level, -1.0, 1.0)
            return of_minimised({p: g * sign.to(g) for p, g in gradients.items()}, self.param_groups)
        if self.mode == "double":
            names = {id(p): name for name, p in closure.variables.items()}
            if any(id(p) not in names for p in gradients):
                refuse("GradReg", "Hessian-vector products of every parameter it optimizes")
            direction = {name: gradients.get(p, torch.zeros_like(p)) for name, p in closure.variables.items()}
            products = closure.hvp(None, direction)
            curved = of_minimised({p: products[names[id(p)]] for p in gradients}, self.param_groups)
            return {p: g + self.gamma * curved[p] for p, g in gradients.items()}
        reach = self.eps if self.mode == "forward" else -self.eps
        points = {p: p + reach * g for p, g in gradients.items()}
        there = of_minimised(gradients_at(points, closure), self.param_groups)
        return {p: g + self.gamma / reach * (there[p] - g) for p, g in gradients.items()}


def effective_alpha(u: Tensor, v: Tensor) -> Tensor:
    """Return √|u ∘ v|, the scale of a diagonal linear network's start entry by entry, as far as it still acts.

    For f = ⟨u² − v², x⟩ gradient flow keeps it at the α of a start u = v = α, and small steps nearly; the regularisation lets it fall,
    (log u_i v_i)' = −8 γ q_i² with q the gradient by u² − v²: towards sparse solutions.
    """
    return (u * v).abs().sqrt()
