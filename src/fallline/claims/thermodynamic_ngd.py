"""TNGD: the device's law, and training between SGD and natural gradients by how long the device runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_most, between, claim, recorded
from fallline.claims._networks import summed
from fallline.claims._tuning import Factory, spaced
from fallline.core.keys import Key
from fallline.core.operators import LinearOperator, OUSolver
from fallline.optim import SGD, TNGD
from fallline.problems import digits_mlp

PAPER = Paper(
    slug="thermodynamic-ngd",
    title="Thermodynamic Natural Gradient Descent",
    arxiv="2405.13817",
    year=2024,
    room="optim",
    methods=("optim.TNGD",),
    headline="on MNIST and fine-tuning DistilBERT for question answering ahead of Adam and digital natural gradients in modelled run "
    "time, at a first-order method's price per iteration on an analog device that is not built yet",
)
SIZE, SAMPLES, BETA_INV = 50, 2_000, 0.1
LEAST, LARGEST = 0.5, 10.0


def matrix(seed: int) -> Tensor:
    """Symmetric, of 50 eigenvalues spaced evenly from 0.5 to 10."""
    normal = torch.randn(SIZE, SIZE, dtype=torch.float64, generator=Key(seed).fold("matrix").generator())
    rotation = torch.linalg.qr(normal).Q
    return rotation @ torch.diag(torch.linspace(LEAST, LARGEST, SIZE, dtype=torch.float64)) @ rotation.mT


def slope(seed: int) -> float:
    """Of the logarithm of the error over time, without noise, from t = 20 to 40, when the other modes are gone."""
    A = matrix(seed)
    b = torch.randn(SIZE, dtype=torch.float64, generator=Key(seed).fold("b").generator())
    exact, times = torch.linalg.solve(A, b), torch.linspace(20, 40, 11, dtype=torch.float64)
    solver = OUSolver(LinearOperator.from_tensor(A), b, dt=0.1)
    errors = torch.stack([torch.linalg.vector_norm(solver.run(float(t)).solution - exact).log() for t in times])
    centred = times - times.mean()
    return float((centred @ errors) / (centred @ centred))


def covariance_error(seed: int) -> float:
    """Of 2,000 devices at once, that have run for 6 from 0, relative to β⁻¹ A⁻¹ in Frobenius' norm."""
    A = matrix(seed)
    solver = OUSolver(lambda x: x @ A, torch.zeros(SAMPLES, SIZE, dtype=torch.float64), dt=0.02, beta_inv=BETA_INV)
    found = solver.run(6.0, generator=Key(seed).fold("noise").generator()).solution.mT.cov()
    expected = BETA_INV * torch.linalg.inv(A)
    return float(torch.linalg.matrix_norm(found - expected) / torch.linalg.matrix_norm(expected))


@claim("without noise the error falls as e^{-λ_min t} within 10 per cent in the rate, with noise 2,000 samples have the covariance "
       "β⁻¹ A⁻¹ within 15 per cent")
def law(scale: Scale, seed: int) -> Evidence:
    seeds = range(seed, seed + (3 if scale is Scale.QUICK else 10))
    return Evidence([
        between("slope of the logarithm of the error / -λ_min", [-slope(s) / LEAST for s in seeds], 0.9, 1.1),
        at_most("relative error of the covariance", [covariance_error(s) for s in seeds], 0.15),
    ], notes=["n = 50, eigenvalues from 0.5 to 10, Euler steps of 0.1 and 0.02; the slope is that from t = 20 to 40, when other modes "
              "are gone. Exact samples would miss the covariance by about 0.11."])


class Stacked(nn.Module):
    """Networks of one architecture, ``(batch, seeds, …) -> (batch, rates × seeds, …)``: a tensor for every parameter and rate."""

    def __init__(self, networks: Sequence[nn.Module], rates: int) -> None:
        super().__init__()
        self.architecture, self.rates = (networks[0],), rates  # in a tuple, for its own weights are none of this module's
        weights = {name: torch.stack([dict(network.named_parameters())[name].detach() for network in networks])
                   for name, _ in networks[0].named_parameters()}
        self.names = list(weights)
        self.weights = nn.ParameterList(w.clone() for _ in range(rates) for w in weights.values())

    def forward(self, x: Tensor) -> Tensor:
        weights, each = list(self.weights), len(self.names)
        joined = {name: torch.cat(weights[i::each]) for i, name in enumerate(self.names)}
        return torch.vmap(lambda w, rows: functional_call(self.architecture[0], w, (rows,)), in_dims=(0, 1), out_dims=1)(
            joined, x.repeat(1, self.rates, 1))


