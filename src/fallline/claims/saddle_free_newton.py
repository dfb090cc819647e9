"""Saddle-free Newton: out of saddles in as many steps however flat they are, and on where Newton's method stalls."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, exactly, recorded
from fallline.claims._tuning import spaced, steps_until
from fallline.core import tree
from fallline.core.counts import Counts
from fallline.core.keys import Key
from fallline.core.line_search import backtracking
from fallline.core.objective import ModelProblem
from fallline.core.operators import conjugate_gradient
from fallline.core.tree import Tree
from fallline.landscape import saddle_report
from fallline.optim import SaddleFreeNewton
from fallline.problems.images import digits_split

PAPER = Paper(
    slug="saddle-free-newton",
    title="Identifying and attacking the saddle point problem in high-dimensional non-convex optimization",
    arxiv="1406.2572",
    year=2014,
    room="optim",
    methods=("optim.SaddleFreeNewton",),
    headline="on small MLPs on MNIST and CIFAR, a deep autoencoder and a recurrent network it escapes plateaus where SGD and damped "
    "Newton stall, and reaches lower error; a critical point's index correlates with its error",
)
STEEP, FLAT = 15, 5
LEAST = -FLAT / 4
RATES = (0.25, 0.5, 1.0, 1.9)


def flat_part(y: Tensor) -> Tensor:
    """Σ −y²/2 + y⁴/4, least at ±1."""
    return (y**4 / 4 - y**2 / 2).sum(-1)


def start(seed: int) -> Tensor:
    """x = 1 and y = ±1e-3, before the rotation."""
    signs = 2.0 * torch.randint(2, (FLAT,), generator=Key(seed).fold("signs").generator()) - 1
    return torch.cat([torch.ones(STEEP, dtype=torch.float64), 1e-3 * signs.double()])


def saddle(seed: int, eps: float) -> tuple[fl.Problem, Tensor]:
    """½ Σ x² + ε Σ (−y²/2 + y⁴/4) in a random rotation, and the rotation."""
    normal = torch.randn(STEEP + FLAT, STEEP + FLAT, dtype=torch.float64, generator=Key(seed).fold("rotation").generator())
    rotation = torch.linalg.qr(normal).Q

    def f(v: Tensor) -> Tensor:
        z = v @ rotation
        return (z[:STEEP] ** 2).sum() / 2 + eps * flat_part(z[STEEP:])

    return fl.Smooth(f, rotation @ start(seed)), rotation


def reached(y: Tensor, first: Tensor) -> Tensor:
    """Whether the part of y is within a thousandth of its least value."""
    return flat_part(y) <= LEAST + 1e-3 * (flat_part(first) - LEAST)


def saddle_free(seed: int, eps: float) -> float:
    """Steps of saddle-free Newton."""
    problem, rotation = saddle(seed, eps)
    first = start(seed)[STEEP:]
    return steps_until(lambda v: bool(reached((v @ rotation)[STEEP:], first)), problem, fl.Train(SaddleFreeNewton), 200)


def gradient_descent(seeds: Sequence[int], eps: float, limit: int) -> list[float]:
    """Steps at the best of four learning rates, seed by seed; the rotation makes no difference to it."""
    first = torch.stack([start(s)[STEEP:] for s in seeds])
    y, lr = first.expand(len(RATES), *first.shape), torch.tensor(RATES, dtype=torch.float64)[:, None, None]
    taken = torch.full((len(RATES), len(seeds)), math.inf, dtype=torch.float64)
    for step in range(1, limit + 1):
        y = y - lr * eps * (y**3 - y)
        if step % 10 == 0 or step < 500:
            taken = torch.where(taken.isinf() & reached(y, first), step, taken)
            if bool(taken.isfinite().any(0).all()):
                break
    return taken.amin(0).tolist()


def newton(seed: int, eps: float) -> fl.landscape.SaddleReport:
    """Where 30 steps of Newton's method end."""
    problem, _ = saddle(seed, eps)
    x = problem.x0
    for _ in range(30):
        x = x - torch.linalg.solve(problem.hessian(x), problem.gradient(x))
    return saddle_report(problem, x)


@claim("a hundred times flatter saddle costs saddle-free Newton at most 1.5 times the steps, gradient descent at least 30 times, and "
       "Newton's method ends in it")
def flat_saddles(scale: Scale, seed: int) -> Evidence:
    seeds = range(seed, seed + (3 if scale is Scale.QUICK else 10))
    ours = {eps: [saddle_free(s, eps) for s in seeds] for eps in (0.1, 1e-3)}
    descent = {eps: gradient_descent(seeds, eps, 60_000) for eps in (0.1, 1e-3)}
    ends = [newton(s, 1e-3) for s in seeds]
    return Evidence([
        at_most("steps of saddle-free Newton, ε = 0.001 / ε = 0.1", [b / a for a, b in zip(ours[0.1], ours[1e-3], strict=True)], 1.5),
        at_least("steps of gradient descent, ε = 0.001 / ε = 0.1",
                 [b / a for a, b in zip(descent[0.1], descent[1e-3], strict=True)], 30.0),
        exactly("negative eigenvalues where Newton's method ends", [end.negative_index for end in ends], FLAT),
        at_most("gradient norm where Newton's method ends", [end.grad_norm for end in ends], 1e-9),
        *(recorded(f"steps of {name}, ε = {eps:g}", steps[eps]) for name, steps in
          (("saddle-free Newton", ours), ("gradient descent", descent)) for eps in (0.1, 1e-3)),
    ], notes=["Until the flat part of f is within a thousandth of its least value. Learning rates of gradient descent 0.25, 0.5, 1 and "
              "1.9, the best for each ε; saddle-free Newton at its defaults."])


