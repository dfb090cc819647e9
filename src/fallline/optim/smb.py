"""SMB: a stochastic step that is corrected, tensor by tensor, by a quadratic model where it fails a test of decrease.

    s = −η g,  f_t = f(x + s) of the same batch;   where f_t ≤ f − c η ‖g‖² (norm over all tensors)  x ← x + s;   else, for each tensor,

    y = g_t − g,  σ = ½ (‖s‖ (‖y‖ + ‖g‖ / η̂) − ⟨y, s⟩),  θ = (⟨y, s⟩ + 2 σ)² − ‖s‖² ‖y‖²,  c_g = −‖s‖² / (2 σ)
    c_s = c_g / θ · (‖y‖² ⟨s, g⟩ − (⟨y, s⟩ + 2 σ) ⟨y, g⟩),  c_y = c_g / θ · (‖s‖² ⟨y, g⟩ − (⟨y, s⟩ + 2 σ) ⟨s, g⟩)
    x ← x + c_g g + c_s s + c_y y

Birbil, Martin, Onay, Öztoprak: Bolstering Stochastic Gradient Descent with Model Building, arXiv 2111.07058.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn, Unpack

import torch
from torch import Tensor

from fallline.core.errors import MissingOracle, NonFiniteError
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.engine.alarms import all_finite
from fallline.optim.engine.hyperparameters import check_nonnegative, check_positive
from fallline.optim.engine.layout import local
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.oracles import acts, gradients_at, of_minimised, refuse, value_at
from fallline.optim.engine.parts import Gradient
from fallline.optim.engine.state import working_dtype


@register("smb")
class SMB(Optimizer):
    """x ← x − η g where the batch's loss falls by c η ‖g‖² on it; else each tensor takes the step of a model through both points.

    Needs the loss again at the trial point: ``opt.step(objective(x, y))``, whose masks and statistics are the same for both, or any
    closure that evaluates the same batch whenever it is called. A step costs a gradient and a value, and a second gradient where the
    trial fails; it synchronises. A model step is at most η̂ times about as long as the trial. No state, but a gradient with independent
    batches.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1
        η, of the trial.
    eta : float, default 0.99
        η̂, which bounds the model step: equal gradients at both points give η̂ s.
    c : float, default 0.1
        Of the sufficient decrease.
    independent_batch : bool, default False
        SMBi: after a failed trial the point stays, and the next step is a model step from a trial of its own batch, from which s, y and
        ‖g‖ come, with the failed batch's gradient in the place of g elsewhere.
    epoch : int, optional
        Steps after which the learning rate is adapted: by ``beta`` down where more than a share ``gamma`` of them were model steps,
        else up by 1 / ``beta`` if that is at most ``lr_max``. (Half the share with independent batches.) By default it is not.
    gamma, beta, lr_max : float, default 0.05, 0.9, 20
    weight_decay : float, default 0
        Of the step that is taken; trials and models are without. The paper has none.
    **options
        ``nonfinite``, ``maximize`` of the engine.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-2, 10.0)}

    def __init__(self, params: Any, lr: float = 1.0, eta: float = 0.99, c: float = 0.1, independent_batch: bool = False,
                 epoch: int | None = None, gamma: float = 0.05, beta: float = 0.9, lr_max: float = 20.0, weight_decay: float = 0.0,
                 **options: Unpack[EngineOptions]) -> None:
        for name, value in (("eta", eta), ("c", c)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
                typical = 0.99 if name == "eta" else 0.1
                raise ValueError(f"{name} must be a number between 0 and 1, got {value!r}; {typical} is typical")
        if epoch is not None and (isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 1):
            raise ValueError(f"epoch must be a whole number of steps or None, got {epoch!r}")
        check_positive("lr_max", lr_max, "20 is typical")
        check_nonnegative("gamma", gamma, "0.05 is typical")
        if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 < beta <= 1:
            raise ValueError(f"beta must be a number in (0, 1], got {beta!r}; 0.9 is typical")
        self.eta, self.c, self.independent_batch, self.epoch = eta, c, independent_batch, epoch
        self.gamma, self.beta, self.lr_max = gamma, beta, lr_max
        super().__init__(params, Gradient(), {"lr": lr, "weight_decay": weight_decay}, **options)
        # Steps and model steps of this epoch; a group has them, so that they are saved.
        self.param_groups[0].setdefault("epoch_counts", [0, 0])

    def __getstate__(self) -> dict[str, Any]:
        own = ("eta", "c", "independent_batch", "epoch", "gamma", "beta", "lr_max")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def update(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refused: there is no pure form of a rule that evaluates the loss itself."""
        raise MissingOracle("SMB.update() takes gradients only, but every step needs the loss at a trial point: use step(objective(x))")

    @property
    def model_steps(self) -> int:
        """Model steps of this epoch so far."""
        return int(self.param_groups[0]["epoch_counts"][1])

    def evaluate(self, closure: Callable[[], Any] | None) -> Any:
        if closure is None:
            if acts(self.param_groups):
                refuse("SMB", "the loss again at a trial point", closure=True)
            return None
        loss = closure()
        groups = {p: group for group in self.param_groups for p in group["params"] if p.grad is not None}
        with torch.no_grad():
            found = {p: p.grad.to(working_dtype(p.dtype)) for p in groups if p.grad is not None}
            if not all_finite([local(g) for g in found.values() if g.numel()], []):
                return loss  # the engine raises, or leaves the step out
            gradients = of_minimised(found, self.param_groups)
            rates = {p: float(group["lr"]) for p, group in groups.items()}
            trials = {p: p - rates[p] * g for p, g in gradients.items()}
            failed = {p: self.state[p].pop("failed_gradient", None) for p in trials}
            waits = None not in failed.values()
            accepted = not waits and self._falls(gradients, rates, trials, loss, closure)
            if not accepted:
                step = self._hold(gradients) if self.independent_batch and not waits else \
                    self._model(gradients, rates, trials, failed, closure)
                for p, g in of_minimised(step, self.param_groups).items():
                    p.grad = g.to(p.dtype)
        self._count(modelled=not accepted and (waits or not self.independent_batch))
        return loss

    def _falls(self, gradients: Mapping[Tensor, Tensor], rates: Mapping[Tensor, float], trials: Mapping[Tensor, Tensor], loss: Any,
               closure: Any) -> bool:
        """Whether the trial decreases the batch's loss enough."""
        decrease = self.c * sum(rates[p] * float(torch.linalg.vector_norm(g)) ** 2 for p, g in gradients.items())
        sign = -1.0 if self.param_groups[0]["maximize"] else 1.0
        return sign * value_at(trials, closure) <= sign * float(loss) - decrease

    def _hold(self, gradients: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """No step, and the gradient kept for the next one."""
        for p, g in gradients.items():
            self.state[p]["failed_gradient"] = g.clone()
        return {p: torch.zeros_like(g) for p, g in gradients.items()}

    def _model(self, gradients: Mapping[Tensor, Tensor], rates: Mapping[Tensor, float], trials: Mapping[Tensor, Tensor],
               failed: Mapping[Tensor, Tensor | None], closure: Any) -> dict[Tensor, Tensor]:
        """The model step over −η, tensor by tensor."""
        there = of_minimised(gradients_at(trials, closure), self.param_groups)
        if self.nonfinite == "raise" and not all_finite([local(g) for g in there.values() if g.numel()], []):
            raise NonFiniteError(f"SMB's trial step, of lr {max(rates.values()):g}, leads where the gradient is not finite; lower lr")
        found = {}
        for p, g in gradients.items():
            earlier = failed[p]
            step = model_step(-rates[p] * g, there[p].to(g) - g, g if earlier is None else earlier, g, self.eta)
            found[p] = step / -rates[p] if rates[p] else torch.zeros_like(g)
        return found

    def _count(self, modelled: bool) -> None:
        counts = self.param_groups[0]["epoch_counts"]
        counts[0] += 1
        counts[1] += modelled
        if self.epoch is None or counts[0] < self.epoch:
            return
        # A model step with a batch of its own takes two.
        many = counts[1] / counts[0] > (self.gamma / 2 if self.independent_batch else self.gamma)
        for group in self.param_groups:
            changed = group["lr"] * self.beta if many else group["lr"] / self.beta
            group["lr"] = changed if many or changed <= self.lr_max else group["lr"]
        self.param_groups[0]["epoch_counts"] = [0, 0]


def model_step(s: Tensor, y: Tensor, g: Tensor, own: Tensor, eta: float) -> Tensor:
    """c_g g + c_s s + c_y y, and 0 for a tensor whose trial did not move; ‖g‖ in σ is that of ``own``, the trial's own gradient."""
    ss, yy, ys = (s * s).sum(), (y * y).sum(), (y * s).sum()
    yg, sg = (y * g).sum(), (s * g).sum()
    sigma = (ss.sqrt() * (yy.sqrt() + torch.linalg.vector_norm(own) / eta) - ys) / 2
    theta = (ys + 2 * sigma) ** 2 - ss * yy
    moves = (ss > 0) & (sigma > 0) & (theta > 0)
    sigma, theta = torch.where(moves, sigma, 1.0), torch.where(moves, theta, 1.0)
    c_g = -ss / (2 * sigma)
    c_s = c_g / theta * (yy * sg - (ys + 2 * sigma) * yg)
    c_y = c_g / theta * (ss * yg - (ys + 2 * sigma) * sg)
    return torch.where(moves, c_g * g + c_s * s + c_y * y, 0.0)
