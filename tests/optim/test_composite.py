"""Composite mirror descent against its argmin written out, in every geometry."""

import copy
import math

import pytest
import torch
from torch import nn

from fallline.core.sets import Box, L2Ball, NonNegative, NuclearBall, Simplex
from fallline.core.terms import L1, L2, MCP, SCAD, ElasticNet, GroupL2, SquaredL2
from fallline.optim.composite import CompositeSMD

SHAPES = ((4,), (3, 5), (3, 5), (2, 3, 4), ())
ENTRYWISE = [L1(0.3), 0.5 * L1(0.4), SquaredL2(0.7), ElasticNet(0.2, 0.3), MCP(0.2), SCAD(0.1), Box(-0.5, 0.5), NonNegative()]
OF_VECTORS = [L2(0.3), L2(0.4, dim=None), GroupL2(1, 0.2), L2Ball(0.8), L2Ball(0.8, dim=None), Simplex(), Simplex(dim=None)]


def normal(shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run(params, optimizer, steps=20, start=0):
    for t in range(start, start + steps):
        for i, p in enumerate(params):
            p.grad = normal(p.shape, 100 * t + i).to(p.dtype)
        optimizer.step()


@pytest.mark.parametrize("term", ENTRYWISE + OF_VECTORS, ids=repr)
def test_proximal_steps_treat_each_parameter_by_itself(term):
    shapes = SHAPES if term in ENTRYWISE else SHAPES[:-1]
    params = [nn.Parameter(normal(s, i)) for i, s in enumerate(shapes)]
    xs = [p.detach().clone() for p in params]
    run(params, CompositeSMD(params, lr=0.2, prox=term))
    for t in range(20):
        xs = [term.prox(x - 0.2 * normal(x.shape, 100 * t + i), 0.2) for i, x in enumerate(xs)]
    for p, x in zip(params, xs, strict=True):
        torch.testing.assert_close(p.detach(), x, rtol=1e-10, atol=1e-10)


def test_the_order_is_gradient_first_and_then_the_term_with_the_step():
    p = nn.Parameter(torch.tensor([1.0, 0.3, -2.0], dtype=torch.float64))
    optimizer = CompositeSMD([p], lr=0.5, prox=L1(0.4))
    p.grad = torch.tensor([1.0, 0.5, 1.0], dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.3, 0.0, -2.3], dtype=torch.float64))  # soft(x − 0.5 g, 0.5 · 0.4)
    assert float(p.detach()[1]) == 0.0


def test_sets_on_matrices_and_a_rate_of_zero():
    p, q = nn.Parameter(normal((4, 3))), nn.Parameter(normal((4, 3), 1))
    run([p, q], CompositeSMD([{"params": [p]}, {"params": [q], "lr": 0.0}], lr=0.3, prox=NuclearBall(0.7)), 3)
    assert NuclearBall(0.7).contains(p.detach())
    torch.testing.assert_close(q.detach(), NuclearBall(0.7).project(normal((4, 3), 1)))


def test_without_a_term_it_is_gradient_descent():
    ours, theirs = nn.Parameter(normal((3, 5))), nn.Parameter(normal((3, 5)))
    run([ours], CompositeSMD([ours], lr=0.1, weight_decay=0.3))
    run([theirs], torch.optim.SGD([theirs], lr=0.1, weight_decay=0.3))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("shape", "dim"), [((6,), None), ((3, 4), None), ((3, 4), 1), ((3, 4), -1), ((3, 4), 0), ((), None)])
