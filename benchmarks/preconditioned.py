"""Time and memory of steps with Kronecker preconditioners, roots included

    python benchmarks/preconditioned.py [--repeats 15] [--threads 2] [--only shampoo] [--quick]

A turn is ten steps with one renewal of all roots (or of SOAP's bases, or ten chances in ten of an update of PSGD's factors), against
ten steps of ``torch.optim.AdamW(fused=True)``. "of the prediction" is the time of ours over what it should need: 1.3 times AdamW's,
plus the products (two for statistics and two for the step of every block, each step) and the roots alone, which are timed in the same
run as one batched call each. Two models: one GPT block, whose matrices are cut into blocks of 128; and six matrices of 512 × 512, which
nobody cuts, so that every peer has factors of the same size. HeavyBall compiles its steps; ours with blocks run eagerly.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from figures import Goal, Table
from harness import Contestant, Operation, Options, Pairs, peer, race, run
from optim_rules import Make
from optim_step import REFERENCE, Shapes, Stepping, state_bytes_of

import fallline.optim as optim
from fallline.core.linalg import inverse_pth_root

STEPS = 10
BLOCKS: Mapping[str, tuple[Shapes, int]] = {
    "one GPT block, blocks of 128": ([(1536, 512), (1536,), (512, 512), (512,), (2048, 512), (2048,), (512, 2048), (512,)], 128),
    "six matrices of 512 × 512": ([(512, 512)] * 6, 512),
}
OF_PREDICTION = "of the prediction"


def contestants(block: int) -> dict[str, Make]:
    """Ours and the peers at one block size and root interval."""
    often = {"root_every": STEPS, "start_step": 1}
    found: dict[str, Make] = {
        REFERENCE: lambda p: torch.optim.AdamW(p, fused=True),
        "scalable-shampoo, eigh": lambda p: optim.ScalableShampoo(p, block=block, method="eigh", **often),
        "scalable-shampoo, newton": lambda p: optim.ScalableShampoo(p, block=block, **often),
        "scalable-shampoo, late roots": lambda p: optim.ScalableShampoo(p, block=block, method="eigh", late=True, **often),
        "distributed-shampoo": lambda p: optim.DistributedShampoo(p, max_dim=block, **often),
        "shampoo-4bit": lambda p: optim.Shampoo4bit(p, T1=STEPS, T2=STEPS, max_dim=block),
        "dion, rank a quarter": optim.Dion,
        "pytorch-optimizer ScalableShampoo": lambda p: peer("pytorch_optimizer", "ScalableShampoo")(
            p, block_size=block, preconditioning_compute_steps=STEPS, start_preconditioning_step=1),
    }
    if block == 512:
        found["HeavyBall SOAP"] = lambda p: peer("heavyball", "SOAP")(p, precondition_frequency=STEPS, use_precond_schedule=False)
        found["HeavyBall PSGDKron"] = lambda p: peer("heavyball", "PSGDKron")(p, preconditioner_update_probability=1 / STEPS)
    return found


class Turns(Stepping):
    """Ten steps at a time."""

    @property
    def operation(self) -> Operation:
        """Ten steps, each with its gradients; one of them renews the roots."""
        return Operation(self._steps)

    def _steps(self) -> None:
        for _ in range(STEPS):
            self.give_gradients()
            self.optimizer.step()


def alone(function: Callable[[], object], repeats: int) -> float:
    """The median time of a call, in seconds."""
    function()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def products_and_roots(shapes: Shapes, block: int, repeats: int) -> float:
    """Seconds of the products of ten steps and of one set of roots, of matrices and of vectors, in batched calls."""
    cells = sum(math.prod(s) // block**2 for s in shapes if len(s) == 2)
    vectors = sum(math.prod(s) // block for s in shapes if len(s) == 1)
    x = torch.randn(cells, block, block)
    statistics_ = x @ x.mT + torch.eye(block)
    products = alone(lambda: torch.baddbmm(statistics_, x, x.mT), repeats)
    roots = alone(partial(inverse_pth_root, statistics_, 4, "eigh"), max(1, repeats // 5))
    return 4 * STEPS * products + (2 + vectors / cells) * roots


def tables(options: Options) -> list[Table]:
    """One table a model."""
    found = []
    for title, (shapes, block) in BLOCKS.items():
        shapes = [(128, 128)] if options.quick else shapes
        makers = contestants(128 if options.quick else block)
        work = products_and_roots(shapes, 128 if options.quick else block, options.repeats)

        def further(name: str, pairs: Pairs, work: float = work, makers: Mapping[str, Make] = makers,
                    shapes: Shapes = shapes) -> dict[str, float | None]:
            adamw, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
            state = {"state bytes a parameter": state_bytes_of(makers[name], shapes)}
            return {**state, OF_PREDICTION: ours / (1.3 * adamw + work)} if name.startswith(("scalable", "distributed")) else {**state}

        goals = [Goal(name, OF_PREDICTION, 1.0, "1.3 times AdamW's step, and the products and roots")
                 for name in makers if name.startswith(("scalable-shampoo, eigh", "distributed"))]
        goals += [Goal("scalable-shampoo, eigh", "ratio", name, "the peer at the same block size and interval")
                  for name in makers if name.startswith(("pytorch-optimizer", "HeavyBall"))]
        entrants = [Contestant(name, lambda make=make, shapes=shapes: Turns(make, shapes).operation)  # type: ignore[misc]
                    for name, make in makers.items()]
        found += race(title, entrants[0], entrants[1:], options, memory=True, further=further, goals=goals)
    return found


if __name__ == "__main__":
    run(__file__, __doc__ or "", tables, ("pytorch-optimizer", "heavyball"))
