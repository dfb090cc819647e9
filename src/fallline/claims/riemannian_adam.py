"""Riemannian Adam: AMSGrad on lines, steps that do not depend on the components' weights, and a tree in the ball for the record."""

from __future__ import annotations

import functools

import geoopt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, recorded
from fallline.claims._tuning import Factory, side_by_side
from fallline.core.keys import Key
from fallline.optim import RiemannianAdam

PAPER = Paper(
    slug="riemannian-adam",
    title="Riemannian Adaptive Optimization Methods",
    arxiv="1810.00760",
    year=2019,
    room="optim",
    methods=("optim.RiemannianAdam", "optim.RiemannianAdagrad"),
    headline="WordNet's nouns and mammals in a ball of 5 dimensions: RAMSGrad reaches a lower training loss than RSGD, and sooner",
)
BALL = geoopt.PoincareBall()
RSGD: Factory = functools.partial(geoopt.optim.RiemannianSGD, lr=1.0)
SIDES: dict[str, Factory] = {"RAMSGrad": RiemannianAdam, "RAdam": functools.partial(RiemannianAdam, amsgrad=False), "RSGD": RSGD}
CUT = 25


def normal(*shape: int, key: Key) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, dtype=torch.float64, generator=key.generator())


def in_ball(*shape: int, key: Key) -> Tensor:
    """Points at uniform distances up to 2 from the origin, in directions drawn evenly."""
    directions = normal(*shape, key=key.fold("direction"))
    distances = 2 * torch.rand(*shape[:-1], 1, dtype=torch.float64, generator=key.fold("distance").generator())
    return torch.tanh(distances / 2) * directions / directions.norm(dim=-1, keepdim=True)


def parameter(x: Tensor, manifold: geoopt.Manifold) -> nn.Parameter:
    """A copy of ``x`` to optimize."""
    made: nn.Parameter = geoopt.ManifoldParameter(x.clone(), manifold=manifold)
    return made


def amsgrad(x: Tensor, gradients: Tensor, lr: float) -> Tensor:
    """AMSGrad without debiasing."""
    m, v, largest = torch.zeros(3, *x.shape, dtype=torch.float64)
    for g in gradients:
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        largest = torch.maximum(largest, v)
        x = x - lr * m / (largest.sqrt() + 1e-10)
    return x


def change_of_norm(x: Tensor, manifold: geoopt.Manifold, key: Key) -> float:
    """The largest relative change of an average's norm when it is carried along: the second step has no gradient."""
    p = parameter(x, manifold)
    opt = RiemannianAdam([p], lr=0.5)
    p.grad = normal(*x.shape, key=key)
    opt.step()
    before = manifold.norm(p.detach(), opt.state[p]["exp_avg"].view_as(p))
    p.grad = torch.zeros_like(p)
    opt.step()
    after = manifold.norm(p.detach(), opt.state[p]["exp_avg"].view_as(p))
    return float((after / (0.9 * before) - 1).abs().max())


@claim("on a product of lines it is AMSGrad to 1e-10, and transport keeps norms to 1e-8")
def special_cases(scale: Scale, seed: int) -> Evidence:
    steps, rows = (100, 1_000) if scale is Scale.QUICK else (10_000, 100_000)
    key = Key(seed)
    x, gradients = normal(50, key=key.fold("start")), normal(steps, 50, key=key.fold("gradients"))
    p = nn.Parameter(x.clone())
    opt = RiemannianAdam([p], lr=0.01)
    for g in gradients:
        p.grad = g.clone()
        opt.step()
    sphere = normal(rows, 5, key=key.fold("sphere"))
    return Evidence([
        at_most(f"largest difference from AMSGrad after {steps:,} steps",
                float((p.detach() - amsgrad(x, gradients, 0.01)).abs().max()), 1e-10),
        at_most("relative change of norms by transport, ball", change_of_norm(in_ball(rows, 5, key=key), BALL, key), 1e-8),
        at_most("relative change of norms by transport, sphere",
                change_of_norm(sphere / sphere.norm(dim=1, keepdim=True), geoopt.Sphere(), key), 1e-8),
    ])


def pulls(x: Tensor, points: Tensor) -> Tensor:
    """The Riemannian gradient of the mean squared distance to ``points`` (…, k, n)."""
    return -2 * BALL.logmap(x.unsqueeze(-2), points).mean(-2)


def frechet_steps(optimizer: Factory, rates: tuple[float, ...], weights: Tensor, start: Tensor, points: Tensor, limit: int) -> Tensor:
    """For every seed, steps at the best rate until each component is within 1e-4 of its first distance to its mean; or ``limit``."""
    means = start
    for _ in range(100):
        means = BALL.expmap(means, -pulls(means, points) / 3)
    goals = 1e-4 * BALL.dist(start, means)
    p = [parameter(start, BALL) for _ in rates]
    opt = side_by_side(optimizer, rates)(p)
    found = torch.full((len(start),), float(limit), dtype=torch.float64)
    for step in range(1, limit + 1):
        x = torch.stack([each.detach() for each in p])
        gradients = weights[:, None] * pulls(x, points) * BALL.lambda_x(x, keepdim=True) ** 2
        for each, gradient in zip(p, gradients, strict=True):
            each.grad = gradient
        opt.step()
        near = torch.stack([BALL.dist(each.detach(), means) <= goals for each in p]).all(-1).any(0)
        found[near & (found == limit)] = step
        if bool((found < limit).all()):
            break
    return found


