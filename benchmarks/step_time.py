"""The time of a step of Distributed Shampoo over ranks: predicted from one device, and measured where there are processes

    python benchmarks/step_time.py [--repeats 15] [--threads 2] [--quick]

``fallline.optim.step_time`` predicts a step from what one device does (`fallline.optim.measure_device`: memory, products and roots of
blocks of 128, one thread a process) and what the network does. The first table holds it against one and two processes over gloo here,
with the time of gloo's own gathering of as many bytes as its network: one GPT block of width 512, roots every 10 steps; measured
milliseconds are of whole steps, roots included. The second predicts 1 to 4,096 devices like this one, with a network of 25 GB/s and 10
µs a device, for a GPT of 24 blocks of width 1,024, roots every 50 steps; times are in milliseconds. The same call with the figures of
a GPU predicts GPUs; none was measured here.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace

import torch
from figures import Goal, Row, Table
from harness import Options, run, tell_all
from optim_step import Shapes, Stepping

import fallline.optim as optim
from fallline.core.processes import run_gloo
from fallline.optim import Device, StepTime, step_time

BLOCK, EVERY = 128, 10
HERE: Shapes = [(1536, 512), (1536,), (512, 512), (512,), (2048, 512), (2048,), (512, 2048), (512,)]
LARGE: Shapes = [(3072, 1024), (3072,), (1024, 1024), (1024,), (4096, 1024), (4096,), (1024, 4096), (1024,)] * 24
RANKS = (1, 8, 16, 64, 256, 1024, 4096)
ERROR = "off by a factor"


def taken(rank: int, repeats: int) -> float:
    """Seconds of a step, the mean over turns of ten with one renewal, the median over turns."""
    stepping = Stepping(lambda p: optim.DistributedShampoo(p, max_dim=BLOCK, root_every=EVERY, start_step=1), HERE)
    found = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for _ in range(EVERY):
            stepping.give_gradients()
            stepping.optimizer.step()
        found.append((time.perf_counter() - start) / EVERY)
    return statistics.median(found[1:])


def gathering(rank: int, numbers: int, repeats: int) -> float:
    """Seconds of gloo's gathering of so many numbers of every process."""
    sent = torch.randn(numbers)
    received = torch.empty(torch.distributed.get_world_size(), numbers)
    found = []
    for _ in range(repeats + 1):
        torch.distributed.barrier()
        start = time.perf_counter()
        torch.distributed.all_gather(list(received.unbind()), sent)
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def parts(found: StepTime) -> Mapping[str, float]:
    """A prediction in milliseconds."""
    named = {name: 1e3 * getattr(found, name) for name in ("elementwise", "products", "roots", "gather", "total", "adamw")}
    return {**named, "total / AdamW": found.total / found.adamw}


def tables(options: Options) -> list[Table]:
    """Against processes here, and over ranks."""
    torch.set_num_threads(1)
    repeats = 2 if options.quick else options.repeats
    device = optim.measure_device(BLOCK, repeats=repeats)
    numbers = sum(map(math.prod, HERE))
    rows = []
    for ranks in (1, 2):
        seconds = taken(0, repeats) if ranks == 1 else max(run_gloo(taken, ranks, repeats))
        network = numbers / ranks * 4 / max(run_gloo(gathering, ranks, numbers // ranks, repeats)) if ranks > 1 else 1e9
        found = step_time(HERE, ranks, replace(device, network=network, latency=0.0), max_dim=BLOCK, root_every=EVERY)
        rows.append(Row(f"{ranks} process{'es' * (ranks > 1)}", milliseconds=1e3 * seconds,
                        figures={**parts(found), ERROR: max(found.total / seconds, seconds / found.total)}))
    goals = [Goal(row.name, ERROR, 1.5, "a model is worth its error") for row in rows]
    here = Table("Processes here", "", tuple(rows), tuple(goals))
    tell_all(here)
    far: Device = replace(device, network=25e9, latency=1e-5)
    times = {n: step_time(LARGE, n, far, max_dim=BLOCK) for n in RANKS}
    predicted = tuple(Row(f"{n} device{'s' * (n > 1)}", milliseconds=1e3 * found.total, figures=parts(found))
                      for n, found in times.items())
    over = Table("Predicted for devices like this one", "", predicted, ())
    tell_all(over)
    return [here, over]


if __name__ == "__main__":
    run(__file__, __doc__ or "", tables)
