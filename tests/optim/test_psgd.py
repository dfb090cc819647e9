"""PSGD's groups against dense matrices, its pairs, and what it fits."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline import optim
from fallline.core.errors import MissingOracle, NonFiniteError
from fallline.core.processes import run_gloo
from fallline.optim.directions.lie_group import Cross, Diagonal, LowRank, Triangular

N = 7
EYE = torch.eye(N, dtype=torch.float64)


def normal(*shape, key=0):
    return torch.randn(shape, dtype=torch.float64, generator=fl.Key(key).generator())


STATES = {"diag": (Diagonal(), {"scale": normal(N, key=1).exp()}),
          "xmat": (Cross(), {"diagonal": normal(N, key=1).exp(), "antidiagonal": 0.3 * normal(N, key=2)}),
          "lra": (LowRank(rank=2),
                  {"scale": normal(N, key=1).exp(), "left": 0.5 * normal(2, N, key=2), "right": 0.5 * normal(2, N, key=3)}),
          "dense": (Triangular(), {"factor": (normal(N, N, key=1) + 3 * EYE).triu()})}


def factor(kind, s):
    """Q as a dense matrix."""
    if kind == "diag":
        return torch.diag(s["scale"])
    if kind == "xmat":
        return torch.diag(s["diagonal"]) + torch.diag(s["antidiagonal"]).flip(1)
    if kind == "lra":
        return (EYE + s["left"].mT @ s["right"]) @ torch.diag(s["scale"])
    return s["factor"]


STATES = {kind: (direction, {**s, "pairs": torch.ones(1)}) for kind, (direction, s) in STATES.items()}


def started(direction):
    """The state before the first pair."""
    x = torch.zeros(N, dtype=torch.float64)
    return {name: entry.start(x, entry.dtype or x.dtype) for name, entry in direction.init(x).items()}


def coefficients(**changes):
    return SimpleNamespace(**{"rate": 0.1, "turns_left": True, "balances": False, "weight_decay": 0.0, **changes})


@pytest.mark.parametrize("kind", STATES)
def test_the_preconditioner_is_the_factor_s_square(kind):
    direction, s = STATES[kind]
    Q, x = factor(kind, s), normal(N, key=9)
    torch.testing.assert_close(direction.preconditioned(x, s), Q.mT @ Q @ x)


def outer_difference(Q, v, h):
    y, w = Q @ h, torch.linalg.inv(Q).mT @ v
    return torch.outer(y, y) - torch.outer(w, w)


@pytest.mark.parametrize("kind", ["diag", "xmat", "dense"])
def test_a_step_multiplies_the_factor_by_its_group_s_part_of_the_difference(kind):
    direction, s = STATES[kind]
    Q, v, h = factor(kind, s), normal(N, key=7), normal(N, key=8)
    E = outer_difference(Q, v, h)
    parts = {"diag": EYE, "xmat": ((EYE + EYE.flip(1)) > 0).double(), "dense": torch.ones(N, N).triu().double()}
    part = E * parts[kind]
    new = factor(kind, direction.fitted(v, h, s, coefficients()))
    norm = E.abs().max() if kind == "dense" else part.abs().max()
    torch.testing.assert_close(new, Q - 0.1 / norm * part @ Q)


@pytest.mark.parametrize("turns_left", [True, False])
def test_a_low_rank_step_is_that_of_dense_inverses(turns_left):
    direction, s = STATES["lra"]
    U, V, d = s["left"].mT, s["right"].mT, s["scale"]
    Q, v, h = factor("lra", s), normal(N, key=7), normal(N, key=8)
    E, P = outer_difference(Q, v, h), Q.mT @ Q
    slope = (P @ h) * h - v * (torch.linalg.inv(P) @ v)
    expected = {"scale": d - 0.1 / slope.abs().max() * d * slope, "left": s["left"], "right": s["right"]}
    if turns_left:
        expected["left"] = (U - 0.1 / (E @ V @ V.mT).norm() * E @ V @ (torch.eye(2) + V.mT @ U)).mT
    else:
        expected["right"] = (V - 0.1 / (U @ U.mT @ E).norm() * (EYE + V @ U.mT) @ E @ U).mT
    found = direction.fitted(v, h, s, coefficients(turns_left=turns_left))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_balancing_makes_norms_equal_and_leaves_the_factor():
    direction, s = STATES["lra"]
    uneven = {**s, "left": 100 * s["left"], "right": s["right"] / 100}
    nothing = torch.zeros(N, dtype=torch.float64)
    found = direction.fitted(nothing, nothing, uneven, coefficients(balances=True))
    assert float(found["left"].norm()) == pytest.approx(float(found["right"].norm()))
    torch.testing.assert_close(factor("lra", found), factor("lra", s))


def test_the_middle_of_an_odd_cross_is_its_diagonal_s_alone():
    identity = {"diagonal": torch.ones(5).double(), "antidiagonal": torch.zeros(5).double()}
    found = Cross().fitted(normal(5, key=1), normal(5, key=2), identity, coefficients())
    assert found["antidiagonal"][2] == 0 and (found["antidiagonal"][[0, 1, 3, 4]] != 0).all()


@pytest.mark.parametrize("kind", STATES)
def test_pairs_that_say_nothing_or_too_much_do_no_harm(kind):
    direction, s = STATES[kind]
    zero, huge = torch.zeros(N, dtype=torch.float64), torch.full((N,), 1e300, dtype=torch.float64)
    for pair in ((zero, zero), (zero, normal(N)), (normal(N), zero), (normal(N), huge), (normal(N), torch.nan * huge)):
        found = direction.observe("", torch.stack(pair), s, coefficients())
        assert all(x.isfinite().all() for x in found.values())
        assert not torch.isclose(torch.linalg.det(factor(kind, {**s, **found})), torch.tensor(0.0).double())
    for name, x in direction.observe("", torch.stack((zero, zero)), s, coefficients()).items():
        torch.testing.assert_close(x, s[name] + (name == "pairs"))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [1, 2])
def test_a_fit_that_is_perfect_stays_so_in_single_precision(n, seed):
    direction = LowRank(seed=seed)
    x, H = torch.zeros(n), torch.linspace(1, 3, n)
    s = {name: entry.start(x, entry.dtype or x.dtype) for name, entry in direction.init(x).items()}
    for t in range(1, 1001):
        v = normal(n, key=(seed << 10) + t).float()
        c = direction.coefficients({"momentum": 0.0, "lr_precond": 0.01, "grad_clip": None}, t)
        s |= direction.observe("", torch.stack((v, H * v)), s, coefficients(**c))
    torch.testing.assert_close(H * direction.preconditioned(torch.ones(n), s), torch.ones(n), rtol=0, atol=0.5)


def test_singular_factors_are_left_as_they_are():
    cross = {"diagonal": torch.ones(N).double(), "antidiagonal": torch.ones(N).double(), "pairs": torch.ones(1)}
    low = {"scale": torch.ones(N).double(), "left": -normal(1, N), "right": normal(1, N) / normal(1, N).square().sum(),
           "pairs": torch.ones(1)}
    for direction, s in ((Cross(), cross), (LowRank(rank=1), low)):
        found = direction.observe("", torch.stack((normal(N, key=3), normal(N, key=4))), s, coefficients())
        assert all(x.isfinite().all() for x in found.values())
    assert all(torch.equal(x, cross[n]) for n, x in Cross().observe("", normal(2, N, key=5), cross, coefficients()).items())


@pytest.mark.parametrize("kind", STATES)
def test_the_first_pair_sets_the_scale(kind):
    direction = STATES[kind][0]
    v, h = normal(N, key=7), normal(N, key=8)
    s = started(direction)
    start = factor(kind, s)
    for given, scale in ((0 * h, 1.0), (torch.inf * h, 1.0), (h, float((v @ v / (h @ h)) ** 0.25)), (2 * h, None)):
        s |= direction.observe("", torch.stack((v, given)), s, coefficients(rate=1e-12))
        scale = scale or float((v @ v / (h @ h)) ** 0.25)  # another pair does not
        torch.testing.assert_close(factor(kind, s), scale * start, rtol=1e-6, atol=1e-6)
    assert int(s["pairs"]) == 2
    if kind != "lra":
        assert torch.equal(start, EYE)


def quadratic(H, x):
    """½ xᵀ H x over two parameters."""
    model = nn.Module()
    model.one, model.two = nn.Parameter(x[:3].clone()), nn.Parameter(x[3:].clone())
    model.forward = lambda inputs: torch.cat([model.one, model.two])
    return model, fl.Objective(model, lambda x, _: x @ H @ x / 2)


NOTHING = torch.zeros(1), torch.zeros(1)


@pytest.mark.parametrize("settings", [{}, {"hvp": "finite_diff"}, {"maximize": True}, {"weight_decay": 0.5}])
def test_a_step_is_the_preconditioned_average_of_gradients(settings):
    H = normal(N, N, key=3)
    H = (H + H.mT) / 2
    model, objective = quadratic(H, normal(N, key=4))
    optimizer = optim.PSGD(model.parameters(), kind="dense", lr=0.1, lr_precond=0.05, momentum=0.9, seed=5, **settings)
    x, m, Q = normal(N, key=4), torch.zeros(N, dtype=torch.float64), None
    sign, decay = -1 if settings.get("maximize") else 1, settings.get("weight_decay", 0.0)
    curvature = sign * H + decay * EYE
    for t in range(1, 6):
        generators = [fl.Key(5).fold(t, "probe", i).generator() for i in range(2)]
        v = torch.cat([torch.randn(n, dtype=torch.float64, generator=g) for n, g in zip((3, 4), generators, strict=True)])
        h = curvature @ v
        Q = EYE * (v @ v / (h @ h)) ** 0.25 if Q is None else Q
        E = outer_difference(Q, v, h)
        Q = Q - 0.05 / E.abs().max() * E.triu() @ Q
        m = 0.9 * m + 0.1 * curvature @ x
        x = x - 0.1 * Q.mT @ Q @ m
        optimizer.step(objective(*NOTHING))
    torch.testing.assert_close(torch.cat([model.one, model.two]).detach(), x, rtol=1e-5, atol=1e-6)
    assert optimizer.state[model.one]["factor"].shape == (N, N) and "factor" not in optimizer.state[model.two]


@pytest.mark.parametrize("kind", ["dense", "xmat", "diag"])
def test_what_is_fitted_is_the_inverse_of_the_absolute_hessian(kind):
    H = torch.tensor([4.0, -1.0, 0.25, 2.0, -0.5, 1.0, 8.0], dtype=torch.float64)
    direction = STATES[kind][0]
    s = started(direction)
    for t, rate in enumerate([0.1] * 500 + [0.01] * 1000):
        v = normal(N, key=t)
        s = direction.observe("", torch.stack((v, H * v)), s, coefficients(rate=rate))
    Q = factor(kind, s) * H.abs().sqrt()
    torch.testing.assert_close(Q.mT @ Q, EYE, rtol=0, atol=0.15)


def test_steps_are_no_longer_than_the_clip():
    model, objective = quadratic(EYE, normal(N))
    before = torch.cat([p.detach().clone() for p in model.parameters()])
    optim.PSGD(model.parameters(), lr=1.0, rank=2, grad_clip=1e-3).step(objective(*NOTHING))
    assert float((torch.cat([p.detach() for p in model.parameters()]) - before).norm()) == pytest.approx(1e-3)


def network(dtype=torch.float64):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def batch(t):
    generator = fl.Key(t).generator()
    return torch.randn(10, 6, dtype=torch.float64, generator=generator), torch.randint(3, (10,), generator=generator)


def test_pairs_come_with_their_probability_and_first():
    model = network()
    objective = fl.Objective(model, cross_entropy)
    optimizer = optim.PSGD(model.parameters(), update_prob=0.3, rank=2)
    for t in range(100):
        optimizer.step(objective(*batch(t)))
    assert 15 <= objective.counts["hvps"] <= 45 and objective.counts["gradients"] == 100
    with pytest.raises(MissingOracle, match=r"objective\(batch\)"):
        optim.PSGD(model.parameters(), update_prob=0.01).step(lambda: batch)


def test_a_plain_closure_serves_differences_of_gradients():
    ends = []
    for plain in (False, True):
        model = network()
        optimizer = optim.PSGD(model.parameters(), hvp="finite_diff", rank=2, lr=0.1)

        def closure(t, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = cross_entropy(model(batch(t)[0]), batch(t)[1])
            loss.backward()
            return loss

        objective = fl.Objective(model, cross_entropy)
        for t in range(5):
            optimizer.step((lambda t=t, closure=closure: closure(t)) if plain else objective(*batch(t)))
        assert plain or (objective.counts["hvps"] == 0 and objective.counts["gradients"] == 10)
        ends.append([p.detach() for p in model.parameters()])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(MissingOracle, match="gradient of this batch at another point"):
        optimizer.step()


def test_differences_are_products_nearly_also_in_half_precision():
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-2), (torch.bfloat16, 0.6)):
        model = network(dtype)
        x, y = batch(0)
        realisation = fl.Objective(model, cross_entropy)(x.to(dtype), y)
        realisation()
        optimizer = optim.PSGD(model.parameters(), hvp="finite_diff", seed=3)
        with torch.no_grad():
            pairs = optimizer.estimate("", realisation, 1)
        exact = copy.deepcopy(model).double()
        whole = fl.Objective(exact, cross_entropy)(x.to(dtype).double(), y)
        names = dict(zip(exact.state_dict(), pairs.values(), strict=True))
        product = whole.hvp(None, {n: v.double() for n, (v, _) in names.items()})
        for n, (_, h) in names.items():
            assert (h - product[n]).norm() <= tolerance * product[n].norm() + 1e-8


class Kink(torch.autograd.Function):
    """The identity, with a gradient that has no derivative: products are not numbers."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, g):
        return g + (0 * g).sqrt()


