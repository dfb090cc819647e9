"""Cyclic block coordinate descent on composite non-convex problems, with whole and with variance-reduced gradients.

    F(x) = f(x) + Σ_j r_j(x^j);   x_{k,j} = (x_k^1, …, x_k^{j−1}, x_{k−1}^j, …, x_{k−1}^m): the blocks before j are new already
    for j = 1 … m:   x_k^j = argmin_u ⟨g_k^j, u⟩ + (Λ_j / 2η) ‖u − x_{k−1}^j‖² + r_j(u)
                           = prox_{(η/Λ_j) r_j}(x_{k−1}^j − (η/Λ_j) g_k^j)

    P-CCD     g_k^j = ∇^j f(x_{k,j})
    VR-CCD    with probability p   g_k^j = mean over a batch of ∇^j f_i(x_{k,j})
              otherwise            g_k^j = g_{k−1}^j + mean over a small batch of ∇^j f_i(x_{k,j}) − ∇^j f_i(x_{k−1,j})

One coin a cycle. The old point is x_{k−1,j}, whose first blocks are those of x_{k−1} and the others those of x_{k−2}, on the same
batch. With one block these are proximal gradient descent and PAGE.

Cai, Song, Wright, Diakonikolas: Cyclic Block Coordinate Descent With Variance Reduction for Composite Nonconvex Optimization,
ICML 2023, arXiv 2212.05088.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.blocks import BlockModel, Partition, block_model
from fallline.core.blocks.partition import variables
from fallline.core.checks import check_count
from fallline.core.errors import WrongProblem
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.modules import batch_statistics
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.core.terms import Term

REFRESH = 100  # cycles after which rounding is cleared from what f keeps


@dataclass(frozen=True)
class _Block:
    """Variables of the flat point, and the shapes of the tensors that they are; none for a part of a vector."""

    index: Tensor
    shapes: tuple[torch.Size, ...] = ()

    def prox(self, term: Term | None, u: Tensor, step: float) -> Tensor:
        """The proximal map of the term's part on this block."""
        if term is None:
            return u
        if not self.shapes:
            return term.restricted(self.index).prox(u, step)
        parts = u.split([shape.numel() for shape in self.shapes])
        return torch.cat([term.prox(part.view(shape), step).reshape(-1) for part, shape in zip(parts, self.shapes, strict=True)])


