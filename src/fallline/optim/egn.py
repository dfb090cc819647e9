"""Exact Gauss-Newton: the damped Gauss-Newton step of a batch, solved in the space of its outputs.

    δ = (Q K + λ I)⁻¹ r,  d = −Jᵀ δ,    which is  d = −(Jᵀ Q J + λ I)⁻¹ ∇L;    K = J Jᵀ
    v ← μ v + (1 − μ) d,    w ← μ w + 1 − μ,    θ ← θ + α v / w

with J the Jacobian of the outputs of b samples, r and Q gradient and Hessian of the batch's loss in them; from w = 0, and μ constant,
w is the paper's 1 − μᵗ.

Korbit, Adeoye, Bemporad, Zanon: Exact Gauss-Newton Optimization for Training Deep Neural Networks, arXiv 2405.14402.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor

from fallline.core.curvature import GaussNewton, push_through
from fallline.core.line_search import backtracking
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.engine.optimizer import EngineOptions
from fallline.optim.engine.parts import DecoupledDecay, Gradient
from fallline.optim.whole_batch import WholeBatch, WholeBatchOptimizer, differentiated, together

TRIALS = 10
POOR, GOOD, RAISE, LOWER, LEAST, MOST = 0.25, 0.75, 1.01, 0.99, 1e-6, 1e3


@register("egn")
class EGN(WholeBatchOptimizer):
    """θ ← θ − η (Jᵀ Q J + λ I)⁻¹ ∇L, exactly, by a system of as many unknowns as the batch has outputs.

    Needs the outputs and the loss of them apart: ``opt.step(objective(x, y))``; the outputs are one tensor. With n = samples × outputs
    of a sample and d parameters a step costs n backward passes of a sample, n² d for K and n³ for the solution, and holds n d numbers,
    or at most 2²⁷ (512 MiB in float32), and J is taken twice, by tensors. The loss may be any function that is convex in the outputs, a
    mean or a sum: r and Q are its own derivatives, and λ is in its units. K and the solution are in float64: in a model of precision ε
    a λ below about ε ‖Jᵀ Q J‖ is lost in Q's own rounding, if not for a squared error.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1
        η, and the first trial of the line search. A group with 0 rests, and has no part in the curvature.
    damp : float, default 1
        λ, the same in all groups.
    momentum : float, default 0
        μ.
    line_search : {None, "armijo"}, default None
        Halve η until the batch's loss falls by 1e-4 of what the slope promises, ten times at most; else no step is taken. Where v goes
        uphill on the batch, its d takes its place. The authors' code asks for a tenth and shrinks by 0.8, from 1.5 times the last step.
    adaptive_damp : bool, default False
        λ ← 1.01 λ where the batch's loss falls by less than a quarter of what the quadratic model promises, 0.99 λ where by more than
        three quarters, within 1e-6 and 1e3. The factors are those of the authors' code; the bounds are not in it.
    weight_decay : float, default 0
        Decoupled, of the step that is taken and not of the trials. The paper has none.
    **options
        ``nonfinite``, ``maximize`` of the engine.

    Notes
    -----
    Q K is not symmetric, and is solved by LU for every loss, where for a squared error Cholesky's factors would do. A model that
    normalises samples by their batch has no Jacobian of a sample, and is refused.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-2, 1.0), "damp": LogUniform(1e-4, 10.0)}
    derivatives: ClassVar[int] = 2
    need: ClassVar[str] = "the model's outputs"

    def __init__(self, params: Any, lr: float = 1.0, damp: float = 1.0, momentum: float = 0.0,
                 line_search: Literal["armijo"] | None = None, adaptive_damp: bool = False, weight_decay: float = 0.0,
                 **options: Unpack[EngineOptions]) -> None:
        if line_search not in (None, "armijo"):
            raise ValueError(f"line_search must be None or 'armijo', got {line_search!r}")
        if not isinstance(adaptive_damp, bool):
            raise ValueError(f"adaptive_damp must be True or False, got {adaptive_damp!r}")
        self.line_search, self.adaptive_damp = line_search, adaptive_damp
        defaults = {"lr": lr, "damp": damp, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, Gradient(), defaults, move=DecoupledDecay(), **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "line_search": self.line_search, "adaptive_damp": self.adaptive_damp}

    def check_group(self, group: Mapping[str, Any]) -> None:
        together(self, group, "damp")

    def evaluate(self, closure: Callable[[], Any] | None) -> Any:
        batch = differentiated(self, closure, "per_sample_jacobians", self.need)
        if batch is None:
            return None
        if batch.finite:
            with torch.no_grad(), batch.left_out():
                self._descend(batch)
        return batch.loss

    def _descend(self, batch: WholeBatch) -> None:
        model, damp = batch.linearized(), float(self.param_groups[0]["damp"])
        newest = push_through(batch.closure, model, damp, batch.sign)
        if not self._descends(batch.gradient, newest):
            raise batch.indefinite(damp)
        step, weights, keep = self._averaged(batch, newest)
        if self.line_search is not None and not batch.slope(step) < 0:
            step = newest  # the average goes uphill on this batch
        # Before trials move the weights, whose graph the model keeps.
        slope, curvature = batch.slope(step), self._curvature(batch, model, step) if self.adaptive_damp else 0.0
        alpha, value = 1.0, None
        if self.line_search is not None and slope < 0:
            found = backtracking(lambda a: batch.value_after(a * step), batch.value(), slope, max_evaluations=TRIALS)
            alpha, value = found.step, found.value
        if not batch.take(alpha * step, **keep):
            return
        for p, weight in weights.items():
            self.state[p]["weight"] = weight
        if self.adaptive_damp:
            value = batch.value_after(step) if value is None else value
            self._adapt(value - batch.value(), alpha * slope + alpha**2 * curvature / 2)

    @staticmethod
    def _descends(gradient: Tensor, newest: Tensor) -> bool:
        """Whether ⟨∇L, x⟩ = ⟨x, (G + λ I) x⟩ is positive, to within rounding; what is not finite is for ``take`` to see."""
        sizes = torch.linalg.vector_norm(gradient) * torch.linalg.vector_norm(newest)
        return not bool(gradient @ newest < -(torch.finfo(newest.dtype).eps ** 0.5) * sizes)

    @staticmethod
    def _curvature(batch: WholeBatch, model: GaussNewton, step: Tensor) -> float:
        """⟨s, G s⟩ of the move s = −η u."""
        outputs = model.jvp(-batch.rates * step)
        return batch.sign * float((outputs * model.output_hessian(outputs)).sum())

    def _averaged(self, batch: WholeBatch, newest: Tensor) -> tuple[Tensor, dict[Tensor, float], dict[str, Tensor]]:
        """v / w, the w of every parameter, and what else to keep."""
        momenta = [float(group["momentum"]) for group in batch.groups]
        if not any(momenta):
            return newest, {}, {}
        mu, old = batch.spread(momenta), batch.kept("exp_avg")
        average = (1 - mu) * newest if old is None else torch.lerp(newest, old, mu)
        weights = {p: m * self.state[p].get("weight", 0.0) + 1 - m for p, m in zip(batch.variables.values(), momenta, strict=True)}
        return average / batch.spread(list(weights.values())), weights, {"exp_avg": average}

    def _adapt(self, change: float, expected: float) -> None:
        """Follow the ratio of the loss's change and the quadratic model's, ⟨g, s⟩ + ½ ⟨s, G s⟩."""
        ratio = change / expected if expected < 0 else 0.0
        factor = RAISE if not ratio >= POOR else LOWER if ratio > GOOD else 1.0
        for group in self.param_groups:
            group["damp"] = min(max(factor * group["damp"], LEAST), MOST)
