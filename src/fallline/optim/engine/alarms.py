"""Finding non-finite numbers without waiting for the device.

Every kernel call leaves one number that is not finite when its gradient, the gradient's square or the direction is not (of
quantised state: when a block's scale is not). The numbers are looked at when the next step starts; only then, and only on an alarm,
are parameters searched one by one. A point that overflows shows in the next gradient. Estimates that were asked for besides the
gradients leave a number each, since a rule may leave out what it cannot use and go on with what it has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .units import Unit


class Alarms:
    """The alarms of one step, on their way to the host."""

    def __init__(self, found: list[tuple[Tensor, Unit]], meshes: Sequence[Any], estimates: Sequence[tuple[str, Tensor]] = ()) -> None:
        self.units = [unit for _, unit in found]
        self.estimates = estimates
        self.meshes = meshes
        self.event: Any = None
        self.total: Tensor | None = None
        numbers = [*(number for number, _ in found), *(number for _, number in estimates)]
        if numbers or meshes:
            # A sum is not finite if a term is not; that it may also overflow only costs a search.
            self.total = self._to_host(over_meshes(_summed(numbers, meshes), meshes))

    def _to_host(self, total: Tensor) -> Tensor:
        if total.device.type != "cuda":
            return total
        host = torch.empty(total.shape, dtype=total.dtype, pin_memory=True)
        host.copy_(total, non_blocking=True)
        self.event = torch.cuda.Event()
        self.event.record()
        return host

    def raised(self) -> bool:
        """Whether something may not be finite (on any rank)."""
        if self.event is not None:
            self.event.synchronize()
        return self.total is not None and not math.isfinite(self.total.item())

    def estimate(self) -> str | None:
        """The first estimate that is not finite."""
        return next((name for name, number in self.estimates if not math.isfinite(number.item())), None)

    def confirmed(self, culprit: Any) -> bool:
        """Whether the search found something here or, where ranks share parameters, on another rank. All ranks ask together."""
        here = torch.tensor(float(culprit is not None), device=self.meshes[0].device_type if self.meshes else "cpu")
        return bool(over_meshes(here, self.meshes).item())

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
    return math.isfinite(over_meshes(_summed(alarms_of(gradients), meshes), meshes).item())


def alarms_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Of each tensor a number, 0 where it is finite and not a number where it is not."""
    return [0 * peak for peak in torch._foreach_norm(list(tensors), float("inf"))] if tensors else []


def _summed(numbers: Sequence[Tensor], meshes: Sequence[Any]) -> Tensor:
    # A rank whose shards are all empty still takes part in what the ranks say to each other.
    if not numbers:
        return torch.zeros((), device=meshes[0].device_type if meshes else "cpu")
    first = numbers[0]
    return torch.stack([number.to(first.device, torch.float32) for number in numbers]).sum()


def over_meshes(x: Tensor, meshes: Sequence[Any]) -> Tensor:
    """The sum of a number over all ranks."""
    for mesh in meshes:
        for dim in range(mesh.ndim):
            torch.distributed.all_reduce(x, group=mesh.get_group(dim))
    return x