@dataclass(frozen=True)
class _Cyclic(Method):
    """The blocks and their proximal steps; subclasses say what the gradients are."""

    lr: float = 0.1
    blocks: Literal["layers"] | int | Sequence[Sequence[int]] = "layers"
    scales: Sequence[float] | None = None

    kinds: ClassVar[tuple[str, ...]] = ("smooth", "finite-sum", "training", "composite")
    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 1e2)}

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be a finite number > 0, got {self.lr!r}; theory takes 1 / (2 L) for L relative to the scales")
        if isinstance(self.blocks, str) and self.blocks != "layers":
            raise ValueError(f"blocks must be 'layers', a number of blocks or lists of variables, got {self.blocks!r}")
        if isinstance(self.blocks, int):
            check_count("blocks", self.blocks, "into how many blocks a vector is cut")
        if self.scales is not None and not all(math.isfinite(each) and each > 0 for each in self.scales):
            raise ValueError(f"scales must be positive numbers, one for each block, got {self.scales!r}")

    def check(self, problem: Problem) -> None:
        """Raise unless there are gradients, samples that stand alone, and blocks that fit the variables and the term."""
        smooth = problem.smooth if problem.kind == "composite" else problem
        super().check(smooth)
        coupled = batch_statistics(smooth.model) if isinstance(getattr(smooth, "model", None), torch.nn.Module) else []
        if coupled:
            raise WrongProblem(f"{type(self).__name__} needs samples that do not depend on each other, and {coupled[0]!r} normalises "
                               "by its batch: the differences of gradients would belong to other functions; GroupNorm does not")
        found, term = self._blocks(problem), _term(problem)
        Partition([block.index for block in found], tree.size(problem.x0))
        if self.scales is not None and len(self.scales) != len(found):
            raise ValueError(f"scales must have one number for each of the {len(found)} blocks, got {len(self.scales)}")
        whole = all(block.shapes for block in found)
        if term is not None and not (whole and getattr(term, "dim", 0) is not None) and not getattr(term, "separable", False):
            raise WrongProblem(f"{type(self).__name__} needs a term that is a sum over its blocks, got {term!r}")

    def _blocks(self, problem: Problem) -> list[_Block]:
        x0, blocks = problem.x0, self.blocks
        if blocks not in ("layers", 1):
            if not isinstance(x0, Tensor) or x0.ndim != 1:
                raise WrongProblem(f"blocks={blocks!r} cut one 1-D tensor, and {problem.name!r} has other variables; 'layers' takes "
                                   "its tensors")
            if isinstance(blocks, int):
                return [_Block(index) for index in torch.arange(len(x0), device=x0.device).chunk(blocks)]
            assert not isinstance(blocks, str)
            return [_Block(variables(block, x0.device)) for block in blocks]
        network = (problem.smooth if problem.kind == "composite" else problem).kind == "training"
        leaves: list[str | int] = [name.rpartition(".")[0] for name in x0] if network else list(range(len(tree.leaves(x0))))
        names = leaves if blocks == "layers" else [0] * len(leaves)
        groups: dict[str | int, list[tuple[Tensor, torch.Size]]] = {}
        first = 0
        for name, leaf in zip(names, tree.leaves(x0), strict=True):
            groups.setdefault(name, []).append((torch.arange(first, first + leaf.numel(), device=leaf.device), leaf.shape))
            first += leaf.numel()
        return [_Block(torch.cat([index for index, _ in group]), tuple(shape for _, shape in group)) for group in groups.values()]

    def _cycle(self, problem: Problem, x: Tensor, gradient: Callable[[_Block], Tensor],
               moved: Callable[[_Block, Tensor, bool], None]) -> Tensor:
        """Move every block of ``x`` in place, telling each move and whether it is the last; return the norm of the gradient mapping."""
        term, blocks = _term(problem), self._blocks(problem)
        scales = self.scales or [1.0] * len(blocks)
        squared = x.new_zeros(())
        for number, (block, scale) in enumerate(zip(blocks, scales, strict=True)):
            step, here = self.lr / scale, x[block.index]
            d = block.prox(term, here - step * gradient(block), step) - here
            squared = squared + (d @ d) / step**2
            moved(block, d, number == len(blocks) - 1)
        return squared.sqrt()

    def _start(self, problem: Problem) -> Tensor:
        x = tree.flatten(tree.clone(problem.x0)).to(tree.precision(problem.x0)).clone()
        for block in self._blocks(problem):
            x[block.index] = block.prox(_term(problem), x[block.index], 0.0)
        return x

    def report(self, problem: Problem, state: State) -> Report:
        return Report(tree.unflatten(state["x"].clone(), problem.x0), gap=state["gap"])


@register("cyclic-blocks")
@dataclass(frozen=True)
class CyclicBlocks(_Cyclic):
    """x^j ← prox_{(η/Λ_j) r_j}(x^j − (η/Λ_j) ∇^j f(x)) for one block after the other; a step is a cycle (P-CCD).

    Parameters
    ----------
    lr : float, default 0.1
        η, up to about 1/L for gradients that are L-Lipschitz relative to the blocks' scales; tune it.
    blocks : "layers", int or lists of int, default "layers"
        The tensors of nested variables, of a network those of a module together; or 1 for all variables; or into how many blocks of
        neighbours one vector is cut; or lists of its variables.
    scales : sequence of float, optional
        Λ_j, one for each block: its Lipschitz constant where blocks differ much. 1 by default.

    Raises
    ------
    ValueError, WrongProblem
        An illegal number, blocks that do not fit the variables, a term that is no sum over the blocks, a network with batch norm.

    Notes
    -----
    A cycle costs one whole gradient where f is a ``LinearModel`` or a ``Quadratic``, and as many as there are blocks for other
    problems, whose partial derivatives are cut out of whole gradients. The gap is the norm of the cycle's gradient mapping,
    (Λ_j/η) ‖x_k^j − x_{k−1}^j‖ over the blocks, each taken where its block moved. A method over problems and no torch optimizer, as
    it takes gradients inside a step: networks come as ``Training``.
    """

    def init(self, problem: Problem, key: Key) -> State:
        x = self._start(problem)
        return {"x": x, "kept": block_model(problem).start(x), "gap": None, "t": 0}

    def step(self, problem: Problem, state: State) -> State:
        model, x, kept, t = block_model(problem), state["x"], state["kept"], state["t"]
        if t and t % REFRESH == 0 and not model.counted:
            kept = model.start(x)
        _count(problem, model, 1)
        gap = self._cycle(problem, x, lambda block: model.partial(x, kept, block.index),
                          lambda block, d, last: model.move(x, kept, block.index, d))
        return {**state, "kept": kept, "gap": gap, "t": t + 1}


