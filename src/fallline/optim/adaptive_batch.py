"""Training with a batch size that grows when a test of the gradient's noise asks for it.

    draw b samples;  every so many steps  b⁺ = test(G_1, …, G_b; η);  one step of any optimizer with g;  b ← b⁺

The tests are in ``batch_sizes``. With ``AdaGradNorm`` and the norm test: a² ← a² + ‖g‖², x ← x − lr g / a.

Lau, Liu, Kolar: AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods, arXiv 2402.11215.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.bound import Bound
from fallline.core.errors import NonFiniteError
from fallline.core.method import Report, State, Train
from fallline.core.objective import ModelProblem, Training
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.core.tree import Tree
from fallline.optim.adagrad_norm import AdaGradNorm
from fallline.optim.batch_sizes import TESTS, refuse_batch_norm
from fallline.optim.engine.hyperparameters import check_positive


class Accumulated:
    """The mean of several realisations' losses, weighted by their samples; a torch closure."""

    def __init__(self, pieces: Sequence[ModelProblem | Bound], sizes: Sequence[int]) -> None:
        self.pieces, self.weights = pieces, [size / sum(sizes) for size in sizes]

    def __call__(self) -> Tensor:
        variables = list(self.pieces[0].variables.values())
        totals: list[Tensor | None] = [None] * len(variables)
        loss: Any = 0.0
        for piece, weight in zip(self.pieces, self.weights, strict=True):
            loss = loss + weight * piece()
            for i, p in enumerate(variables):
                if p.grad is not None:
                    total = totals[i]
                    totals[i] = weight * p.grad if total is None else total.add_(p.grad, alpha=weight)
        for p, total in zip(variables, totals, strict=True):
            p.grad = total
        mean: Tensor = loss
        return mean


@register("adaptive-batch")
class AdaptiveBatch(Train):
    """Any torch optimizer on batches that grow: b ← max(b, min(largest, ⌈b⁺⌉)), b⁺ = Σ_j s²_j / (η² ‖g‖²) or another test's.

    Parameters
    ----------
    optimizer : callable ``(params, **hyperparameters) -> torch.optim.Optimizer``, default AdaGradNorm
    test : {"norm", "inner", "coordinate"}, default "norm"
        See `norm_test`, `inner_product_test`, `coordinate_test`.
    eta : float, default 0.5
        η, the relative error of the gradient that is allowed; the authors use 0.1 to 0.5.
    size : int, default 8
        The first batch size, at least 2.
    largest : int, optional
        The cap; the number of samples by default, and at most that.
    every : int, default 1
        Steps between tests. Each costs the per-sample gradients of the batch, about one more forward and backward pass.
    micro_batch : int, optional
        At most so many samples at a time, which bounds the memory of per-sample gradients (``micro_batch`` copies of the parameters)
        and of activations: larger batches are accumulated. The optimizer then gets a plain closure, and can be none that asks for
        curvature or outputs. By default a batch is evaluated whole.
    schedule : callable ``optimizer -> LRScheduler``, optional
    **hyperparameters
        Passed to ``optimizer``.

    Notes
    -----
    Samples are drawn by ``problem.draw``, for ``Training`` and ``FiniteSum`` with replacement. The certificate is
    ``{"batch_size": b}``, the size of the next batch.
    """

    needs = ("gradient", "per_sample_gradients")
    kinds = ("finite-sum", "training")
    space: ClassVar[Mapping[str, Range]] = {"eta": LogUniform(0.1, 1.0), **AdaGradNorm.space}

    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer] = AdaGradNorm,
                 test: Literal["norm", "inner", "coordinate"] = "norm", eta: float = 0.5, size: int = 8, largest: int | None = None,
                 every: int = 1, micro_batch: int | None = None,
                 schedule: Callable[[torch.optim.Optimizer], Any] | None = None, **hyperparameters: Any) -> None:
        super().__init__(optimizer, schedule, **hyperparameters)
        if test not in TESTS:
            raise ValueError(f"test must be one of {', '.join(map(repr, TESTS))}, got {test!r}")
        check_positive("eta", eta, "0.5 is typical")
        for name, value, least in (("size", size, 2), ("largest", largest, size), ("every", every, 1), ("micro_batch", micro_batch, 1)):
            if value is None and name in ("largest", "micro_batch"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                reason = "; one sample has no variance" if name == "size" else ""
                raise ValueError(f"{name} must be a whole number of at least {least}{reason}, got {value!r}")
        self.test, self.eta, self.size, self.largest, self.every, self.micro_batch = test, eta, size, largest, every, micro_batch
        self.space = {"eta": LogUniform(0.1, 1.0), **self.space}  # type: ignore[misc]

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if isinstance(problem, Training):
            refuse_batch_norm(problem.model)
        self._cap(problem)

    def _cap(self, problem: Problem) -> int:
        largest = problem.samples if self.largest is None else self.largest
        if not self.size <= largest <= problem.samples:
            name, value = ("size", self.size) if self.size > problem.samples else ("largest", largest)
            raise ValueError(f"{name} must be at most the {problem.samples} samples of {problem.name!r}, got {value}")
        return largest

    def init(self, problem: Problem, key: Any) -> State:
        return {**super().init(problem, key), "size": self.size}

    def step(self, problem: Problem, state: State) -> State:
        key, size, t = state["key"].fold(state["t"]), state["size"], state["t"]
        if "model" in state:
            assert isinstance(problem, Training)
            problem = problem.on(state["model"])
        most = size if self.micro_batch is None else self.micro_batch
        sizes = [min(most, size - start) for start in range(0, size, most)]
        drawn = [problem.draw(key.fold(i), size=own) for i, own in enumerate(sizes)]
        if t % self.every == 0:
            point = state.get("point")
            state = {**state, "size": self._tested(drawn, point, self._cap(problem), size)}
        pieces: Any = drawn if "model" in state else [piece.bind(state["point"]) for piece in drawn]
        loss = state["optimizer"].step(pieces[0] if len(pieces) == 1 else Accumulated(pieces, sizes))
        if state["schedule"] is not None:
            state["schedule"].step()
        return {**state, "t": t + 1, "loss": loss.detach() if isinstance(loss, Tensor) else loss}

    def _tested(self, drawn: Sequence[Problem], point: Tree | None, largest: int, size: int) -> int:
        """The next batch size."""
        def chunks() -> Iterator[Tree]:
            return (tree.map(lambda g: g.detach(), piece.per_sample_gradients(point)) for piece in drawn)

        gradients: Any = next(chunks()) if len(drawn) == 1 else chunks if self.test == "inner" else chunks()
        try:
            return TESTS[self.test](gradients, self.eta, largest)
        except NonFiniteError:
            return size  # the optimizer says what becomes of such a step

    def report(self, problem: Problem, state: State) -> Report:
        report = super().report(problem, state)
        report.certificate = {"batch_size": state["size"]}
        return report

    def pack(self, state: State) -> State:
        return {**super().pack(state), "size": state["size"]}

    def unpack(self, problem: Problem, key: Any, packed: State) -> State:
        return {**super().unpack(problem, key, packed), "size": packed["size"]}

    def __repr__(self) -> str:
        own = "".join(f", {name}={getattr(self, name)!r}" for name in ("test", "eta", "size", "largest", "every", "micro_batch"))
        return super().__repr__().replace("Train(", "AdaptiveBatch(", 1)[:-1] + own + ")"
