"""Natural gradients from a linear system per step: solved by conjugate gradients, or as an analog thermodynamic device would solve it.

    (F + λ I) x = g,    F = Jᵀ Q J of the batch,    θ moves by the base rule along x in the place of g

    digital     x by conjugate gradients
    analog      x(t) of  dx = −((F + λ I) x − g) ds + √(2/β) dW,  from the last step's x or from g

E x(t) = x_∞ + e^{−(F + λ I) t} (x(0) − x_∞): from x(0) = g the time t = 0 gives the gradient, t → ∞ the natural gradient x_∞.

Donatella, Duffield, Aifer, Melanson, Crooks, Coles: Thermodynamic Natural Gradient Descent, arXiv 2405.13817.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fallline.core.keys import Key
from fallline.core.operators import OUSolver, conjugate_gradient
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.engine.hyperparameters import check, check_nonnegative, check_positive
from fallline.optim.engine.over import Base, Over
from fallline.optim.survey import SGD
from fallline.optim.whole_batch import WholeBatch, WholeBatchOptimizer, differentiated, together


@register("tngd")
class TNGD(WholeBatchOptimizer, Over):
    """Steps of a base rule along the damped natural gradient (F + λ I)⁻¹ g of the batch.

    By default the natural gradient is digital, by conjugate gradients from the last step's solution, and nothing is simulated. With
    ``analog_time`` the paper's device is simulated in their place: a circuit whose voltages relax to the solution, with the noise of
    its temperature. The simulation costs a product with F for every ``dt``, more than conjugate gradients do; how long the device
    itself would run is told apart from that, in its own units, as ``device_time``, and is no speed of this machine.

    Needs the outputs and the loss of them apart: ``opt.step(objective(x, y))``; the outputs are one tensor, the loss is convex in them.

    Parameters
    ----------
    params : iterable of Tensor or dict
    base : str or class, default SGD
        The rule that takes x for its gradient, any of the library that needs gradients only: "adam" makes TNGD-Adam.
    damp : float, default 0.1
        λ > 0, the same in all groups: a softmax, like most networks, makes F singular.
    tol : float, default 1e-5
        Of conjugate gradients: ‖g − (F + λ I) x‖ ≤ tol ‖g‖.
    analog_time : float, optional
        t, in units of the inverse of F: how long the device runs before x is read. None, the default, is digital.
    dt : float, default 0.1
        The longest step of the simulation; it is shortened to what the largest curvature allows.
    beta_inv : float, default 0
        1/β, the device's temperature: x has the covariance β⁻¹ (F + λ I)⁻¹ about the natural gradient.
    delay : float, default 0
        How long the device goes on under this step's curvature and gradient, after x is read, while the next ones are being computed.
    warm_start : bool, default True
        Begin at the last step's x; else, as at the first step, at g.
    average : bool, default False
        Read the mean of x over the run in the place of its end.
    seed : int, default 0
        Of the noise.
    **hyperparameters
        Of the base; and ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine.

    Notes
    -----
    ``device_time`` is the sum of all times for which the device ran, read or not. Products are counted as ``matvecs``, those of the
    simulation and its guard included. A group with ``lr`` = 0 has no part in the curvature, and its state stays as it is.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-3, 1.0), "damp": LogUniform(1e-3, 1.0)}
    derivatives: ClassVar[int] = 2
    need: ClassVar[str] = "the model's outputs"

    def __init__(self, params: Any, base: Base = SGD, damp: float = 0.1, tol: float = 1e-5, analog_time: float | None = None,
                 dt: float = 0.1, beta_inv: float = 0.0, delay: float = 0.0, warm_start: bool = True, average: bool = False,
                 seed: int = 0, **hyperparameters: Any) -> None:
        check_positive("tol", tol, "1e-5 is typical")
        check_positive("dt", dt, "0.1 is typical")
        check_nonnegative("beta_inv", beta_inv, "0 is a device without noise")
        check_nonnegative("delay", delay, "in units of analog_time")
        check("seed", seed)
        if analog_time is not None:
            check_nonnegative("analog_time", analog_time, "or None to solve digitally; 1 is typical")
        elif beta_inv or delay or average:
            raise ValueError("beta_inv, delay and average are the analog device's: give analog_time, how long it runs, or leave them")
        for name, value in (("warm_start", warm_start), ("average", average)):
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be True or False, got {value!r}")
        self.tol, self.analog_time, self.dt, self.beta_inv = tol, analog_time, dt, beta_inv
        self.delay, self.warm_start, self.average, self.seed = delay, warm_start, average, int(seed)
        super().__init__(params, base, hyperparameters, damp=damp)
        # A group has the sum, so that it is saved.
        self.param_groups[0].setdefault("device_time", 0.0)

    def __getstate__(self) -> dict[str, Any]:
        own = ("tol", "analog_time", "dt", "beta_inv", "delay", "warm_start", "average", "seed")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def check_base(self) -> None:
        super().check_base()
        if need := self.base.needs_more_than_gradients():
            raise TypeError(f"TNGD goes over a rule that needs gradients only, and {type(self.base).__name__} needs {need}; use a base "
                            "such as SGD, Momentum or Adam")

    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        together(self, group, "damp")

    @property
    def device_time(self) -> float:
        """How long the simulated device has run, in units of ``analog_time``; 0 where all is digital."""
        return float(self.param_groups[0]["device_time"])

    def evaluate(self, closure: Callable[[], Any] | None) -> Any:
        batch = differentiated(self, closure, "outputs", self.need)
        if batch is None:
            return None
        if batch.finite:
            with torch.no_grad(), batch.left_out():
                found, last = (self._digital if self.analog_time is None else self._analog)(batch)
                batch.take(found, **({"natural_gradient": last} if self.warm_start else {}))
        return batch.loss

    def _digital(self, batch: WholeBatch) -> tuple[Tensor, Tensor]:
        system = batch.gauss_newton().shifted(float(self.param_groups[0]["damp"]))
        found = conjugate_gradient(system, batch.gradient, x0=batch.kept("natural_gradient"), tol=self.tol)
        if found.status == "nonfinite":
            raise batch.not_finite()  # the solver's iterate is finite: the last step's solution, or what came before the overflow
        if found.status == "indefinite":
            raise batch.indefinite(self.param_groups[0]["damp"])
        return found.solution, found.solution

    def _analog(self, batch: WholeBatch) -> tuple[Tensor, Tensor]:
        """x as it is read, and where the device stands when the next gradient comes."""
        assert self.analog_time is not None
        solver = OUSolver(batch.gauss_newton(), batch.gradient, float(self.param_groups[0]["damp"]), dt=self.dt, beta_inv=self.beta_inv)
        taken = max(batch.steps_taken())
        noise = Key(self.seed).fold("noise", taken).generator() if self.beta_inv else None
        start = batch.kept("natural_gradient")
        found = solver.run(self.analog_time, batch.gradient if start is None else start, generator=noise, average=self.average)
        last = solver.run(self.delay, found.last, generator=noise).last if self.delay else found.last
        self.param_groups[0]["device_time"] = self.device_time + self.analog_time + self.delay
        return found.solution, last
