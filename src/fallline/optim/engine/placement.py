"""Which process owns which part of a parameter, and how the parts come together.

Parts are dealt from the largest to the smallest, each to the process that has fewest numbers so far; the first one where several have.
All processes deal alike. A later group is dealt on top of what there is, so that nothing that has state moves.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Processes:
    """A process group by its name, so that it can be copied and compared; all processes where that is None."""

    name: str | None = None

    @classmethod
    def of(cls, group: Any) -> Processes:
        """Those of a process group, or all for None."""
        if group is not None and not hasattr(group, "group_name"):
            raise TypeError(f"process_group must be a torch.distributed process group, got {type(group).__name__}")
        return cls(None if group is None else group.group_name)

    @property
    def group(self) -> Any:
        """The process group; None means all processes."""
        return None if self.name is None else distributed.distributed_c10d._resolve_process_group(self.name)  # type: ignore[arg-type]

    @property
    def world(self) -> int:
        """How many there are; 1 where ``torch.distributed`` is not initialised."""
        return distributed.get_world_size(self.group) if distributed.is_initialized() else 1

    @property
    def rank(self) -> int:
        """Which of them this is."""
        return distributed.get_rank(self.group) if distributed.is_initialized() else 0


def dealt(sizes: Sequence[Sequence[int]], loads: list[int]) -> list[list[int]]:
    """The owner of every part of every parameter; ``loads``, what each owner has so far, grows."""
    owners = [[0] * len(own) for own in sizes]
    parts = [(n, i, j) for i, own in enumerate(sizes) for j, n in enumerate(own)]
    least = [(load, rank) for rank, load in enumerate(loads)]
    heapq.heapify(least)
    for n, i, j in sorted(parts, key=lambda part: -part[0]):  # stable: equal sizes stay in the order of the parameters
        load, rank = heapq.heappop(least)
        owners[i][j] = rank
        heapq.heappush(least, (load + n, rank))
    for load, rank in least:
        loads[rank] = load
    return owners


class Placement:
    """Parts of parameters and their owners among processes."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.loads = [0] * processes.world
        self.owners: list[list[int]] = []
        """Of every part of every parameter, in the order of the optimizer."""
        self.gathered_bytes = 0
        """What every process received in the last gathering, its own parts and padding included."""

    def deal(self, sizes: Sequence[Sequence[int]]) -> None:
        """Give the parts of further parameters, of so many numbers each, to owners."""
        self.owners += dealt(sizes, self.loads)

    def owned(self, i: int) -> tuple[int, ...]:
        """The parts of parameter ``i`` that this process owns."""
        rank = self.processes.rank
        self._check()
        return tuple(j for j, owner in enumerate(self.owners[i]) if owner == rank)

    def _check(self) -> None:
        if self.processes.world != len(self.loads):
            raise RuntimeError(f"the optimizer was made for {len(self.loads)} processes, and there are {self.processes.world}: make it "
                               "after init_process_group, and take its state from a checkpoint of torch.distributed.checkpoint")

    def gather(self, parts: Mapping[int, list[Tensor]], dtype: torch.dtype | None) -> None:
        """Replace the parts of parameters that belong to other processes by what these have, sent in ``dtype``.

        One collective for every dtype, of which every process sends as much as the one with most: all take part, also without a part.
        """
        kinds: dict[torch.dtype, list[tuple[int, int]]] = {}
        for i, own in parts.items():
            for j, part in enumerate(own):
                kinds.setdefault(dtype or part.dtype, []).append((i, j))
        self.gathered_bytes = 0
        for kind, places in kinds.items():
            self._gather(parts, places, kind)

    def _gather(self, parts: Mapping[int, list[Tensor]], places: list[tuple[int, int]], dtype: torch.dtype) -> None:
        by_owner: list[list[tuple[int, int]]] = [[] for _ in range(self.processes.world)]
        for i, j in places:
            by_owner[self.owners[i][j]].append((i, j))
        sizes = [[parts[i][j].numel() for i, j in own] for own in by_owner]
        length, some = max(map(sum, sizes)), parts[places[0][0]][places[0][1]]
        mine = [parts[i][j].to(dtype) for i, j in by_owner[self.processes.rank]]
        sent = torch.cat([*mine, torch.zeros(length - sum(sizes[self.processes.rank]), dtype=dtype, device=some.device)])
        received = torch.empty(self.processes.world, length, dtype=dtype, device=some.device)
        distributed.all_gather(list(received.unbind()), sent, group=self.processes.group)
        self.gathered_bytes += received.nbytes
        for own, lengths, row in zip(by_owner, sizes, received, strict=True):
            for (i, j), part in zip(own, row[: sum(lengths)].split(lengths) if lengths else (), strict=True):
                parts[i][j] = part.to(parts[i][j].dtype)
