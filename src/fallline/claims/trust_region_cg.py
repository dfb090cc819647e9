"""Trust regions by conjugate gradients: a PDE's stencil to far smaller losses than Adam, and out of saddle points."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv1d, mse_loss, pad

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, recorded
from fallline.claims._rates import order
from fallline.claims._tuning import spaced
from fallline.core.counts import Counts
from fallline.core.driver import Moment
from fallline.core.keys import Key
from fallline.physics import FDNet
from fallline.solvers import TrustRegionCG

PAPER = Paper(
    slug="trust-region-cg",
    title="FD-Net with Auxiliary Time Steps: Fast Prediction of PDEs using Hessian-Free Trust-Region Methods",
    arxiv="1910.12680",
    year=2019,
    room="solvers",
    methods=("solvers.TrustRegionCG", "solvers.AsOptimizer", "physics.FDNet"),
    headline="with few parameters the trust-region method reaches far lower training and prediction errors than Adam for the same "
    "work, on data of heat, wave and Burgers-type equations; auxiliary steps lengthen the usable time steps",
)
CELLS, SNAPSHOTS = 64, 30
DIFFUSION, SPEED = 0.1, 0.5
WORK = 400


def snapshots(seed: int) -> Tensor:
    """u_t = a u_xx − c u_x on a ring of length 2π, exactly, at 30 times four explicit limits apart; (30, 64)."""
    x = torch.arange(CELLS, dtype=torch.float64) * 2 * math.pi / CELLS
    generator = Key(seed).fold("field").generator()
    modes = torch.arange(1, 9, dtype=torch.float64)
    amplitudes = torch.randn(8, dtype=torch.float64, generator=generator) / modes
    phases = 2 * math.pi * torch.rand(8, dtype=torch.float64, generator=generator)
    times = time_step() * torch.arange(SNAPSHOTS, dtype=torch.float64)
    waves = torch.cos(modes * (x - SPEED * times[:, None])[..., None] + phases)
    return (amplitudes * torch.exp(-DIFFUSION * modes**2 * times[:, None])[:, None] * waves).sum(-1)


def time_step() -> float:
    """Four times dx²/2a."""
    return 4 * (2 * math.pi / CELLS) ** 2 / (2 * DIFFUSION)


def coefficients(network: FDNet) -> tuple[float, float]:
    """Diffusion and speed that a stencil stands for: half its variance, and its mean, over the auxiliary step."""
    kernel = network.stencils[0].detach().reshape(-1)
    offsets = torch.arange(len(kernel), dtype=kernel.dtype) - len(kernel) // 2
    step, dx = time_step() / network.aux_steps, 2 * math.pi / CELLS
    mean = float((offsets * kernel).sum())
    variance = float((offsets**2 * kernel).sum()) - mean**2
    return variance * dx**2 / (2 * step), -mean * dx / step  # a weight at offset k takes from k cells ahead


def equivalents(counts: Counts) -> float:
    """A Hessian-vector product is two gradients."""
    return counts["gradients"] + 2 * counts["hvps"]


def adam_losses(models: Sequence[FDNet], fields: Tensor) -> list[float]:
    """Losses of Adam after 400 gradients, model by model at the best of five rates; all runs as groups of one convolution."""
    rates = spaced(1e-2, 10**0.5, 5)
    starts = torch.cat([model.stencils[0].detach() for model in models])
    kernels = [starts.clone().requires_grad_() for _ in rates]
    optimizer = torch.optim.Adam([{"params": [kernel], "lr": lr} for kernel, lr in zip(kernels, rates, strict=True)])

    def losses() -> Tensor:
        weights, u = torch.cat(kernels), fields[:-1, None].expand(-1, len(rates) * len(models), -1)
        for _ in range(models[0].aux_steps):
            u = u + conv1d(pad(u, (2, 2), mode="circular"), weights, groups=len(weights))
        return (u - fields[1:, None]).square().mean((0, 2))

    for _ in range(WORK):
        optimizer.zero_grad()
        losses().sum().backward()
        optimizer.step()
    ends = losses().detach().view(len(rates), len(models))
    return ends.where(ends.isfinite(), torch.inf).amin(0).tolist()


def trained(problem: fl.Training, method: fl.Method) -> tuple[FDNet, float]:
    """The network after the work of 400 gradients, and its loss."""

    def spent(moment: Moment) -> bool:
        return equivalents(moment.counts) >= WORK

    result = fl.solve(problem, method, fl.Budget(steps=WORK), callback=spent)
    network = FDNet(aux_steps=problem.model.aux_steps, dtype=torch.float64)
    network.load_state_dict(result.x)
    loss = float(problem.observe(result.x)["loss"])
    return network, loss if math.isfinite(loss) else math.inf


def rollout_error(network: FDNet, fields: Tensor) -> float:
    """Root mean square error of all snapshots predicted from the first, over their root mean square."""
    with torch.no_grad():
        predicted = network.rollout(fields[:1], SNAPSHOTS - 1)[:, 0]
    return float(torch.linalg.vector_norm(predicted - fields[1:]) / torch.linalg.vector_norm(fields[1:]))


@claim("for the work of 400 gradients the loss is at most a hundredth of Adam's at its best of five rates; eight auxiliary steps give "
       "the equation's coefficients to 2 % and a fifth of one step's error of prediction")
def finite_differences(scale: Scale, seed: int) -> Evidence:
    fields = snapshots(seed)
    ratios: dict[int, list[float]] = {1: [], 8: []}
    diffusion, speed, rollouts, losses = [], [], [], []
    models = {aux: [FDNet(aux_steps=aux, key=s, dtype=torch.float64) for s in range(seed, seed + 5)] for aux in (1, 8)}
    adam = {aux: adam_losses(models[aux], fields) for aux in models}
    for i in range(5):
        errors = {}
        for aux in models:
            problem = fl.Training(models[aux][i], mse_loss, (fields[:-1], fields[1:]), batch_size=SNAPSHOTS - 1)
            network, loss = trained(problem, TrustRegionCG())
            ratios[aux].append(loss / adam[aux][i])
            errors[aux] = rollout_error(network, fields)
        found = coefficients(network)
        diffusion.append(found[0] / DIFFUSION)
        speed.append(found[1] / SPEED)
        rollouts.append(errors[8] / errors[1])
        losses.append(loss)
    return Evidence([
        *(at_most(f"loss over Adam's, {aux} auxiliary steps", ratios[aux], 1e-2) for aux in ratios),
        at_most("error of the diffusion, 8 auxiliary steps", [abs(r - 1) for r in diffusion], 0.02),
        at_most("error of the speed, 8 auxiliary steps", [abs(r - 1) for r in speed], 0.02),
        at_most("error of prediction, 8 auxiliary steps over 1", rollouts, 0.2),
        recorded("loss, 8 auxiliary steps", losses),
    ], notes=["u_t = 0.1 u_xx − 0.5 u_x on 64 cells, exact, snapshots four explicit limits apart, all 29 pairs at once; five starts "
              "of the five weights. A gradient counts 1, a Hessian-vector product 2. Not the paper's Burgers equation in two "
              "dimensions."])


def rosenbrock(x: Tensor) -> Tensor:
    """Σ 100 (x_{i+1} − x_i²)² + (1 − x_i)²."""
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


@claim("on Rosenbrock's chain of 20 variables and from beside a saddle point it reaches a gradient norm of 1e-8 at a minimum")
def negative_curvature(scale: Scale, seed: int) -> Evidence:
    n = 20 if scale is Scale.QUICK else 200
    gaps, lowest, norms, orders = [], [], [], []
    for s in range(seed, seed + 3):
        drawn = torch.randn(n, dtype=torch.float64, generator=Key(s).fold("start").generator())
        norms_seen: list[float] = []
        valley = fl.solve(fl.Smooth(rosenbrock, drawn), TrustRegionCG(), fl.Budget(steps=2_000), tol=1e-8,
                          callback=lambda moment, seen=norms_seen: seen.append(float(moment.report.gap)))
        orders.append(order(norms_seen, 1e-12))
        target = torch.outer(drawn, drawn) / n
        factor = fl.Smooth(lambda x, target=target: ((torch.outer(x, x) - target) ** 2).sum() / 4, 1e-4 * drawn.roll(1))
        away = fl.solve(factor, TrustRegionCG(), fl.Budget(steps=200), tol=1e-8)
        assert valley.gap is not None and away.gap is not None
        gaps.append(valley.gap)
        norms.append(away.gap)
        lowest.append(float(torch.linalg.eigvalsh(factor.hessian(away.x))[0]))
    return Evidence([
        at_most("gradient norm on Rosenbrock's chain", gaps, 1e-8),
        at_most("gradient norm from beside the saddle", norms, 1e-8),
        at_least("least eigenvalue of the Hessian there", lowest, 0.0),
        recorded("order of local convergence of the gradient norm (theorem: 3/2)", orders),
    ], notes=["The saddle is the origin of ‖xxᵀ − uuᵀ/n‖²/4, left from about 1e-4 away; the least eigenvalue is −‖u‖²/n there. "
              f"n = {n}; Gaussian starts."])