class Narrow(nn.Sequential):
    """64-5-10 with tanh, its weights and biases torch's own times ``factor``."""

    def __init__(self, seed: int, factor: float) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(Key(seed).fold("weights").integer())
            super().__init__(nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 10))
        self.double()
        with torch.no_grad():
            for p in self.parameters():
                p.mul_(factor)


def newton_cg(batch: ModelProblem, limit: int) -> list[float]:
    """Losses of truncated Newton steps in place, until ten of them lower the loss by less than a thousandth.

    Conjugate gradients on the Hessian, at most 50 of them and none beyond a direction of negative curvature; Armijo's condition.
    """
    losses: list[float] = []
    while len(losses) < limit and (len(losses) < 11 or losses[-11] - losses[-1] > 1e-3 * losses[-11]):
        loss, gradient = batch.value_and_gradient()
        g = tree.flatten(gradient)
        direction = conjugate_gradient(batch.hessian_operator(), -g, tol=1e-3, max_iterations=50).solution
        direction = direction if bool(direction.any()) else -g
        point, along = tree.clone(batch.variables), tree.unflatten(direction, batch.variables)
        found = backtracking(lambda step, point=point, along=along: float(batch.value(tree.axpy(step, along, point))),  # type: ignore[misc]
                             float(loss), float(g @ direction))
        with torch.no_grad():
            for name, p in batch.variables.items():
                p.add_(found.step * along[name])
        losses.append(float(loss))
    return losses


def gradient_equivalents(counts: Counts) -> float:
    """A Hessian-vector product is two gradients, a value a third of one."""
    return counts["gradients"] + 2 * counts["hvps"] + counts["values"] / 3


def best_descents(starts: Sequence[Tree], data: tuple[Tensor, Tensor], rates: Sequence[float], steps: int) -> list[float]:
    """The loss after full-batch gradient descent at the best of the rates, start by start."""
    network, (x, y) = Narrow(0, 1.0), data
    weights = {name: torch.stack([w[name].detach() for w in starts]).repeat(len(rates), *(1,) * starts[0][name].ndim)
               for name in starts[0]}
    lr = torch.tensor(rates, dtype=x.dtype).repeat_interleave(len(starts))

    def loss(w: Tree) -> Tensor:
        return cross_entropy(functional_call(network, w, (x,)), y)

    gradients = torch.func.vmap(torch.func.grad(loss))
    for _ in range(steps):
        found = gradients(weights)
        weights = {name: w - lr.view(-1, *(1,) * (w.ndim - 1)) * found[name] for name, w in weights.items()}
    ends = torch.func.vmap(loss)(weights).view(len(rates), len(starts))
    return ends.where(ends.isfinite(), torch.inf).amin(0).tolist()


@claim("where Newton-CG stalls on a narrow network saddle-free Newton lowers the loss by at least a fifth in 20 steps, and by more "
       "than gradient descent for the same price")
def stalled(scale: Scale, seed: int) -> Evidence:
    (x, y), _ = digits_split()
    rows = 256 if scale is Scale.QUICK else len(y)
    data = x[:rows].double(), y[:rows]
    seeds = range(seed, seed + 3)
    before, after, prices, starts, index, length = [], [], [], [], [], []
    for s in seeds:
        model = Narrow(s, 1e-3)
        objective = fl.Objective(model, cross_entropy)
        length.append(len(newton_cg(objective(*data), 100)))
        index.append(saddle_report(objective(*data)).negative_index)
        starts.append(tree.clone(dict(model.named_parameters())))
        before.append(float(objective(*data).value()))
        objective.counts.restore({})
        optimizer = SaddleFreeNewton(model.parameters())
        for _ in range(20):
            optimizer.step(objective(*data))
        prices.append(gradient_equivalents(objective.counts))
        after.append(float(objective(*data).value()))
    rates = spaced(1.0, 10**0.5, 4)
    descent = best_descents(starts, data, rates, round(max(prices)))
    plain = newton_cg(fl.Objective(Narrow(seed, 1.0), cross_entropy)(*data), 30 if scale is Scale.QUICK else 100)
    return Evidence([
        at_least("share of the loss that saddle-free Newton takes off", [1 - b / a for a, b in zip(before, after, strict=True)], 0.2),
        at_most("loss, saddle-free Newton / gradient descent", [a / b for a, b in zip(after, descent, strict=True)], 1.0),
        recorded("iterations of Newton-CG until ten of them gain less than 0.1 per cent, at most 100", length),
        recorded("negative eigenvalues of 385 there", index),
        recorded("loss there", before), recorded("loss after 20 steps of saddle-free Newton", after),
        recorded("loss of gradient descent", descent), recorded("price of the 20 steps in gradients", prices),
        recorded("loss of Newton-CG from torch's own initial weights, where it does not stall", plain[-1]),
    ], notes=[f"64-5-10 with tanh on {rows:,} digits at once, from weights a thousandth of torch's own, near the saddle at 0; from "
              "torch's own Newton-CG did not stall, in 300 iterations on 1,437 digits at three seeds. A gradient counts 1, a "
              "Hessian-vector product 2, a value 1/3; gradient descent at the best of four rates from 0.18 to 5.6. Not the paper's "
              "autoencoder."])
