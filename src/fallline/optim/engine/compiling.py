"""Compiled kernels: a rule traced once on plain tensors and handed to Inductor.

The engine decides what varies between calls: the length, which is symbolic, and the coefficients, which arrive in one packed
tensor. Everything else is in the key, so one compiled function serves all parameters, models and optimizers that share it, and no
guard has to be checked when it is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .kernels import Kernel, Pieces, parts, write
from .parts import Coefficients
from .reduction import reducing, whole
from .state import working_dtype

Compiled = Callable[..., Sequence[Tensor]]

SMALLEST = 64
"""Shorter tensors run eagerly: the call would take longer than the work."""

LONGEST = 2**30
"""Elements a call: Inductor may count in 32 bits."""

CHUNK = 256 * 1024
"""Elements a call for quantised state: a block's scale must be known before its codes, and what the kernel keeps between the two
loops should stay in the cache."""

TRACED = 1024 * 1024
"""The length at which a kernel is traced: long enough for Inductor to use all threads."""

QUANTISED: dict[str, Any] = {"cpp.enable_floating_point_contract_flag": "fast"}
WHOLE: dict[str, Any] = {**QUANTISED, "realize_reads_threshold": 1}
"""Inductor's options: fused multiplications and additions, as torch's own kernels use them; and a direction is computed once for the
move and the alarm, where it would else be computed twice in two loops. (Decoding and encoding are better off without.)"""

_compiled: dict[tuple[Any, ...], Compiled] = {}


def compilable(p: Tensor, whole: bool) -> bool:
    """Whether a kernel may be called on ``p``: its length is neither tiny nor, in rows, the 1 that broadcasts.

    A rule that reduces must see its one tensor, and nothing else, ``whole``, in one call.
    """
    short = CHUNK if p.ndim > 1 else LONGEST
    return p.numel() >= SMALLEST and p.shape[0] > 1 and (not whole or p.numel() <= short)


def compiled(kernel: Kernel, names: tuple[str, ...], p: Tensor, g: Tensor, pieces: Pieces) -> Compiled:
    """The compiled ``(packed, p, g, *pieces) -> (alarm,) or ()`` that takes the step in place."""
    numbers = tuple(i for i, t in enumerate(pieces) if len(t) != len(p))
    key = (kernel, names, p.dtype, g.dtype, p.device, p.shape[1:], numbers, torch.get_num_threads())
    if key not in _compiled:
        rows = max(2, TRACED // math.prod(p.shape[1:]))
        rows += rows in p.shape[1:]  # equal lengths would be one symbol
        shaped = [torch.empty((rows if len(t) == len(p) else 1, *t.shape[1:]), dtype=t.dtype, device=t.device) for t in (p, g, *pieces)]
        _compiled[key] = _compile(_step(kernel, names, p.shape[1:]), [pack([0.0] * len(names), p), *shaped],
                                  WHOLE if p.ndim == 1 else QUANTISED)
    return _compiled[key]


def _step(kernel: Kernel, names: tuple[str, ...], tile: Sequence[int]) -> Callable[..., tuple[Tensor, ...]]:
    def step(packed: Tensor, p: Tensor, g: Tensor, *pieces: Tensor) -> tuple[Tensor, ...]:
        for size, known in zip(p.shape[1:], tile, strict=True):
            torch._check(size == known)
        with reducing(whole):
            new, u = kernel.whole(Coefficients(dict(zip(names, packed.unbind(), strict=True))), p, g, pieces)
        write((p, *pieces), new)
        return (_alarm(new, u, g),) if kernel.watch else ()

    return step


def _alarm(new: Sequence[Tensor | None], u: Tensor, g: Tensor) -> Tensor:
    """A number that is not finite if the step is not, summed in a loop that is there anyway; see ``Kernel.alarm``."""
    scales = [t for t in new if t is not None and t.ndim < u.ndim]
    if scales:
        return sum(scales[1:], start=scales[0]).sum()
    # Of the direction: the point has two readers then and, in a long rule, gets a buffer and a loop of its own, twice the time.
    g = g.to(u.dtype)
    return ((u + g) * g).sum()


def _compile(step: Callable[..., Any], examples: list[Tensor], options: dict[str, Any]) -> Compiled:
    import torch._inductor  # slow to import, and only compiled optimizers need it
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(step, tracing_mode="symbolic")(*examples)
    symbolic = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    if any(isinstance(t.shape[0], int) and t.shape[0] != 1 for t in symbolic):
        raise RuntimeError(f"the rule fixes the length of its tensors, {[tuple(t.shape) for t in symbolic]}, so it cannot be compiled")
    function: Compiled = torch._inductor.compile(graph, symbolic, options=options)
    return function


def run_compiled(function: Compiled, packed: Tensor, p: Tensor, g: Tensor, pieces: Pieces) -> Tensor | None:
    """Take the step in place; returns the alarm."""
    count = -(-p.numel() // (CHUNK if p.ndim > 1 else LONGEST))
    if count == 1:
        return next(iter(function(packed, p, g, *pieces)), None)
    # At least two rows a part; see `compilable`.
    split = lambda t: t.tensor_split(min(count, p.shape[0] // 2))
    taken = zip(*parts(split, (p, g, *pieces)))  # noqa: B905 - numbers are repeated without end
    alarms = [alarm for part in taken for alarm in function(packed, *part)]
    return torch.stack(alarms).sum() if alarms else None


def pack(values: Sequence[float], p: Tensor) -> Tensor:
    """The coefficients of one step as one tensor in the precision of the arithmetic, so that no kernel converts them per element."""
    return torch.tensor(values, dtype=working_dtype(p.dtype), device="cpu").to(p.device, non_blocking=True)
