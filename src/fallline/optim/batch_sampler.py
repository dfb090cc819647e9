"""Batches whose size may grow while a DataLoader hands them out, in pieces that fit the memory.

    epoch e visits the samples in the order of a permutation drawn from (seed, e)
    a batch of size b comes in pieces of at most ``micro_batch`` samples, each with the weight (its samples) / b

Lau, Liu, Kolar: AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods, arXiv 2402.11215.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sized
from typing import Any, NamedTuple

import torch
from torch.utils.data import Sampler

from fallline.core.keys import Key

SETTINGS = ("samples", "seed", "shuffle", "drop_last", "micro_batch", "replicas", "rank")
"""What must be the same for a state to go on."""


class Piece(NamedTuple):
    """What a loader gave, its share of the batch, and whether it ends the batch."""

    data: Any
    weight: float
    last: bool


class AdaptiveBatchSampler(Sampler[list[int]]):
    """A batch sampler for ``torch.utils.data.DataLoader`` whose batch size can grow, and which resumes exactly.

    >>> sampler = AdaptiveBatchSampler(dataset, 8, largest=4096, micro_batch=256, seed=0)
    >>> loader = DataLoader(dataset, batch_sampler=sampler, num_workers=2)
    >>> for epoch in range(sampler.epoch, epochs):
    ...     for (x, y), weight, last in sampler.over(loader):
    ...         (weight * loss_fn(model(x), y)).backward()
    ...         if last:
    ...             optimizer.step()
    ...             optimizer.zero_grad()

    and, where a test is due, ``sampler.grow_to(norm_test(per_sample_gradients(objective(x, y)), largest=sampler.largest))``.

    Parameters
    ----------
    dataset_or_length : sized dataset or int
    size : int
        b, of the first batches, for each of the ``replicas``.
    largest : int, optional
        The size is never more; all samples of a replica by default.
    micro_batch : int, optional
        At most so many samples at a time: larger batches come in pieces. By default a batch is one piece.
    shuffle : bool, default True
    drop_last : bool, default True
        Leave out what remains of an epoch once it is less than a batch. (Torch's default is False. A remainder of one sample has no
        variance to test.)
    seed : int, default 0
        Of the permutations; the same on all replicas.
    rank, replicas : int, default 0 and 1
        This process's share of the samples, every ``replicas``-th of the permutation, as many for each.

    Notes
    -----
    A loader with worker processes asks for batches ahead (``prefetch_factor`` · ``num_workers`` of them), so a new size is seen so
    many pieces later. `over` keeps track of what has really been received: ``state_dict()`` inside or after its loop says where the
    loop is, not the loader, and holds the sizes already planned; a run that goes on from it with the same loader is the run that was
    not stopped. Without `over` every piece handed out counts as received, which is right without workers. Save where ``last`` is true:
    gradients accumulated so far are not the sampler's.

    Breaking off a loop and starting another begins the next epoch, as with any loader; only after ``load_state_dict`` does a loop
    begin in the middle of one. Use one loader at a time.
    """

    def __init__(self, dataset_or_length: Sized | int, size: int, *, largest: int | None = None, micro_batch: int | None = None,
                 shuffle: bool = True, drop_last: bool = True, seed: int = 0, rank: int = 0, replicas: int = 1) -> None:
        length = dataset_or_length if isinstance(dataset_or_length, int) else len(dataset_or_length)
        _whole("replicas", replicas, 1)
        _whole("rank", rank, 0, replicas - 1)
        _whole("dataset_or_length", length, replicas)
        self.samples = length // replicas
        self._total, self.rank, self.replicas = length, rank, replicas
        self.largest = self.samples if largest is None else largest
        _whole("largest", self.largest, 1, self.samples)
        _whole("size", size, 1, self.largest)
        if micro_batch is not None:
            _whole("micro_batch", micro_batch, 1)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ValueError(f"seed must be a whole number, got {seed!r}")
        self.micro_batch, self.shuffle, self.drop_last, self.seed = micro_batch, shuffle, drop_last, seed
        self._size, self._epoch, self._position = size, 0, 0
        # Pieces planned and not yet received, of which the first few are handed out.
        self._planned: deque[tuple[int, float, bool]] = deque()
        self._handed = 0
        self._begun = self._tracked = self._done = False

    @property
    def size(self) -> int:
        """The size of the batches planned from now on."""
        return self._size

    @property
    def epoch(self) -> int:
        """The epoch that is under way; the next one when all of one is received."""
        return self._epoch + self._finished()

    def grow_to(self, size: int) -> int:
        """Let the batch size be ``size``, at most ``largest`` and never less than it was; return it."""
        _whole("size", size, 1)
        self._size = max(self._size, min(size, self.largest))
        return self._size

    def __len__(self) -> int:
        """How many pieces an epoch has at the size of now."""
        whole, rest = divmod(self.samples, self._size)
        return whole * len(self._pieces(self._size)) + (0 if self.drop_last or not rest else len(self._pieces(rest)))

    def __iter__(self) -> Iterator[list[int]]:
        # An epoch begins with the first batch, not with the iterator: loaders make one that they do not use.
        if self._begun:
            self._epoch, self._position = self._epoch + 1, 0
            self._planned.clear()
        self._begun, self._done, self._handed = True, False, 0
        yield from self._indices(self._epoch)

    def over(self, loader: Iterable[Any]) -> Iterator[Piece]:
        """Iterate over a loader that has this batch sampler, with the weight of every piece in its batch."""
        if not getattr(loader, "in_order", True):
            raise ValueError("loader must hand batches out in order: make it with in_order=True, for weights belong to pieces in turn")
        self._tracked = True
        try:
            for data in loader:
                _, weight, last = self._receive()
                yield Piece(data, weight, last)
        finally:
            self._tracked = False

    def _indices(self, epoch: int) -> Iterator[list[int]]:
        order = self._order(epoch)
        at = self._position
        while self._epoch == epoch:
            if self._handed == len(self._planned):
                left = self.samples - at
                if not left or (self.drop_last and left < self._size):
                    break
                self._planned.extend(self._pieces(min(self._size, left)))
            length = self._planned[self._handed][0]
            self._handed += 1
            if not self._tracked:
                self._receive()
            yield order[at:at + length]
            at += length
        self._done = self._epoch == epoch

    def _order(self, epoch: int) -> list[int]:
        if not self.shuffle:
            return list(range(self._total))[self.rank::self.replicas][:self.samples]
        generator = Key(self.seed).fold("epoch", epoch).generator()
        order: list[int] = torch.randperm(self._total, generator=generator)[self.rank::self.replicas][:self.samples].tolist()
        return order

    def _pieces(self, size: int) -> list[tuple[int, float, bool]]:
        """Lengths, weights, and which is the last, of a batch's pieces."""
        step = size if self.micro_batch is None else self.micro_batch
        return [(min(step, size - start), min(step, size - start) / size, start + step >= size) for start in range(0, size, step)]

    def _receive(self) -> tuple[int, float, bool]:
        if not self._handed:
            raise RuntimeError("the loader gave more batches than this sampler handed out: make it with batch_sampler=sampler")
        self._handed -= 1
        piece = self._planned.popleft()
        self._position += piece[0]
        return piece

    def _finished(self) -> bool:
        return self._done and not self._planned

    def state_dict(self) -> dict[str, Any]:
        """The position and the size, of plain numbers."""
        finished = self._finished()
        return {"epoch": self.epoch, "position": 0 if finished else self._position, "size": self._size,
                "planned": [] if finished else [list(piece) for piece in self._planned],
                **{name: getattr(self, name) for name in SETTINGS}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict()``: the next loop begins there."""
        for name in SETTINGS:
            if name not in state:
                raise ValueError(f"the state is not of an AdaptiveBatchSampler: it has no {name!r}")
            if state[name] != getattr(self, name):
                raise ValueError(f"the state is of a sampler with {name}={state[name]}, and this one has {name}={getattr(self, name)}")
        _whole("size", state["size"], 1, self.largest)
        self._epoch, self._position, self._size = state["epoch"], state["position"], state["size"]
        self._planned = deque((int(length), float(weight), bool(last)) for length, weight, last in state["planned"])
        self._handed, self._begun, self._done = 0, False, False

    def __repr__(self) -> str:
        pieces = "" if self.micro_batch is None else f" in pieces of {self.micro_batch}"
        return (f"AdaptiveBatchSampler(size={self._size} of at most {self.largest}{pieces}; epoch {self.epoch}, "
                f"{self._position:,} of {self.samples:,} samples)")


def _whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {limits}, got {value!r}")