def tree_pairs(branching: int, depth: int) -> tuple[Tensor, Tensor]:
    """Every node of a balanced tree with every ancestor, ``(pairs, 2)``, and which nodes are related, ``(nodes, nodes)``."""
    nodes = sum(branching**level for level in range(depth + 1))
    found = []
    for node in range(nodes):
        above = node
        while above:
            above = (above - 1) // branching  # numbered from the root, level by level
            found.append((node, above))
    pairs, related = torch.tensor(found), torch.eye(nodes, dtype=torch.bool)
    related[pairs[:, 0], pairs[:, 1]] = related[pairs[:, 1], pairs[:, 0]] = True
    return pairs, related


def tree_loss(x: Tensor, pairs: Tensor, others: Tensor) -> Tensor:
    """−log e^{−d(u, v)} / Σ e^{−d(u, v')} over v and ten others, mean over the pairs: ``(seeds,)`` for ``x`` ``(seeds, nodes, 5)``.

    ``pairs`` ``(seeds, batch, 2)``, ``others`` ``(seeds, batch, 10)``.
    """
    chosen = torch.cat([pairs, others], -1)
    rows = torch.arange(len(x))[:, None, None]
    found = x[rows, chosen]
    distances = BALL.dist(found[:, :, :1], found[:, :, 1:])
    targets = torch.zeros(distances.shape[:2], dtype=torch.long)
    return cross_entropy(-distances.transpose(1, 2), targets, reduction="none").mean(1)


def tree_losses(optimizer: Factory, rates: tuple[float, ...], scale: Scale, seeds: int, key: Key) -> Tensor:
    """The loss over all pairs after the last epoch, at the best of the rates, for every seed."""
    depth, epochs, burn_in = (4, 40, 0) if scale is Scale.QUICK else (6, 200, 10)
    pairs, related = tree_pairs(3, depth)
    strangers = (~related).double()
    start = 1e-3 * (2 * torch.rand(seeds, len(related), 5, dtype=torch.float64, generator=key.fold("start").generator()) - 1)
    points = [parameter(start, BALL) for _ in rates]
    opt = side_by_side(optimizer, rates)(points)

    def with_others(batch: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn = torch.multinomial(strangers[batch[..., 0].flatten()], 10, replacement=True, generator=generator)
        return batch, drawn.view(*batch.shape[:-1], 10)

    for epoch in range(epochs):
        generator = key.fold("epoch", epoch).generator()
        for group, lr in zip(opt.param_groups, rates, strict=True):
            group["lr"] = lr / 10 if epoch < burn_in else lr
        orders = torch.stack([torch.randperm(len(pairs), generator=generator) for _ in range(seeds)])
        for chosen in orders.split(64, 1):
            batch = with_others(pairs[chosen], generator)
            opt.zero_grad()
            torch.stack([tree_loss(x, *batch).sum() for x in points]).sum().backward()
            opt.step()
    final = with_others(pairs.expand(seeds, -1, -1), key.fold("final").generator())
    with torch.no_grad():
        return torch.stack([tree_loss(x, *final) for x in points]).amin(0)


@claim("with weights of 1 to 1,000, 20 means take RAMSGrad and RAdam at most 1.5 times the steps of equal weights, RSGD at least 20")
def means(scale: Scale, seed: int) -> Evidence:
    (seeds, size), key = ((3, 5) if scale is Scale.QUICK else (10, 50)), Key(seed)
    start, points = in_ball(seeds, 20, size, key=key.fold("start")), in_ball(seeds, 20, 5, size, key=key.fold("points"))
    equal, unequal = torch.ones(20, dtype=torch.float64), torch.logspace(0, 3, 20, dtype=torch.float64)
    rates = (0.01, 0.03, 0.1, 0.3)
    counts = {name: [frechet_steps(SIDES[name], rates, weights, start, points, 2_000) for weights in (equal, unequal)]
              for name in ("RAMSGrad", "RAdam")}
    plain = frechet_steps(RSGD, (0.05, 0.1, 0.2, 0.4), equal, start, points, 2_000)
    cut = CUT * plain
    slow = frechet_steps(RSGD, (5e-5, 1e-4, 2e-4, 4e-4), unequal, start, points, int(cut.max()))
    counts["RSGD"] = [plain, torch.minimum(slow, cut)]
    growth = {name: (late / early).tolist() for name, (early, late) in counts.items()}
    trees = {name: tree_losses(SIDES[name], grid, scale, seeds, key)
             for name, grid in (("RAMSGrad", (0.003, 0.01, 0.03, 0.1)), ("RSGD", (1.0, 3.0, 10.0, 30.0)))}
    return Evidence([
        at_most("growth of the steps, RAMSGrad", growth["RAMSGrad"], 1.5),
        at_most("growth of the steps, RAdam", growth["RAdam"], 1.5),
        at_least("growth of the steps, RSGD", growth["RSGD"], 20.0),
        *(recorded(f"steps with {kind} weights, {name}", steps.tolist())
          for name, pair in counts.items() for kind, steps in zip(("equal", "unequal"), pair, strict=True)),
        *(recorded(f"loss of a tree's embedding, {name}", loss.tolist()) for name, loss in trees.items()),
    ], notes=[
        "Steps until each component in the ball is within 1e-4 of its first distance to the Fréchet mean of its five points, at the "
        "best of four rates. RSGD's are in proportion to the largest weight; its steps are cut at "
        f"{CUT} times those with equal weights, of which it needs far fewer than the others.",
        "The tree has three branches and four levels; every node with each ancestor, in 5 dimensions, 40 epochs in batches of 64 with "
        "ten others a pair, the best of four rates. Nothing is claimed of it.",
        "The full scale has means in 50 dimensions, six levels, and 200 epochs, the first ten at a tenth of the rate."])
