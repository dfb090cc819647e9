"""How long a step of Distributed Shampoo takes on many devices, from what one of them does.

    T(R) = bytes moved / memory + products / multiply + roots · root(n) / every + (R − 1) · (latency + bytes of one part / network)

each for the process with most blocks, dealt as the optimizer deals them. Gradients are averaged before, for AdamW as well, which is
what it is compared with; its step is 7 words a parameter on every device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from fallline.core.checks import check_count
from fallline.core.linalg import inverse_root
from fallline.optim.directions.kronecker.blocks import merged, regions
from fallline.optim.engine.hyperparameters import check_positive
from fallline.optim.engine.placement import dealt

WORDS_OF_ADAMW = 7
WORDS_OF_GRAFT = 10
"""The gradient, its average and square read and written, and some words of what is between, for own blocks; applying is apart."""
WORDS_OF_MOVE = 3


@dataclass(frozen=True)
class Device:
    """What one device does, and its share of the network.

    Parameters
    ----------
    memory : float
        Bytes a second that elementwise arithmetic moves.
    multiply : float
        Multiplications and additions a second of batched products of blocks.
    root : float
        Seconds of the root of one matrix of the block's side, in a batch.
    network : float
        Bytes a second that one device receives in a gathering.
    latency : float, default 1e-5
        Seconds that a gathering takes for every other device (a ring).
    """

    memory: float
    multiply: float
    root: float
    network: float
    latency: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("memory", "multiply", "root", "network"):
            check_positive(name, getattr(self, name), "measure_device() measures it")


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step: ``elementwise`` and ``products`` of own blocks, ``roots`` by their share of it, ``gather``; and AdamW's."""

    ranks: int
    elementwise: float
    products: float
    roots: float
    gather: float
    adamw: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.elementwise + self.products + self.roots + self.gather

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {1e3 * getattr(self, name):.3g} ms" for name in ("elementwise", "products", "roots", "gather"))
        return f"StepTime({self.ranks} ranks: {1e3 * self.total:.3g} ms = {parts}; AdamW {1e3 * self.adamw:.3g} ms)"


def step_time(shapes: Iterable[Sequence[int]], ranks: int, device: Device, *, max_dim: int = 1024, root_every: int = 50,
              bytes_of_number: int = 4) -> StepTime:
    """Predict the time of a step of ``DistributedShampoo``.

    Parameters
    ----------
    shapes : iterable of tuple of int
        Of all parameters.
    ranks : int
    device : Device
        Measured with blocks of ``max_dim``; roots of smaller sides are taken to cost in proportion to their cube.
    max_dim, root_every : int
        Of the optimizer.
    bytes_of_number : int, default 4
        Of a direction on its way.
    """
    check_count("ranks", ranks, "1 predicts one process")
    blocks = [[block for region in regions(merged(tuple(shape) or (1,), max_dim), max_dim) for block in [region.shape] * region.blocks]
              for shape in shapes]
    loads = [0] * ranks
    owners = dealt([[math.prod(block) for block in own] for own in blocks], loads)
    products, roots = [0.0] * ranks, [0.0] * ranks
    for own, who in zip(blocks, owners, strict=True):
        for block, rank in zip(own, who, strict=True):
            products[rank] += sum(4.0 * math.prod(block) * n for n in block)  # statistics and step, 2 n flops a number each
            roots[rank] += sum((n / max_dim) ** 3 for n in block)
    parameters = sum(loads)
    gather = (ranks - 1) * (device.latency + max(loads) * bytes_of_number / device.network)
    return StepTime(
        ranks,
        elementwise=4.0 * (WORDS_OF_GRAFT * max(loads) + WORDS_OF_MOVE * parameters) / device.memory,
        products=max(products) / device.multiply,
        roots=max(roots) * device.root / root_every,
        gather=gather,
        adamw=4.0 * WORDS_OF_ADAMW * parameters / device.memory,
    )


def measure_device(max_dim: int = 1024, device: torch.device | str = "cpu", network: float = 1e9, latency: float = 1e-5,
                   repeats: int = 5) -> Device:
    """Measure what a device does with blocks of side ``max_dim``; the network, which one device does not show, is given.

    Parameters
    ----------
    max_dim : int, default 1024
    device : torch.device or str, default "cpu"
    network, latency : float
        Bytes a second and seconds, see :class:`Device`.
    repeats : int, default 5
    """
    check_count("max_dim", max_dim, "1024 is typical")
    check_count("repeats", repeats, "5 is typical")
    batch = max(1, 2**21 // max_dim**2)
    x = torch.randn(batch, max_dim, max_dim, device=device)
    A = x @ x.mT + max_dim * torch.eye(max_dim, device=device)
    flat, other = torch.randn(2**24, device=device), torch.randn(2**24, device=device)
    seconds = _seconds(lambda: torch.baddbmm(A, x, x.mT), device, repeats)
    return Device(memory=3 * flat.nbytes / _seconds(lambda: flat.add_(other, alpha=1e-3), device, repeats),
                  multiply=2.0 * batch * max_dim**3 / seconds,
                  root=_seconds(lambda: inverse_root(A, 4, 1e-12), device, max(1, repeats // 2)) / batch,
                  network=network, latency=latency)


def _seconds(call: Callable[[], object], device: torch.device | str, repeats: int) -> float:
    """The median time of a call, after one that is not told."""
    found = []
    for _ in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        found.append(time.perf_counter() - start)
    return median(found[1:])


def _wait(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
