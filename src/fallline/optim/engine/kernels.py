"""Decode, rule, encode: the one function that runs on plain tensors, eagerly in cache-sized chunks or compiled.

A :class:`Kernel` is hashable and holds only fixed choices, so one ``torch.compile``d function serves all parameters,
models and optimizers that share it; lengths are dynamic and hyperparameters arrive in one packed tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor

from .arithmetic import add_scaled
from .parts import Average, Coefficients, Direction, Move
from .state import working_dtype
from .statistics import STATISTICS
from .storage import Codec

Pieces = tuple[Tensor, ...]

CHUNK = 256 * 1024
"""Elements that eager kernels treat at a time, so that intermediate results stay in the cache."""

COMPILED_CHUNK = 256 * 1024
"""The same for compiled kernels of quantised state."""

SMALLEST_COMPILED = 64
"""Shorter tensors run eagerly: lengths 0 and 1 would be specialised."""


@dataclass(frozen=True)
class Kernel:
    """A rule with its codecs; see the module."""

    direction: Direction
    move: Move
    average: Average | None
    codecs: tuple[tuple[str, Codec], ...]
    maximize: bool
    decays: bool
    watch: bool

    def decode(self, pieces: Sequence[Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """The plain state."""
        state, i = {}, 0
        for name, codec in self.codecs:
            state[name] = codec.decode(tuple(pieces[i : i + len(codec.pieces)]), dtype)
            i += len(codec.pieces)
        return state

    def encode(self, new: Mapping[str, Tensor]) -> list[Tensor | None]:
        """The pieces of the entries in ``new``; ``None`` for the pieces of the others."""
        pieces: list[Tensor | None] = []
        for name, codec in self.codecs:
            pieces += codec.encode(new[name]) if name in new else [None] * len(codec.pieces)
        return pieces

    def gradient(self, g: Tensor, x: Tensor, c: Any) -> Tensor:
        """The gradient in the working precision, of the loss to be minimised, with coupled decay."""
        g = g.to(x.dtype)
        if self.maximize:
            g = -g
        return add_scaled(g, c.weight_decay, x) if self.decays and self.move.coupled else g

    def finish(self, x: Tensor, u: Tensor, s: Mapping[str, Tensor], new: dict[str, Tensor], c: Any) -> Tensor:
        """The point after the move; its average joins the new state."""
        x = self.move(x, u, c, self.decays)
        if self.average is not None:
            new["average"] = self.average(x, s["average"], c)
        return x

    def whole(self, c: Any, p: Tensor, g: Tensor, pieces: Pieces) -> tuple[list[Tensor | None], Tensor]:
        """The new parameter and pieces, and the direction."""
        x = p.to(working_dtype(p.dtype))
        g = self.gradient(g, x, c)
        s = self.decode(pieces, x.dtype)
        u, new = self.direction(g, x, s, c)
        new = dict(new)
        x = self.finish(x, u, s, new, c)
        return [x.to(p.dtype), *self.encode(new)], u

    def first(
        self, c: Any, p: Tensor, g: Tensor, pieces: Pieces, needs: tuple[str, ...]
    ) -> tuple[list[Tensor | None], Tensor, list[Tensor]]:
        """Of a step in two passes: the pieces, the direction, and the integrands of the statistics."""
        x = p.to(working_dtype(p.dtype))
        g = self.gradient(g, x, c)
        s = self.decode(pieces, x.dtype)
        u, new = self.direction(g, x, s, c)
        return self.encode(new), u, [STATISTICS[name](g, u, x, s) for name in needs]

    def second(self, c: Any, p: Tensor, u: Tensor, pieces: Pieces) -> list[Tensor | None]:
        """Of a step in two passes: the move."""
        x = p.to(working_dtype(p.dtype))
        new: dict[str, Tensor] = {}
        x = self.finish(x, u, self.decode(pieces, x.dtype), new, c)
        return [x.to(p.dtype), *self.encode(new)]

    def observe(self, c: Any, name: str, value: Tensor, pieces: Pieces) -> list[Tensor | None]:
        """The pieces after an extra oracle's result."""
        dtype = working_dtype(value.dtype)
        return self.encode(self.direction.observe(name, value.to(dtype), self.decode(pieces, dtype), c))

    def alarm(self, x: Tensor, g: Tensor) -> Tensor | None:
        """A number that is not finite if ``x`` (the point, or compiled the direction) or the gradient is not.

        Compiled, a product summed in the rule's own loop is cheapest; eagerly, two sums. An overflow is a false alarm, which the
        search for the culprit finds out.
        """
        if not self.watch or x.numel() == 0:
            return None
        dtype = working_dtype(x.dtype)
        if torch.compiler.is_compiling():
            return (x.to(dtype) * g.to(dtype)).sum()
        return x.sum(dtype=dtype) + 0 * g.sum(dtype=dtype)