@pytest.mark.parametrize("nonfinite", ["raise", "skip", "ignore"])
def test_products_that_are_not_finite_are_reported_left_out_or_ignored(nonfinite):
    model, _ = quadratic(EYE, normal(N))
    objective = fl.Objective(model, lambda x, _: (Kink.apply(x) ** 2).sum())
    optimizer = optim.PSGD(model.parameters(), rank=2, nonfinite=nonfinite)
    optimizer.step(objective(*NOTHING))
    state = optimizer.state[model.one]
    if nonfinite == "raise":
        with pytest.raises(NonFiniteError, match="not finite in the estimate 'probe and its product with the Hessian'"):
            optimizer.step(objective(*NOTHING))
    else:
        optimizer.step(objective(*NOTHING))
    assert state.get("step", 0) == {"raise": 1, "skip": 0, "ignore": 2}[nonfinite]
    assert all(p.isfinite().all() for p in model.parameters()) and not int(state.get("pairs", 0))


def test_a_frozen_parameter_rests_and_a_foreign_one_is_refused():
    model = network()
    objective = fl.Objective(model, cross_entropy)
    optimizer = optim.PSGD(model.parameters(), rank=2)
    optimizer.step(objective(*batch(0)))
    model[0].requires_grad_(False)
    model[0].weight.grad = model[0].bias.grad = None
    before = model[0].weight.detach().clone()
    optimizer.step(objective(*batch(1)))
    assert torch.equal(before, model[0].weight)
    foreign = nn.Parameter(torch.ones(3, dtype=torch.float64))
    foreign.grad = torch.ones_like(foreign)
    with pytest.raises(MissingOracle, match="of every parameter it optimizes"):
        optim.PSGD([*network().parameters(), foreign]).step(objective(*batch(0)))


