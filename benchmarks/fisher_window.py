"""Time of products with the inverse Fisher matrix of m gradients, as their number and the dimension grow

    python benchmarks/fisher_window.py [--repeats 15] [--threads 2] [--quick]

M-FAC's two algorithms, of float32 gradients. Dynamic: a gradient takes the place of the oldest of a full window, and one product,
O(d m + m³); every contestant takes turns with the smallest window. Static: the set-up for given gradients, O(d m²), and a product,
O(d m), against the smallest set-up. The goals are one and a half times what the orders say.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from figures import Goal, Table
from harness import Contestant, Operation, Options, race, run

from fallline.core.fisher_window import FisherWindow, StaticFisher

M, D = 32, 200_000


def rows(m: int, d: int) -> torch.Tensor:
    """Normal gradients."""
    return torch.randn(m, d, generator=torch.Generator().manual_seed(0))


def dynamic(m: int, d: int) -> Operation:
    """One gradient more and one product."""
    window = FisherWindow(m, d, 1e-5)
    for g in rows(m, d):
        window.push(g)
    g, x = rows(2, d)
    return Operation(lambda: window.push(g).ihvp(x))


def set_up(m: int, d: int) -> Operation:
    """All gradients at once."""
    gradients = rows(m, d)
    return Operation(lambda: StaticFisher(gradients, 1e-5))


def product(m: int, d: int) -> Operation:
    """One product after the set-up."""
    static, x = StaticFisher(rows(m, d), 1e-5), rows(1, d)[0]
    return Operation(lambda: static.ihvp(x))


def contestant(name: str, make: Callable[[int, int], Operation], m: int, d: int) -> Contestant:
    """An operation at one size."""
    return Contestant(f"{name}, m = {m}, d = {d:,}", lambda: make(m, d))


def tables(options: Options) -> list[Table]:
    """One for each algorithm."""
    d = D // 100 if options.quick else D
    sizes = [(M, d), (M, 4 * d), (2 * M, d), (4 * M, d)]
    windows = [contestant("dynamic", dynamic, *size) for size in sizes]
    small = d // 10
    statics = [contestant("set-up", set_up, M, small), contestant("set-up", set_up, M, 4 * small),
               contestant("set-up", set_up, 2 * M, small), contestant("product", product, M, small),
               contestant("product", product, M, 4 * small)]
    moving = [Goal(windows[1].name, "ratio", 6.0, "four times d"), Goal(windows[3].name, "ratio", 6.0, "four times m")]
    fixed = [Goal(statics[1].name, "ratio", 6.0, "four times d"), Goal(statics[2].name, "ratio", 6.0, "twice m, squared")]
    return [*race("Push and product", windows[0], windows[1:], options, memory=True, goals=moving),
            *race("Static", statics[0], statics[1:], options, goals=fixed)]


if __name__ == "__main__":
    run(__file__, __doc__, tables, ())