@register("cyclic-block-vr")
@dataclass(frozen=True)
class CyclicBlockVR(_Cyclic):
    """``CyclicBlocks`` with gradients that are sampled afresh, or corrected on a small batch, by one coin a cycle (VR-CCD).

    Parameters
    ----------
    lr, blocks, scales
        As in ``CyclicBlocks``.
    batch : int, optional
        b, samples of a fresh gradient; all data by default.
    small_batch : int, optional
        b', samples of a correction; the square root of their number by default.
    p : float, optional
        Probability of a fresh gradient, b' / (b + b') by default, which makes both cost alike.

    Raises
    ------
    ValueError, WrongProblem
        As ``CyclicBlocks``, and for p outside (0, 1].

    Notes
    -----
    Memory: the last two points and the last gradient. ``counts["component_gradients"]`` are gradients of single samples in the paper's
    sense, b or 2 b' a cycle, each block's part of one being its share. Samples are drawn with replacement. The gap is that of
    ``CyclicBlocks``, reported after cycles whose gradients are those of all data: the fresh ones, and with a ``batch`` none. Without
    data every draw is the whole problem.
    """

    batch: int | None = None
    small_batch: int | None = None
    p: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch", "small_batch"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), "samples, or None for the default")
        if self.p is not None and not 0 < self.p <= 1:
            raise ValueError(f"p must be in (0, 1], got {self.p!r}; with 0 errors of the gradient would never be forgotten")

    def init(self, problem: Problem, key: Key) -> State:
        x = self._start(problem)
        return {"x": x, "before": x, "g": torch.zeros_like(x), "gap": None, "t": 0, "key": key}

    def step(self, problem: Problem, state: State) -> State:
        t, key, last_g = state["t"], state["key"].fold(state["t"]), state["g"]
        smooth = problem.smooth if problem.kind == "composite" else problem
        b = smooth.samples if self.batch is None else self.batch
        small = max(1, round(math.sqrt(smooth.samples))) if self.small_batch is None else self.small_batch
        p = small / (b + small) if self.p is None else self.p
        fresh = t == 0 or float(torch.rand((), generator=key.fold("coin").generator())) < p
        size = self.batch if fresh else small
        drawn = smooth if size is None else smooth.draw(key.fold("samples"), size=size)
        model = block_model(drawn)
        _count(drawn, model, 1 if fresh else 2)
        problem.counts.add("component_gradients", (1 if fresh else 2) * drawn.samples)
        x, old, g = state["x"].clone(), state["before"].clone(), torch.empty_like(last_g)
        kept, kept_old = model.start(x), {} if fresh else model.start(old)

        def gradient(block: _Block) -> Tensor:
            found = model.partial(x, kept, block.index)
            if not fresh:
                found = last_g[block.index] + found - model.partial(old, kept_old, block.index)
            g[block.index] = found
            return found

        def moved(block: _Block, d: Tensor, last: bool) -> None:
            if last:  # nothing is asked at the end of the cycle
                x.index_add_(0, block.index, d)
                return
            model.move(x, kept, block.index, d)
            if not fresh:
                model.move(old, kept_old, block.index, state["x"][block.index] - state["before"][block.index])

        gap = self._cycle(problem, x, gradient, moved)
        # What samples estimate may be 0 anywhere: where the term holds x it often is.
        return {**state, "x": x, "before": state["x"], "g": g, "gap": gap if drawn is smooth else None, "t": t + 1}


def _count(problem: Problem, model: BlockModel, times: int) -> None:
    """Count whole gradients that no oracle counts."""
    if not model.counted:
        problem.counts.add("gradients", times)
        problem.counts.add("samples", times * (problem.smooth if problem.kind == "composite" else problem).samples)


def _term(problem: Problem) -> Term | None:
    return problem.term if problem.kind == "composite" else None
