"""Gradient regularisation: its finite ascent helps a diagonal linear network find a sparse vector, at the price of two gradients."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, between, claim, recorded
from fallline.optim import SGD, GradReg, effective_alpha
from fallline.problems import digits_mlp
from fallline.problems.diagonal import sparse_regression

PAPER = Paper(
    slug="gradient-regularization",
    title="Understanding Gradient Regularization in Deep Learning: Efficient Finite-Difference Computation and Implicit Bias",
    arxiv="2210.02720",
    year=2023,
    room="optim",
    methods=("optim.GradReg", "optim.effective_alpha"),
    headline="over wide ranges of γ and ε the forward difference generalises best, then double backpropagation, then the backward "
    "difference, for an MLP and a ResNet on CIFAR; the forward difference costs less than double backpropagation",
)
ALPHA, LR, STEPS, SEEDS = 0.1, 3e-4, 15_000, 3
# The forward difference with γ = 0 is gradient descent, that with ε < 0 the backward difference of −ε.
METHODS = {"gradient descent": (0.0, 0.01), "forward": (0.03, 0.01), "forward, ε = 0.001": (0.03, 0.001), "backward": (0.03, -0.01),
           "forward, γ = 0.003": (0.003, 0.01), "forward, γ = 0.01": (0.01, 0.01)}


def descended(inputs: Tensor, answers: Tensor) -> Tensor:
    """The factors ``(u, v)`` that every method comes to on every data set, ``(2, sets, methods, d)``, in one run.

    ``inputs`` are ``(sets, n, d)``, the loss Σ (⟨u² − v², x⟩ − y)² / (4 n).
    """
    sets, n, d = inputs.shape
    squares, products = inputs.mT @ inputs / n, answers.unsqueeze(-2) @ inputs / n
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).view(2, 1, 1, 1)
    factors = torch.full((2, sets, len(METHODS), d), ALPHA, dtype=torch.float64, requires_grad=True)
    optimizer = GradReg([factors], SGD, lr=LR, nonfinite="ignore")
    gamma, eps = torch.tensor(list(METHODS.values()), dtype=torch.float64).mT.unsqueeze(-1)
    vars(optimizer).update(gamma=gamma, eps=eps)  # a pair for every method

    def closure() -> None:
        with torch.no_grad():
            u, v = factors
            factors.grad = torch.baddbmm(products, u * u - v * v, squares, beta=-1) * (signs * factors)

    for _ in range(STEPS):
        optimizer.step(closure)
    return factors.detach()


@claim("on a diagonal linear network the forward difference has at most 0.75 of gradient descent's error, and the backward none less")
def sparsity(scale: Scale, seed: int) -> Evidence:
    seeds = range(seed, seed + (SEEDS if scale is Scale.QUICK else 10))
    inputs, answers, solution = (torch.stack(parts) for parts in zip(*map(sparse_regression, seeds), strict=True))
    centred, centred_answers, _ = (torch.stack(parts) for parts in zip(*(sparse_regression(s, mean=0.0) for s in seeds), strict=True))
    u, v = descended(torch.cat([inputs, centred]), torch.cat([answers, centred_answers]))
    found = (u * u - v * v - solution.repeat(2, 1).unsqueeze(1)).square().sum(-1)
    all_errors = dict(zip(METHODS, found.mT, strict=True))
    errors = {name: each[:len(seeds)] for name, each in all_errors.items()}
    control = {name: each[len(seeds):] for name, each in all_errors.items()}
    alphas = dict(zip(METHODS, effective_alpha(u, v)[:len(seeds)].log().mean(-1).exp().mT, strict=True))
    plain, rising = errors["gradient descent"], ("gradient descent", "forward, γ = 0.003", "forward, γ = 0.01", "forward")
    steps = torch.stack([errors[b] / errors[a] for a, b in itertools.pairwise(rising)])
    return Evidence([
        at_most("error, forward / gradient descent", (errors["forward"] / plain).tolist(), 0.75),
        at_most("error, forward with ε = 0.001 / gradient descent", (errors["forward, ε = 0.001"] / plain).tolist(), 1 - 1e-9),
        at_least("error, forward with ε = 0.001 / forward", (errors["forward, ε = 0.001"] / errors["forward"]).tolist(), 1 + 1e-9),
        at_least("error, backward / gradient descent", (errors["backward"] / plain).tolist(), 0.97),
        at_most("largest ratio of the errors of neighbouring γ in {0, 0.003, 0.01, 0.03}", steps.amax(0).tolist(), 1 - 1e-9),
        recorded("error, forward / gradient descent, centred inputs", (control["forward"] / control["gradient descent"]).tolist()),
        *(recorded(f"error, {name}", each.tolist()) for name, each in errors.items()),
        *(recorded(f"effective α, {name}", alphas[name].tolist()) for name in ("gradient descent", "forward", "backward")),
    ], notes=["Error ‖u² − v² − β*‖² after 15,000 steps at learning rate 3e-4 from α = 0.1; 50 inputs in 100 dimensions with entries "
              "of mean and variance 5, five entries of β* different from 0; γ = 0.03 and ε = 0.01 unless said otherwise. Effective α "
              "is the geometric mean over the entries. The full scale has ten data sets, not a ResNet over a grid of γ and ε."])


def network(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network of three layers with smooth activations in float64, and 64 digits."""
    problem = digits_mlp(seed)
    layers = [nn.Tanh() if isinstance(layer, nn.ReLU) else layer for layer in problem.model.children()]
    inputs, targets = problem.data
    return copy.deepcopy(nn.Sequential(*layers)).double(), inputs[:64].double(), targets[:64]