@pytest.mark.parametrize("hvp", ["exact", "finite_diff"])
@pytest.mark.parametrize("kind", STATES)
def test_what_a_batch_does_not_use_leaves_no_trace_in_the_fit(kind, hvp):
    """Only parameters of the graph have curvature: of others a probe without a product would be taken for a curvature of 0."""
    H = torch.diag(torch.tensor([4.0, 1.0, 2.0], dtype=torch.float64))
    factors = []
    for unused in (False, True):
        model = nn.Module()
        model.one, model.two = nn.Parameter(normal(3)), nn.Parameter(normal(4, key=1))
        model.forward = lambda inputs, model=model: model.one
        optimizer = optim.PSGD(list(model.parameters())[: 1 + unused], kind=kind, hvp=hvp, lr=0.01, lr_precond=0.1, rank=2)
        before = model.two.detach().clone()
        for _ in range(200):
            optimizer.zero_grad()
            optimizer.step(fl.Objective(model, lambda x, _: x @ H @ x / 2)(*NOTHING))
        state = optimizer.state[model.one]
        factors.append({name: x.abs().max() for name, x in state.items() if name in ("scale", "diagonal", "factor")})
        own = [x.abs().max() for s in optimizer.state.values() for name, x in s.items() if name in factors[0]]
        assert torch.equal(before, model.two) and max(own) < 10
    if kind == "diag":  # entries of their own, and the same probes
        torch.testing.assert_close(factors[0], factors[1], rtol=0.05, atol=0)


