"""From parameters to plain tensors: local shards, real views, flat views in memory order."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor


def is_sharded(t: Tensor) -> bool:
    """Whether ``t`` is a DTensor."""
    return hasattr(t, "placements")


def local(t: Tensor) -> Tensor:
    """The detached local, real tensor that aliases ``t``."""
    t = t.detach()
    if is_sharded(t):
        t = cast(Any, t).to_local()
    return torch.view_as_real(t) if t.is_complex() else t


def local_gradient(g: Tensor, p: Tensor) -> Tensor:
    """The gradient's local real part, laid out over the mesh as the parameter is."""
    if is_sharded(p):
        placed = cast(Any, g)
        if placed.placements != cast(Any, p).placements:
            placed = placed.redistribute(placements=cast(Any, p).placements)
        g = placed
    return local(g)


def sharding(t: Tensor) -> tuple[Any, ...]:
    """A hashable description of where ``t`` lives; empty for a plain tensor."""
    return (cast(Any, t).device_mesh, cast(Any, t).placements) if is_sharded(t) else ()


def sharded_as(t: Tensor, p: Tensor) -> Tensor:
    """``t``, shaped like the local part of ``p``, as a tensor with the dtype kind, mesh and placements of ``p``."""
    if p.is_complex():
        t = torch.view_as_complex(t)
    if not is_sharded(p):
        return t
    from torch.distributed.tensor import DTensor

    q = cast(Any, p)
    return DTensor.from_local(t, q.device_mesh, q.placements, run_check=False, shape=p.shape, stride=p.stride())


def shard(full: Tensor, p: Any) -> Tensor:
    """This process's part of the whole tensor ``full``, cut as the DTensor ``p`` is."""
    from torch.distributed.tensor import DTensor, Replicate

    replicated = DTensor.from_local(full, p.device_mesh, [Replicate()] * p.device_mesh.ndim, run_check=False)
    part: Tensor = replicated.redistribute(placements=p.placements).to_local()
    return part


def is_dense(t: Tensor) -> bool:
    """Whether ``t`` covers its memory without gaps or overlaps."""
    if t.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return expected == t.numel()


def flat(t: Tensor) -> Tensor:
    """The dense tensor ``t`` as a 1-D view of its memory."""
    return t.view(-1) if t.is_contiguous() else t.as_strided((t.numel(),), (1,))


def flat_as(t: Tensor, p: Tensor) -> Tensor:
    """``t`` as a 1-D tensor in the memory order of the dense tensor ``p``; copies only if the strides differ."""
    if t.stride() != p.stride() and not (t.is_contiguous() and p.is_contiguous()):
        t = torch.empty_strided(p.shape, p.stride(), dtype=t.dtype, device=t.device).copy_(t)
    return flat(t)


def numel(shape: tuple[int, ...]) -> int:
    """The number of elements."""
    return math.prod(shape)


def full(t: Tensor) -> Tensor:
    """``t`` detached; of a DTensor, all of it."""
    t = t.detach()
    return cast(Any, t).full_tensor() if is_sharded(t) else t