def regularised(model: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    """The regularised rule, or gradient descent where no mode is given."""
    return GradReg(model.parameters(), SGD, **settings) if "mode" in settings else SGD(model.parameters(), **settings)


@claim("on three layers a step with the forward difference costs at most 2.3 gradients, and less than double backpropagation")
def cost(scale: Scale, seed: int) -> Evidence:
    model, inputs, targets = network(seed)
    operations, counts = {}, {}
    for name, settings in {"gradient": {}, "forward": {"mode": "forward"}, "double": {"mode": "double"}}.items():
        objective = fl.Objective(model, cross_entropy)
        with FlopCounterMode(display=False) as counter:
            regularised(model, lr=0.1, **settings).step(objective(inputs, targets))
        operations[name] = counter.get_total_flops()
        counts[name] = objective.counts["gradients"], objective.counts["hvps"]
    return Evidence([
        at_most("operations of matrix products, forward / a gradient", operations["forward"] / operations["gradient"], 2.3),
        at_most("operations of matrix products, forward / double", operations["forward"] / operations["double"], 1 - 1e-9),
        recorded("operations of matrix products, double / a gradient", operations["double"] / operations["gradient"]),
        *(recorded(f"{what} a step, {mode}", counts[mode][i]) for mode in ("forward", "double")
          for i, what in enumerate(("gradients", "Hessian-vector products"))),
    ], notes=["The paper's cost is time; operations are counted here. A 64-64-64-10 network with tanh, 64 digits. Both scales are the "
              "same."])


def direction(seed: int, **settings: Any) -> Tensor:
    """What a step of length 1 subtracts from the weights."""
    model, inputs, targets = network(seed)
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    regularised(model, lr=1.0, **settings).step(fl.Objective(model, cross_entropy)(inputs, targets))
    return start - nn.utils.parameters_to_vector(model.parameters()).detach()


@claim("the forward difference tends to double backpropagation as ε tends to 0, with an error proportional to ε")
def order(scale: Scale, seed: int) -> Evidence:
    lengths, slopes = (0.1, 0.03, 0.01, 0.003, 0.001), []
    for s in range(seed, seed + SEEDS):
        plain, exact = direction(s), direction(s, mode="double", gamma=1.0)
        errors = [float((direction(s, mode="forward", gamma=1.0, eps=eps) - exact).norm() / (exact - plain).norm()) for eps in lengths]
        slopes.append(float(np.polyfit(np.log(lengths), np.log(errors), 1)[0]))
    return Evidence([between("slope of log error against log ε", slopes, 0.8, 1.2)],
                    notes=["Error of the regularisation's part of a step relative to the exact part, ε from 0.1 to 0.001, on a "
                           "64-64-64-10 network with tanh and 64 digits. Both scales are the same."])
