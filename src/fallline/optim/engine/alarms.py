"""Finding non-finite numbers without waiting for the device.

Every kernel call leaves one number that is not finite when its gradient or its result is not. The numbers are looked
at when the next step starts; only then, and only on an alarm, are parameters searched one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .units import Unit


class Alarms:
    """The alarms of one step, on their way to the host."""

    def __init__(self, found: list[tuple[Tensor, Unit]], meshes: Sequence[Any]) -> None:
        self.units = [unit for _, unit in found]
        self.shared = bool(meshes)
        self.event: Any = None
        self.numbers = torch.empty(0)
        if found:
            numbers = torch.stack([number.float() for number, _ in found])
            quiet = numbers.isfinite().all().reshape(1).to(torch.int32)
            for mesh in meshes:
                quiet = self._agree(quiet, mesh)
            self.numbers = self._to_host(quiet)

    def _agree(self, quiet: Tensor, mesh: Any) -> Tensor:
        for dim in range(mesh.ndim):
            group = mesh.get_group(dim)
            torch.distributed.all_reduce(quiet, op=torch.distributed.ReduceOp.MIN, group=group)
        return quiet

    def _to_host(self, quiet: Tensor) -> Tensor:
        if quiet.device.type != "cuda":
            return quiet
        host = torch.empty(quiet.shape, dtype=quiet.dtype, pin_memory=True)
        host.copy_(quiet, non_blocking=True)
        self.event = torch.cuda.Event()
        self.event.record()
        return host

    def raised(self) -> bool:
        """Whether something was not finite (on any rank)."""
        if self.event is not None:
            self.event.synchronize()
        return self.numbers.numel() > 0 and not bool(self.numbers.item())

    def culprit(self) -> tuple[Unit, int] | None:
        """The first parameter of which the value or the state is not finite."""
        for unit in self.units:
            for i, t in enumerate(unit.locals):
                if not bool(t.isfinite().all()) or not _state_is_finite(unit, i):
                    return unit, i
        return None


def _state_is_finite(unit: Unit, i: int) -> bool:
    start = 0
    for _, _, codec in unit.entries:
        buffers = tuple(b.reshape(-1) if codec.block > 1 else b for b in unit.pieces[start : start + len(codec.pieces)])
        start += len(codec.pieces)
        for view in unit.views(i, buffers, codec):
            if view.is_floating_point() and not bool(view.isfinite().all()):
                return False
    return True


def all_finite(gradients: Sequence[Tensor], meshes: Sequence[Any]) -> bool:
    """Whether all gradients are finite, on all ranks; waits for the device."""
    if not gradients:
        return True
    peaks = torch.stack([p.float() for p in torch._foreach_norm(list(gradients), float("inf"))])
    quiet = peaks.isfinite().all().reshape(1).to(torch.int32)
    for mesh in meshes:
        for dim in range(mesh.ndim):
            torch.distributed.all_reduce(quiet, op=torch.distributed.ReduceOp.MIN, group=mesh.get_group(dim))
    return bool(quiet.item())
