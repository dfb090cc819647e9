"""Compiled kernels: a rule traced once on plain tensors and handed to Inductor.

The engine decides what varies between calls: the length, which is symbolic, and the coefficients, which arrive in one packed
tensor. Everything else is in the key, so one compiled function serves all parameters, models and optimizers that share it, and no
guard has to be checked when it is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .kernels import Kernel, Pieces, parts, write
from .parts import Coefficients
from .reduction import reducing, whole
from .state import working_dtype
from .statistics import how

if TYPE_CHECKING:
    from .plan import Bucket
    from .units import Unit

Compiled = Callable[..., Sequence[Tensor]]
Work = Literal["step", "move", "sums", "first", "second"]
"""A step in one pass; of a step in two: the sums before the direction, or with it; then the move with the direction, or of it."""

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


def compiles(bucket: Bucket, unit: Unit, p: Tensor, reduces: bool) -> bool:
    """Whether a kernel may be called on ``p``: its length is neither tiny nor, in rows, the 1 that broadcasts.

    What ``reduces`` must see its one tensor, the whole of it and nothing else, in one call.
    """
    fits = bucket.direction.scope == "elementwise" and p.numel() >= SMALLEST and p.shape[0] > 1
    alone = len(unit.params) == 1 and not bucket.sharded_dims and p.numel() <= (CHUNK if p.ndim > 1 else LONGEST)
    return fits and (alone or not reduces)


def sums_compile(bucket: Bucket, unit: Unit, p: Tensor) -> bool:
    """Whether statistics of a unit can be summed in a kernel: they are those of one tensor, in one call."""
    return len(unit.params) == 1 and p.ndim == 1 and p.numel() <= LONGEST and compiles(bucket, unit, p, bucket.direction.reduces)


def compiled(bucket: Bucket, work: Work, names: tuple[str, ...], p: Tensor, g: Tensor, pieces: Pieces,
             needs: tuple[str, ...] = ()) -> Compiled:
    """The compiled function for a piece of ``work``, on tensors like these."""
    numbers = tuple(i for i, t in enumerate(pieces) if len(t) != len(p))
    known = (work, g.dtype, torch.get_num_threads(), numbers)
    if known not in bucket.compiled:
        bucket.compiled[known] = _shared(bucket.kernel, work, names, p, g, pieces, needs, numbers)
    return bucket.compiled[known]


def _shared(kernel: Kernel, work: Work, names: tuple[str, ...], p: Tensor, g: Tensor, pieces: Pieces, needs: tuple[str, ...],
            numbers: tuple[int, ...]) -> Compiled:
    """The same function for all buckets."""
    key = (kernel, work, needs, names, p.dtype, g.dtype, p.device, p.shape[1:], numbers, torch.get_num_threads())
    if key not in _compiled:
        rows = max(2, TRACED // math.prod(p.shape[1:]))
        rows += rows in p.shape[1:]  # equal lengths would be one symbol
        shaped = [torch.empty((rows if len(t) == len(p) else 1, *t.shape[1:]), dtype=t.dtype, device=t.device) for t in (p, g, *pieces)]
        _compiled[key] = _compile(_function(kernel, work, names, p.shape[1:], needs), [pack([0.0] * len(names), p), *shaped],
                                  WHOLE if p.ndim == 1 else QUANTISED)
    return _compiled[key]


def _function(kernel: Kernel, work: Work, names: tuple[str, ...], tile: Sequence[int],
              needs: tuple[str, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """The function ``(packed, p, g, *pieces)`` of a piece of work; it writes in place, and returns an alarm or sums."""

    def step(c: Coefficients, p: Tensor, g: Tensor, *pieces: Tensor) -> tuple[Tensor, ...]:
        new, u = kernel.whole(c, p, g, pieces)
        write((p, *pieces), new)
        return (_alarm(new, u, g),) if kernel.watch else ()

    def move(c: Coefficients, p: Tensor, g: Tensor, *pieces: Tensor) -> tuple[Tensor, ...]:
        write((p, *pieces), kernel.whole(c, p, g, pieces)[0])
        return ()

    def sums(c: Coefficients, p: Tensor, g: Tensor, *pieces: Tensor) -> tuple[Tensor, ...]:
        return _summed(kernel.before(c, p, g, pieces, needs), needs)

    def first(c: Coefficients, p: Tensor, g: Tensor, u: Tensor, *pieces: Tensor) -> tuple[Tensor, ...]:
        new, found, integrands = kernel.first(c, p, g, pieces, needs)
        write((u, *pieces), [found, *new])
        return _summed(integrands, needs)

    def second(c: Coefficients, p: Tensor, u: Tensor, *pieces: Tensor) -> tuple[Tensor, ...]:
        write((p, *pieces), kernel.second(c, p, u, pieces))
        return ()

    functions: dict[Work, Callable[..., tuple[Tensor, ...]]] = {
        "step": step, "move": move, "sums": sums, "first": first, "second": second}

    def function(packed: Tensor, p: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        for size, known in zip(p.shape[1:], tile, strict=True):
            torch._check(size == known)
        with reducing(whole):
            return functions[work](Coefficients(dict(zip(names, packed.unbind(), strict=True))), p, *others)

    return function


def _summed(integrands: Sequence[Tensor], needs: tuple[str, ...]) -> tuple[Tensor, ...]:
    return tuple(whole(x, how(name)) for name, x in zip(needs, integrands, strict=True))


def run_first(bucket: Bucket, values: Mapping[str, Any], p: Tensor, g: Tensor, pieces: Pieces, needs: tuple[str, ...],
              keeps: bool) -> tuple[Sequence[Tensor], Tensor | None]:
    """Pass 1 on one tensor: the sums, and the direction if it ``keeps`` one."""
    u = torch.empty_like(p, dtype=working_dtype(p.dtype)) if keeps else None
    others = pieces if u is None else (u, *pieces)
    function = compiled(bucket, "first" if keeps else "sums", tuple(values), p, g, others, needs)
    return function(packed(bucket, values, p), p, g, *others), u


def run_second(bucket: Bucket, work: Work, values: Mapping[str, Any], p: Tensor, g: Tensor, pieces: Pieces) -> None:
    """Pass 2, with what the step size has made of the coefficients."""
    run_compiled(compiled(bucket, work, tuple(values), p, g, pieces), packed(bucket, values, p), p, g, pieces)


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
    _keep_copies(graph)
    symbolic = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    if any(isinstance(t.shape[0], int) and t.shape[0] != 1 for t in symbolic):
        raise RuntimeError(f"the rule fixes the length of its tensors, {[tuple(t.shape) for t in symbolic]}, so it cannot be compiled")
    function: Compiled = torch._inductor.compile(graph, symbolic, options=options)
    return function


def _keep_copies(graph: torch.fx.GraphModule) -> None:
    """Multiply copies by 1: Inductor takes a clone of an input for the input, and would keep the point after a step in its place."""
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.clone.default:
            node.target, node.args, node.kwargs = torch.ops.aten.mul.Tensor, (node.args[0], 1.0), {}
    graph.recompile()


def run_compiled(function: Compiled, packed: Tensor, p: Tensor, g: Tensor, pieces: Pieces) -> Tensor | None:
    """Work in place; returns the alarm."""
    count = -(-p.numel() // (CHUNK if p.ndim > 1 else LONGEST))
    if count == 1:
        return next(iter(function(packed, p, g, *pieces)), None)
    # At least two rows a part; see `compiles`.
    split = lambda t: t.tensor_split(min(count, p.shape[0] // 2))
    taken = zip(*parts(split, (p, g, *pieces)))  # noqa: B905 - numbers are repeated without end
    alarms = [alarm for part in taken for alarm in function(packed, *part)]
    return torch.stack(alarms).sum() if alarms else None


def packed(bucket: Bucket, values: Mapping[str, Any], p: Tensor) -> Tensor:
    """The coefficients for a bucket's kernels, made once for all of its units."""
    if bucket.packed is None or bucket.packed[0] is not values:
        bucket.packed = values, pack(list(values.values()), p)
    return bucket.packed[1]


def pack(values: Sequence[Any], p: Tensor) -> Tensor:
    """The coefficients of one step as one tensor in the precision of the arithmetic, so that no kernel converts them per element."""
    numbers = [0.0 if isinstance(value, Tensor) else value for value in values]
    packed = torch.tensor(numbers, dtype=working_dtype(p.dtype), device="cpu").to(p.device, non_blocking=True)
    for i, value in enumerate(values):
        if isinstance(value, Tensor):
            packed[i] = value  # on the device
    return packed
