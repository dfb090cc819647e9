"""A central path to graphs without cycles: the log-determinant as the barrier, minimised by Adam in stages.

    h_s(W) = −log det(sI − W∘W) + d log s,   ∇h_s = 2 W ∘ (sI − W∘W)⁻ᵀ : 0 exactly for graphs without cycles
    stage t: min μ_t (loss(W) + λ‖W‖₁) + h_{s_t}(W)  from the stage before,   μ_t = 1, 0.1, 0.01, …
    step:    g = μ_t (∇loss(W) + λ sign W) + ∇h_{s_t}(W),   W ← W − lr · Adam(g), its moments fresh in every stage
    domain:  sI − W∘W is an M-matrix exactly where its inverse is ≥ 0; where an entry falls below −10⁻⁶ the last step is halved, with
             lr for all later ones; in a stage's first iteration, or where s ≤ 0.9, the stage begins again with lr/2 and s + 0.1
    end of a stage: its iterations, or a relative change of the objective of at most 10⁻⁶ between two checks

Bello, Aragam, Ravikumar: DAGMA, NeurIPS 2022, arXiv 2209.08037; Saboksayr, Mateos, Tepper: CoLiDE, ICLR 2024, arXiv 2310.02895. The
papers' code has the same guard; their text does not go into it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fallline.core.checks import check_count
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.space import LogUniform, Range
from fallline.graphs.structure import KINDS

OUTSIDE = -1e-6
SMALLEST_LR = 1e-16


@dataclass(frozen=True)
class LogDetPath(Method):
    """An iteration of Adam a step, through all stages; the defaults are CoLiDE's.

    Parameters
    ----------
    lr : float, default 3e-4
    s : tuple of float, default (1, 0.9, 0.8, 0.7)
        Of every stage; they are as many as these.
    factor : float, default 0.1
        From one μ to the next, the first being 1.
    iterations : int, default 20,000
        A stage, but for the last one.
    last_iterations : int, default 70,000
    check_every : int, default 1,000
        Iterations between looks at the objective.
    tol : float, default 1e-6
    betas : pair of float, default (0.99, 0.999)

    Notes
    -----
    Takes any ``Score``. An iteration costs an inverse and a few products of (d, d) matrices, and looks at the inverse on the host. The
    certificate names μ, s and h_s(W) of the last look. Use float64: near the edge of the domain float32 inverses are noise.
    """

    lr: float = 3e-4
    s: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7)
    factor: float = 0.1
    iterations: int = 20_000
    last_iterations: int = 70_000
    check_every: int = 1_000
    tol: float = 1e-6
    betas: tuple[float, float] = (0.99, 0.999)

    needs: ClassVar[tuple[str, ...]] = ("smooth", "term", "value")
    kinds: ClassVar[tuple[str, ...]] = KINDS
    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 1e-2)}

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be a positive number, got {self.lr!r}")
        object.__setattr__(self, "s", tuple(map(float, self.s)))
        if not self.s or not all(math.isfinite(s) and s > 0 for s in self.s):
            raise ValueError(f"s must be positive numbers, one a stage, got {self.s!r}")
        if not 0 < self.factor < 1:
            raise ValueError(f"factor must lie in (0, 1), got {self.factor!r}")
        for name in ("iterations", "last_iterations", "check_every"):
            check_count(name, getattr(self, name), "the defaults are 20,000, 70,000 and 1,000")
        if not self.tol >= 0:
            raise ValueError(f"tol must be at least 0, got {self.tol!r}")
        if not (len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)):
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas!r}")

    def init(self, problem: Problem, key: Key) -> State:
        return self._begun({"W": problem.x0.clone(), "stage": 0, "h": math.nan, "done": False}, self.lr, self.s[0])

    def _begun(self, state: State, lr: float, s: float) -> State:
        """The state before a stage's first iteration."""
        W = state["W"]
        return {**state, "start": W.clone(), "first_lr": lr, "lr": lr, "s": s, "t": 0,
                "scaled_identity": s * torch.eye(len(W), dtype=W.dtype, device=W.device), "mean": torch.zeros_like(W),
                "square": torch.zeros_like(W), "move": torch.zeros_like(W), "objective": math.inf}

    def step(self, problem: Problem, state: State) -> State:
        W, t = state["W"], state["t"]
        inverse: Tensor = torch.linalg.inv_ex(_shifted(state))[0]
        if not float(inverse.amin()) >= OUTSIDE:
            return self._returned(state)
        limit = self.last_iterations if state["stage"] == len(self.s) - 1 else self.iterations
        if t and (t % self.check_every == 0 or t == limit):
            before, state = state["objective"], self._looked(problem, state)
            if t == limit or abs(before - state["objective"]) <= self.tol * abs(before) < math.inf:
                return self._next(state)
        mu, (beta1, beta2) = self.factor ** state["stage"], self.betas
        gradient = problem.smooth.gradient(W).add(W.sign(), alpha=problem.score.lam).mul_(mu).addcmul_(W, inverse.T, value=2)
        mean = state["mean"].lerp(gradient, 1 - beta1)
        square = state["square"].mul(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (square / (1 - beta2 ** (t + 1))).sqrt_().add_(1e-8)
        move = torch.div(mean, root).div_(1 - beta1 ** (t + 1))
        return {**state, "W": W.sub(move, alpha=state["lr"]), "mean": mean, "square": square, "move": move, "t": t + 1}

    def _returned(self, state: State) -> State:
        """Half a step back, or to the stage's start."""
        if state["t"] == 0 or state["s"] <= 0.9:
            return self._begun({**state, "W": state["start"]}, state["first_lr"] / 2, state["s"] + 0.1)
        lr = state["lr"] / 2
        if lr <= SMALLEST_LR:
            return self._next({**state, "W": state["W"] + state["lr"] * state["move"]})
        return {**state, "W": state["W"].add(state["move"], alpha=lr), "lr": lr}

    def _next(self, state: State) -> State:
        stage = state["stage"] + 1
        if stage == len(self.s):
            return {**state, "done": True}
        return self._begun({**state, "stage": stage}, self.lr, self.s[stage])

    def _looked(self, problem: Problem, state: State) -> State:
        h = _barrier(state)
        return {**state, "h": h, "objective": self.factor ** state["stage"] * float(problem.value(state["W"])) + h}

    def report(self, problem: Problem, state: State) -> Report:
        certificate = {"mu": self.factor ** state["stage"], "s": state["s"], "h": state["h"]}
        report = Report(state["W"], certificate=certificate)
        if state["done"]:
            report.status, report.message = "converged", f"all {len(self.s)} stages are done, and h(W) = {state['h']:.3g}"
        return report


def _shifted(state: State) -> Tensor:
    """sI − W∘W."""
    return torch.addcmul(state["scaled_identity"], state["W"], state["W"], value=-1)


def _barrier(state: State) -> float:
    """h_s(W)."""
    return len(state["W"]) * math.log(state["s"]) - float(torch.linalg.slogdet(_shifted(state))[1])
