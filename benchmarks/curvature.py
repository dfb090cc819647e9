"""Time of curvature products and of the exact Gauss-Newton step

    python benchmarks/curvature.py [--repeats 15] [--threads 2] [--quick]

Products: twenty of them with the Hessian and with the Gauss-Newton matrix of a 256-512-512-10 network on 64 samples, through a graph
that is kept, in turn with as many that evaluate the model again: ``realisation.hvp``, and ``torch.func``'s forward-mode and
reverse-mode derivatives around the loss's. The exact step: EGN on 16 samples with three outputs, on 80,003 parameters in turn with
20,003, of which the claim allows six times the time.
"""

from __future__ import annotations

import itertools
from functools import partial

import torch
from figures import Goal, Table
from harness import Contestant, Operation, Options, race, run
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline.core import tree
from fallline.core.curvature import GaussNewton
from fallline.core.objective import ModelProblem

PRODUCTS = 20


def batch(widths: tuple[int, ...], samples: int) -> ModelProblem:
    """A tanh network's cross-entropy on random samples."""
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.Tanh())]
    x, labels = torch.randn(samples, widths[0]), torch.randint(widths[-1], (samples,))
    return fl.Objective(nn.Sequential(*layers[:-1]), cross_entropy)(x, labels)


def hessian_anew(realisation: ModelProblem, v: dict[str, Tensor]) -> None:
    """Every product evaluates and differentiates the loss."""
    for _ in range(PRODUCTS):
        realisation.hvp(None, v)


def hessian_kept(realisation: ModelProblem, v: Tensor) -> None:
    """The gradient's graph is built once, and is part of the time."""
    operator = realisation.hessian_operator()
    for _ in range(PRODUCTS):
        operator.matvec(v)


def gauss_newton_anew(realisation: ModelProblem, v: dict[str, Tensor]) -> None:
    """Every product evaluates the model in forward mode."""
    point = {name: p.detach() for name, p in realisation.variables.items()}
    outputs, pullback, *_ = torch.func.vjp(realisation.outputs, point)
    curvature = torch.func.vjp(torch.func.grad(realisation.loss), outputs)[1]
    for _ in range(PRODUCTS):
        pullback(curvature(torch.func.jvp(realisation.outputs, (point,), (v,))[1])[0])


def gauss_newton_kept(realisation: ModelProblem, v: Tensor) -> None:
    """The model is linearised once, which is part of the time."""
    operator = GaussNewton(realisation).operator
    for _ in range(PRODUCTS):
        operator.matvec(v)


def products(options: Options) -> list[Table]:
    """Graphs that are kept against evaluating again."""
    found = []
    widths = (8, 8, 3) if options.quick else (256, 512, 512, 10)
    for matrix, anew, kept in (("the Hessian", hessian_anew, hessian_kept), ("Gauss-Newton", gauss_newton_anew, gauss_newton_kept)):
        realisation = batch(widths, 64)
        v = {name: torch.randn_like(p) for name, p in realisation.variables.items()}
        reference = Contestant("evaluated again", lambda anew=anew, r=realisation, v=v: Operation(partial(anew, r, v)))
        ours = Contestant("kept", lambda kept=kept, r=realisation, v=v: Operation(partial(kept, r, tree.flatten(v))))
        goals = [Goal("kept", "ratio", 1.0, "no product evaluates the model")]
        found += race(f"Twenty products with {matrix}", reference, [ours], options, goals=goals)
    return found


def stepping(width: int) -> Contestant:
    """A step of EGN on 20 ``width`` + 3 parameters."""
    def set_up() -> Operation:
        realisation = batch((16, width, 3), 16)
        optimizer = fl.optim.EGN(realisation.model.parameters())
        return Operation(partial(optimizer.step, realisation))

    return Contestant(f"{20 * width + 3:,} parameters", set_up)


def exact_steps(options: Options) -> list[Table]:
    """Four times the parameters."""
    width = 10 if options.quick else 1_000
    goals = [Goal(f"{80 * width + 3:,} parameters", "ratio", 6.0, "linear in the parameters, and the half of it again")]
    return race("A step of EGN, 48 outputs", stepping(width), [stepping(4 * width)], options, goals=goals)


def tables(options: Options) -> list[Table]:
    """All three tables."""
    return products(options) + exact_steps(options)


if __name__ == "__main__":
    run(__file__, __doc__, tables)