def test_entropic_steps_are_multiplicative(shape, dim):
    axes = tuple(range(len(shape))) if dim is None else (dim,)
    start = normal(shape).exp()
    start = start / start.sum(axes, keepdim=True)
    params = [nn.Parameter(start.clone()), nn.Parameter(start.clone())]
    x = start.clone()
    run(params, CompositeSMD(params, lr=0.7, mirror="entropy", dim=dim))
    for t in range(20):
        x = x * torch.exp(-0.7 * normal(shape, 100 * t))
        x = x / x.sum(axes, keepdim=True)
    torch.testing.assert_close(params[0].detach(), x, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(params[1].detach().sum(axes), torch.ones_like(x.sum(axes)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_entropic_steps_of_any_length_stay_on_the_simplex_and_can_come_back(dtype):
    p = nn.Parameter(torch.full((4,), 0.25, dtype=dtype))
    optimizer = CompositeSMD([p], lr=1.0, mirror="entropy")
    for sign in (1.0, -1.0):
        p.grad = torch.tensor([1e4, 0.0, 0.0, 0.0], dtype=dtype) * sign
        optimizer.step()
        expected = [0.0, 1 / 3, 1 / 3, 1 / 3] if sign > 0 else [1.0, 0.0, 0.0, 0.0]
        torch.testing.assert_close(p.detach().double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=2e-3)


def potential(x, p):
    return float((x.abs() ** p).sum()) ** (2 / p) / (2 * (p - 1))


@pytest.mark.parametrize("p", [1.1, 1.5, 2.0])
@pytest.mark.parametrize("shape", [(5,), (2, 3)])
def test_p_norm_steps_solve_their_argmin(p, shape):
    param = nn.Parameter(normal(shape))
    x, g = param.detach().clone(), normal(shape, 9)
    optimizer = CompositeSMD([param], lr=0.3, mirror="p-norm", p=p)
    param.grad = g.clone()
    optimizer.step()

    def gradient(z):
        z = z.clone().requires_grad_()
        value = z.abs().pow(p).sum() ** (2 / p) / (2 * (p - 1))
        return torch.autograd.grad(value, z)[0]

    torch.testing.assert_close(gradient(param.detach()), gradient(x) - 0.3 * g, rtol=1e-9, atol=1e-9)
    if p == 2.0:
        torch.testing.assert_close(param.detach(), x - 0.3 * g)


def test_p_norm_with_an_l1_term_is_the_least_of_its_neighbours():
    p, eta, term = 1.3, 0.4, L1(20.0)
    param = nn.Parameter(normal((6,)))
    x, g = param.detach().clone(), normal((6,), 4)
    optimizer = CompositeSMD([param], lr=eta, mirror="p-norm", p=p, prox=term)
    param.grad = g.clone()
    optimizer.step()
    slope = torch.autograd.grad(((z := x.clone().requires_grad_()).abs().pow(p).sum() ** (2 / p)) / (2 * (p - 1)), z)[0]

    def objective(z):
        divergence = potential(z, p) - potential(x, p) - float((slope * (z - x)).sum())
        return float(term.value(z)) + float((g * (z - x)).sum()) + divergence / eta

    least = objective(param.detach())
    assert 0 < int((param == 0).sum()) < 6
    for seed in range(200):
        assert objective(param.detach() + 1e-2 * normal((6,), 50 + seed)) > least


def test_p_norm_steps_start_at_zero_and_use_dim():
    p, q = nn.Parameter(torch.zeros(3, 4, dtype=torch.float64)), nn.Parameter(torch.zeros(3, 4, dtype=torch.float64))
    run([p], CompositeSMD([p], lr=0.1, mirror="p-norm", p=1.05, dim=1))
    rows = [nn.Parameter(torch.zeros(4, dtype=torch.float64)) for _ in range(3)]
    optimizer = CompositeSMD(rows, lr=0.1, mirror="p-norm", p=1.05)
    for t in range(20):
        for row, g in zip(rows, normal((3, 4), 100 * t), strict=True):
            row.grad = g
        optimizer.step()
    torch.testing.assert_close(p.detach(), torch.stack([row.detach() for row in rows]), rtol=1e-12, atol=1e-14)
    assert q.isfinite().all() and p.isfinite().all()


@pytest.mark.parametrize("options", [{"prox": L1(0.1)}, {"mirror": "entropy"}, {"mirror": "p-norm", "prox": NonNegative()}])
def test_resume_pure_form_and_copies(options):
    start = [normal(s, i).exp() for i, s in enumerate(((4,), (3, 5)))]
    start = [x / x.sum() for x in start]
    whole, half = ([nn.Parameter(x.clone()) for x in start] for _ in range(2))
    run(whole, CompositeSMD(whole, lr=0.1, **options), 7)
    first = CompositeSMD(half, lr=0.1, **options)
    run(half, first, 4)
    again = copy.deepcopy(first)
    assert again.sentence.move is not None
    second = CompositeSMD(half, lr=0.5, **options)
    second.load_state_dict(first.state_dict())
    run(half, second, 3, start=4)
    assert all(torch.equal(a, b) for a, b in zip(whole, half, strict=True))
    pure, state = [x.clone() for x in start], second.init(start)
    for t in range(7):
        pure, state = second.update(pure, [normal(x.shape, 100 * t + i) for i, x in enumerate(start)], state)
    for a, b in zip(whole, pure, strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=1e-12, atol=1e-14)


def test_empty_tensors_and_half_precision():
    empty, half = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.randn(5, generator=torch.Generator().manual_seed(0)).bfloat16())
    for options in ({"prox": Simplex()}, {"mirror": "p-norm"}):
        optimizer = CompositeSMD([empty, half], **options)
        empty.grad, half.grad = torch.zeros(0, 3), torch.ones(5).bfloat16()
        optimizer.step()
        assert half.dtype is torch.bfloat16 and half.isfinite().all()
    assert float(half.detach().float().abs().sum()) > 0


@pytest.mark.parametrize(("options", "error", "words"), [
    ({"prox": "l1"}, TypeError, "prox must be a Term"),
    ({"mirror": "bregman"}, ValueError, "mirror must be 'euclidean'"),
    ({"mirror": "entropy", "prox": L1()}, ValueError, "prox must be None with mirror='entropy'"),
    ({"mirror": "p-norm", "prox": L2()}, ValueError, "prox must be L1 or NonNegative"),
    ({"mirror": "p-norm", "p": 1.0}, ValueError, "p must be in"),
    ({"mirror": "p-norm", "p": math.inf}, ValueError, "p must be in"),
    ({"mirror": "entropy", "dim": 0.5}, ValueError, "dim must be a dimension"),
    ({"mirror": "entropy"}, ValueError, "start on the simplex"),
    ({"prox": MCP(gamma=3.0), "lr": 3.0}, ValueError, "lr must be below 3"),
    ({"lr": -1.0}, ValueError, "lr must be"),
])
def test_bad_arguments_are_refused_by_name(options, error, words):
    with pytest.raises(error, match=words):
        CompositeSMD([nn.Parameter(torch.ones(3))], **options)
