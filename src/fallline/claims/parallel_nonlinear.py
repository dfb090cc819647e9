"""Feedforward computations in parallel: the same results, in how many rounds."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

import fallline as fl
from fallline.claims import Evidence, Figure, Paper, Scale, at_least, at_most, claim, exactly, recorded
from fallline.core.counts import Counts
from fallline.equations import parallel_rnn, parallel_sample
from fallline.equations.parallel_solve import METHODS

PAPER = Paper(
    slug="parallel-nonlinear",
    title="Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving",
    arxiv="2002.03629",
    year=2021,
    room="equations",
    methods=("equations.parallel_solve", "equations.parallel_rnn", "equations.parallel_sample", "equations.parallel_layers"),
    headline="the same outputs, 2.1 to 26 times faster on a GPU: the backward pass of recurrent networks, DenseNets, MADE, PixelCNN++",
)
LENGTH = 256
COUPLINGS = {"weak": 0.5, "middle": 2.0, "strong": 8.0}


class MaskedNetwork(nn.Module):
    """Logits of binary variables, each from those before it: tanh units, unit i of the variables before i, and a masked layer."""

    def __init__(self, coupling: float, key: fl.Key) -> None:
        super().__init__()
        generator = key.generator()
        ones = torch.ones(LENGTH, LENGTH, dtype=torch.float64)
        scale = coupling / math.sqrt(LENGTH)
        for name, mask in (("inner", ones.tril(-1)), ("outer", ones.tril())):
            weight = scale * mask * torch.randn(LENGTH, LENGTH, dtype=torch.float64, generator=generator)
            self.register_buffer(name, weight)

    def forward(self, samples: Tensor) -> Tensor:
        """Return logits (B, T) of samples (B, T) in {0, 1}."""
        return torch.tanh((2 * samples - 1) @ self.inner.T) @ self.outer.T  # type: ignore[operator]


def inverse_distribution(logits: Tensor, uniform: Tensor) -> Tensor:
    """1 where the uniform number is below the probability."""
    return (uniform < torch.sigmoid(logits)).to(uniform.dtype)


def sampled(coupling: float, key: fl.Key) -> tuple[bool, dict[str, float]]:
    """Whether all methods give one sample of one network, for one draw of uniform numbers; and their rounds."""
    model = MaskedNetwork(coupling, key.fold("network"))
    uniform = torch.rand(1, LENGTH, dtype=torch.float64, generator=key.fold("uniform").generator())
    results = {name: parallel_sample(model, uniform, inverse_distribution, name, block=16) for name in METHODS}  # type: ignore[arg-type]
    same = all(torch.equal(result.x, results["gs"].x) for result in results.values())
    rounds = {name: float(result.nit) for name, result in results.items()}
    return same, {**rounds, "width of jacobi_gs": results["jacobi_gs"].counts["width"], "sweeps": results["gs_jacobi"].counts["sweeps"]}


@claim("all four methods draw the same samples; Jacobi takes at most a quarter of the rounds at weak coupling, and no fewer at "
       "stronger ones")
def sampling(scale: Scale, seed: int) -> Evidence:
    runs = {name: [sampled(coupling, fl.Key(seed).fold(i)) for i in range(20)] for name, coupling in COUPLINGS.items()}
    rounds = {name: [cost for _, cost in found] for name, found in runs.items()}
    medians = [sorted(cost["jacobi"] for cost in found)[10] for found in rounds.values()]
    every = [cost for found in rounds.values() for cost in found]
    figures = [
        exactly("runs of 60 in which all methods agree bit for bit", sum(same for found in runs.values() for same, _ in found), 60),
        at_most("rounds of Jacobi at weak coupling", [cost["jacobi"] for cost in rounds["weak"]], LENGTH / 4),
        *(at_least(f"rounds of Jacobi, {b} coupling / {a}", later / earlier, 1.0)
          for a, b, earlier, later in zip(COUPLINGS, list(COUPLINGS)[1:], medians, medians[1:], strict=False)),
        recorded("most rounds of Jacobi at any coupling", max(cost["jacobi"] for cost in every)),
        recorded("most rounds of Jacobi in blocks of 16", max(cost["jacobi_gs"] for cost in every)),
        recorded("most states in a round of Jacobi in blocks of 16", max(cost["width of jacobi_gs"] for cost in every)),
        recorded("most sweeps of Gauss-Seidel in 16 parallel blocks", max(cost["sweeps"] for cost in every)),
        *(recorded(f"rounds of {method}, {name} coupling", [cost[method] for cost in found])
          for name, found in rounds.items() for method in ("jacobi", "jacobi_gs")),
    ]
    if scale is Scale.FULL:
        figures += transformer(seed)
    return Evidence(figures, notes=[
        "256 binary variables from a masked network of 256 tanh units with Gaussian weights of deviation 0.5/16, 2/16 and 8/16; 20 "
        "networks, each with a draw of uniform numbers. Rounds are evaluations after another. The most of each are recorded "
        "alone: that there are at most 256 rounds, and 16 sweeps or states, is where the loops end. Full: sampling from a causal "
        "transformer as well."])


def transformer(seed: int) -> list[Figure]:
    """The rounds of a causal character transformer with weights as they are initialised, 512 characters of 96, for three draws."""
    key, length = fl.Key(seed).fold("transformer"), 512
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key.integer() % 2**32)
        embedding, places = nn.Embedding(96, 64), nn.Embedding(length, 64)
        body = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True), 2, enable_nested_tensor=False)
        head = nn.Linear(64, 96)
    body.eval()
    mask = nn.Transformer.generate_square_subsequent_mask(length)

    def model(tokens: Tensor) -> Tensor:
        return head(body(embedding(tokens) + places.weight, mask=mask, is_causal=True))

    rounds, agree = [], 0
    for i in range(3):
        noise = -torch.log(-torch.log(torch.rand(1, length, 96, generator=key.fold(i).generator())))
        jacobi, order = (parallel_sample(model, noise, method=method, start=0) for method in ("jacobi", "gs"))
        rounds.append(float(jacobi.nit))
        agree += torch.equal(jacobi.x, order.x)
    return [exactly("draws of 3 in which a transformer's samples agree", agree, 3),
            recorded("rounds of Jacobi, transformer of 512 characters", rounds)]


def cell(radius: float, size: int, key: fl.Key) -> nn.RNNCell:
    """A tanh cell whose recurrent matrix has this spectral radius, and inputs that leave the units near their linear range."""
    made = nn.RNNCell(4, size, dtype=torch.float64)
    generator = key.generator()
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(0.05 * torch.randn(weight.shape, dtype=torch.float64, generator=generator))
        made.weight_hh.mul_(radius / torch.linalg.eigvals(made.weight_hh).abs().max())
    return made


def adjoint(radius: float, steps: int, size: int, key: fl.Key) -> tuple[float, float]:
    """Rounds of the backward pass to 1e-6, and the largest relative error of the gradient in the cell's parameters."""
    made = cell(radius, size, key.fold("cell"))
    x = torch.randn(steps, 1, 4, dtype=torch.float64, generator=key.fold("inputs").generator())
    weights = torch.randn(steps, 1, size, dtype=torch.float64, generator=key.fold("loss").generator())
    state, states = torch.zeros(1, size, dtype=torch.float64), []
    for step in x:
        state = made(step, state)
        states.append(state)
    expected = torch.autograd.grad((weights * torch.stack(states)).sum(), list(made.parameters()))
    counts = Counts()
    loss = (weights * parallel_rnn(made, x, adjoint_tol=1e-6, counts=counts).x).sum()
    found = torch.autograd.grad(loss, list(made.parameters()))
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))
    return float(counts["adjoint_maps"]), error


@claim("the adjoint of a recurrent network takes at most 25 rounds at spectral radius 0.5, thrice that at 0.9, and gives the gradient")
def recurrent(scale: Scale, seed: int) -> Evidence:
    steps, size = (200, 32) if scale is Scale.QUICK else (1_000, 128)
    run = partial(adjoint, steps=steps, size=size)
    found = {radius: [run(radius, key=fl.Key(s)) for s in range(seed, seed + 3)] for radius in (0.5, 0.9, 1.1)}
    rounds = {radius: [n for n, _ in runs] for radius, runs in found.items()}
    return Evidence([
        at_most("rounds at spectral radius 0.5", rounds[0.5], 25),
        at_least("rounds at 0.9 / rounds at 0.5", [b / a for a, b in zip(rounds[0.5], rounds[0.9], strict=True)], 3.0),
        at_most("relative error of the gradient", max(error for runs in found.values() for _, error in runs), 1e-5),
        *(recorded(f"rounds at spectral radius {radius}", rounds[radius]) for radius in (0.9, 1.1)),
    ], notes=[f"A tanh cell of {size} units over {steps} times, one sequence; rounds until the adjoint changes by 1e-6 of its norm, at "
              f"most {steps + 1}. Full: 128 units over 1,000 times."])