STEPS = 50
TIMES = (0.0, 0.3, 1.0, 3.0, 10.0, 30.0)


def least_losses(problems: Sequence[fl.Training], rates: Sequence[float], key: int, optimizer: Factory, **hyper: Any) -> Tensor:
    """The training loss after 50 steps at the best learning rate, seed by seed.

    The linear system of all networks together falls into those of each.
    """
    networks = Stacked([p.model for p in problems], len(rates))
    x, y = problems[0].data
    each = len(networks.names)
    groups = [{"params": list(networks.weights)[i * each:(i + 1) * each], "lr": lr} for i, lr in enumerate(rates)]
    made, objective = optimizer(groups, nonfinite="ignore", **hyper), fl.Objective(networks, summed(problems[0].loss_fn))
    for step in range(STEPS):
        chosen = torch.randint(len(y), (problems[0].batch_size, len(problems)), generator=Key(key).fold("batch", step).generator())
        made.step(objective(x[chosen], y[chosen]))
    with torch.no_grad():
        losses = torch.vmap(problems[0].loss_fn, in_dims=(1, None))(networks(x.unsqueeze(1).expand(-1, len(problems), -1)), y)
    table = losses.view(len(rates), len(problems)).double()
    return table.where(table.isfinite(), torch.inf).amin(0)


@claim("the loss after 50 steps falls from SGD's as the device runs longer, to within 10 per cent of exact damped natural gradients, "
       "never rising by more than 5 per cent")
def between_sgd_and_natural_gradients(scale: Scale, seed: int) -> Evidence:
    quick = scale is Scale.QUICK
    problems = [digits_mlp(s, (16,) if quick else (64, 64)) for s in range(seed, seed + 3)]
    rates = spaced(0.3, 10**0.5, 3)
    sgd = least_losses(problems, rates, seed, SGD)
    exact = least_losses(problems, rates, seed, TNGD)
    found = {t: least_losses(problems, rates, seed, TNGD, analog_time=t, dt=1.0, warm_start=False) for t in TIMES}
    rises = torch.stack([found[b] / found[a] for a, b in itertools.pairwise(TIMES)]).amax(0)
    figures = [
        at_most("loss at t = 30 / of exact natural gradients", (found[30.0] / exact).tolist(), 1.1),
        between("loss at t = 0 / of SGD", (found[0.0] / sgd).tolist(), 0.999, 1.001),
        at_most("largest rise of the loss from one t to the next", rises.tolist(), 1.05),
        at_most("loss at t = 30 / at t = 0", (found[30.0] / found[0.0]).tolist(), 1.0),
        recorded("loss of SGD", sgd.tolist()), recorded("loss of exact natural gradients", exact.tolist()),
        *(recorded(f"loss at t = {t:g}", each.tolist()) for t, each in found.items()),
    ]
    if not quick:
        warm = {t: least_losses(problems, rates, seed, TNGD, analog_time=t, dt=1.0) for t in (0.3, 1.0, 3.0)}
        figures += [recorded(f"loss at t = {t:g}, from the last step's x", each.tolist()) for t, each in warm.items()]
    return Evidence(figures, curves={"analog": (TIMES, [float(found[t].median()) for t in TIMES])},
                    axes=("analog time of a step", "training loss after 50 steps"), notes=[
        f"Digits, {'64-16-10' if quick else '64-64-64-10'}, batches of 64, damping 0.1, no noise, every step from x = g; each side at "
        "the best of three learning rates from 0.095 to 0.95. In batches of 32, where the last loss is noisier, it rose by 4 to 26 "
        "per cent from some t to the next. With one order of rows that all seeds shared the loss rose by 7 to 10 per cent from some t"
        " to the next, which is why seeds have orders of their own. Euler steps are as long as the largest curvature allows. Analog "
        "time is the simulated device's own: the simulation costs a product for every Euler step, at t = 30 several times what the "
        "conjugate gradients of the exact side do. Not DistilBERT, and no run time."])