def test_memory_is_what_the_state_takes():
    for kind, expected in (("lra", 22), ("xmat", 3), ("diag", 2), ("dense", 84)):
        model = network(torch.float32)
        optimizer = optim.PSGD(model.parameters(), kind=kind)
        optimizer.step(fl.Objective(model, cross_entropy)(batch(0)[0].float(), batch(0)[1]))
        count = sum(p.numel() for p in model.parameters())
        kept = sum(v.numel() * 4 for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor))
        assert optimizer.memory == kept == 4 * (count * expected + 1), (kind, kept / 4 / count)


def test_bad_settings_are_refused():
    for settings, said in (({"kind": "kron"}, "kind must be one of 'lra'"), ({"hvp": "none"}, "hvp must be 'exact'"),
                           ({"rank": 0}, "rank must be"), ({"update_prob": 0.0}, "update_prob must be"),
                           ({"lr_precond": 0.0}, "lr_precond must be"), ({"grad_clip": 0.0}, "grad_clip must be"),
                           ({"momentum": 1.0}, "momentum must be")):
        with pytest.raises(ValueError, match=said):
            optim.PSGD(network().parameters(), **settings)


def sharded(rank, _):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = optim.PSGD(model.parameters(), hvp="finite_diff", rank=2, lr=0.1)
    for t in range(4):
        optimizer.step(fl.Objective(model, cross_entropy)(*batch(t)))
    return [p.full_tensor().detach() for p in model.parameters()]


def test_sharded_training_is_that_of_one_process():
    alone = network()
    optimizer = optim.PSGD(alone.parameters(), hvp="finite_diff", rank=2, lr=0.1)
    for t in range(4):
        optimizer.step(fl.Objective(alone, cross_entropy)(*batch(t)))
    for found in run_gloo(sharded, 2, None):
        for a, b in zip(alone.parameters(), found, strict=True):
            torch.testing.assert_close(a.detach(), b, rtol=1e-6, atol=1e-7)