def write(targets: Sequence[Tensor], values: Sequence[Tensor | None]) -> None:
    """Copy what changed."""
    for target, value in zip(targets, values, strict=True):
        if value is not None and value is not target:
            target.copy_(value)


def run_eagerly(kernel: Kernel, c: Coefficients, p: Tensor, g: Tensor, pieces: Pieces, chunked: bool) -> Tensor | None:
    """Take the step in place; returns the alarm, which looks at all chunks together: per chunk it would push out the cache."""
    rows = max(1, CHUNK // numel_of_row(p)) if chunked else max(1, p.shape[0])
    for part in zip(*(t.split(rows) for t in (p, g, *pieces)), strict=True):
        new, _ = kernel.whole(c, part[0], part[1], part[2:])
        write((part[0], *part[2:]), new)
    return kernel.alarm(p, g)


def numel_of_row(p: Tensor) -> int:
    """Elements in one index of the first dimension."""
    return p[0].numel() if p.ndim > 1 else 1


def _guards_on_inputs(guards: Sequence[Any]) -> list[bool]:
    # What else a kernel reads is frozen and in its key; checking it again takes longer than the work on a small tensor.
    return [guard.guard_type in ("TENSOR_MATCH", "SHAPE_ENV") for guard in guards]


OPTIONS: dict[str, Any] = {"guard_filter_fn": _guards_on_inputs} if hasattr(torch.compiler, "keep_tensor_guards_unsafe") else {}
"""Releases of torch before 2.8 cannot leave guards out."""

_compiled: dict[tuple[Any, ...], Callable[..., Any]] = {}
_counter = itertools.count()


def compiled(kernel: Kernel, names: tuple[str, ...], p: Tensor, g: Tensor) -> Callable[..., Tensor | None]:
    """The compiled ``(packed, p, g, pieces) -> alarm`` that takes the step in place."""
    key = (kernel, names, p.dtype, g.dtype, p.device.type, p.ndim, torch.get_num_threads())
    if key not in _compiled:
        dtype = working_dtype(p.dtype)
        tile = p.shape[1:]

        def step(packed: Tensor, p: Tensor, g: Tensor, pieces: Pieces) -> Tensor | None:
            if tile:
                torch._check(p.shape[1] == tile[0])
            numbers = packed.to(dtype)
            c = Coefficients({name: numbers[i] for i, name in enumerate(names)})
            new, u = kernel.whole(c, p, g, pieces)
            write((p, *pieces), new)
            # Of the direction: the point has two readers then and, in a long rule, gets a buffer and a loop of its own, twice the time.
            return kernel.alarm(u, g)

        _compiled[key] = torch.compile(_with_own_code(step), fullgraph=True, dynamic=True, options=OPTIONS)
    return _compiled[key]


def run_compiled(run: Callable[..., Tensor | None], packed: Tensor, p: Tensor, g: Tensor, pieces: Pieces) -> Tensor | None:
    """Take the step in place; returns the alarm. Quantised state is treated in parts: a block's scale must be known before its
    codes, and what the kernel keeps between the two should stay in the cache."""
    rows = max(1, COMPILED_CHUNK // p.shape[1]) if p.ndim > 1 else p.shape[0]
    if p.shape[0] <= rows:
        return run(packed, p, g, pieces)
    parts = zip(*(t.split(rows) for t in (p, g, *pieces)), strict=True)
    alarms = [alarm for part in parts if (alarm := run(packed, part[0], part[1], part[2:])) is not None]
    return torch.stack(alarms).sum() if alarms else None


def _with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    # Dynamo keeps its variants per code object: kernels must not share one, or each would pay for the guards of all.
    assert isinstance(function, FunctionType)
    code: CodeType = function.__code__.replace(co_name=f"{function.__name__}_{next(_counter)}")
    return FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)


def pack(values: Sequence[float], device: torch.device) -> Tensor:
    """The coefficients of one bucket and step as one tensor."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
