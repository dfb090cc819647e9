"""Optimistic AMSGrad against a float64 reference written from its formulas, and the extrapolation on sequences it must know."""

import io
import itertools

import pytest
import torch

import fallline as fl
from fallline import optim

SHAPES = [(), (3,), (4, 5), (2, 3, 4)]
STEPS = 20


def starts(seed=0):
    return [torch.randn(s, dtype=torch.float64, generator=fl.Key(seed).fold(str(s)).generator()) for s in SHAPES]


def slopes(xs, t, seed=0):
    """Gradients at ``xs`` of a bowl for each tensor with a target that moves with t, so that they depend on the point."""
    found = []
    for i, x in enumerate(xs):
        target = torch.randn(x.shape, dtype=torch.float64, generator=fl.Key(seed).fold(t, i).generator())
        found.append((1.0 + i) * (x - 0.3 * target))
    return found


def newest(differences, reg):
    return torch.tensor([0.0] * (len(differences) - 1) + [1.0], dtype=torch.float64)


def minimal_polynomial(differences, reg):
    """c_i of the later gradient of each difference: (M + ρ I) z = 1, M = UᵀU / ‖UᵀU‖, c = z / Σ z."""
    u = torch.stack(differences, 1)
    m = u.T @ u
    m = m / torch.linalg.svdvals(m)[0]
    z = torch.linalg.inv(m + reg * torch.eye(len(m), dtype=torch.float64)) @ torch.ones(len(m), dtype=torch.float64)
    return z / z.sum()


def reference(xs, gradient, r=5, reg=1e-3, lr=1e-3, b1=0.9, b2=0.99, eps=1e-8, combine=minimal_polynomial, steps=STEPS):
    """One long vector, every step from the formulas; the points at which gradients were taken, and the last point."""
    sizes, shapes = [x.numel() for x in xs], [x.shape for x in xs]

    def parts(vector):
        return [piece.reshape(shape) for piece, shape in zip(vector.split(sizes), shapes, strict=True)]

    w = torch.cat([x.flatten() for x in xs])
    half, theta = w.clone(), torch.zeros_like(w)
    v = torch.full_like(w, eps)
    largest = v.clone()
    history = []
    for t in range(1, steps + 1):
        g = torch.cat([piece.flatten() for piece in gradient(parts(w), t)])
        history.append(g)
        theta = b1 * theta + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        largest = torch.maximum(largest, v)
        half = half - lr * theta / torch.sqrt(largest)
        m = g
        if t > r:
            last = history[-r - 1:]
            c = combine([later - earlier for earlier, later in itertools.pairwise(last)], reg)
            m = sum(weight * later for weight, later in zip(c, last[1:], strict=True))
        w = half - lr * (b1 * theta + (1 - b1) * m) / torch.sqrt(largest)
    return parts(w)


def descended(make, steps=STEPS, xs=None):
    params = [torch.nn.Parameter(x.clone()) for x in xs or starts()]
    optimizer = make(params)
    for t in range(1, steps + 1):
        for p, g in zip(params, slopes([p.detach() for p in params], t), strict=True):
            p.grad = g
        optimizer.step()
    return params, optimizer


def close(params, expected):
    for p, x in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach(), x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("r", [2, 5])
@pytest.mark.parametrize(("predictor", "combine"), [("rmpe", minimal_polynomial), ("last", newest)])
def test_it_is_its_formulas_with_one_extrapolation_over_all_tensors(r, predictor, combine):
    params, _ = descended(lambda p: optim.OptAMSGrad(p, lr=0.05, r=r, reg=0.01, predictor=predictor))
    close(params, reference(starts(), slopes, r=r, reg=0.01, lr=0.05, combine=combine))


def test_the_defaults():
    params, _ = descended(optim.OptAMSGrad)
    close(params, reference(starts(), slopes))
    separate = [descended(optim.OptAMSGrad, xs=[x])[0][0] for x in starts()[1:]]
    assert any(not torch.allclose(a, b, rtol=1e-8) for a, b in zip(separate, params[1:], strict=True))


def test_a_predictor_of_one_s_own_gets_the_products_oldest_first():
    seen = []

    def linear(products):
        """2 g_t − g_{t−1}."""
        seen.append(products.clone())
        return torch.tensor([0.0] * (len(products) - 2) + [-1.0, 2.0], dtype=products.dtype)

    params, _ = descended(lambda p: optim.OptAMSGrad(p, lr=0.05, r=2, predictor=linear))
    close(params, reference(starts(), slopes, r=2, lr=0.05, combine=lambda u, reg: torch.tensor([-1.0, 2.0], dtype=torch.float64)))
    assert len(seen) == STEPS - 2 and seen[0].shape == (3, 3)
    points, first = [torch.nn.Parameter(x.clone()) for x in starts()], []
    optimizer = optim.OptAMSGrad(points, lr=0.05, r=2, predictor="last")
    for t in (1, 2, 3):
        gradients = slopes([p.detach() for p in points], t)
        first.append(torch.cat([g.flatten() for g in gradients]))
        for p, g in zip(points, gradients, strict=True):
            p.grad = g
        optimizer.step()
    rows = torch.stack(first)
    torch.testing.assert_close(seen[0], rows @ rows.T, rtol=1e-10, atol=1e-10)


def test_groups_share_the_extrapolation():
    params, _ = descended(lambda p: optim.OptAMSGrad([{"params": p[:2]}, {"params": p[2:]}], lr=0.05, r=2))
    close(params, reference(starts(), slopes, r=2, lr=0.05))


@pytest.mark.parametrize("order", [1, 2])
def test_extrapolation_is_exact_for_what_follows_a_linear_recurrence(order):
    """g_{k+1} − g* = A (g_k − g*), with as many differences as A's minimal polynomial needs, has g* as its extrapolation."""
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=fl.Key(1).generator())).Q
    limit = torch.randn(6, dtype=torch.float64, generator=fl.Key(2).generator())
    rates = torch.tensor([0.5, -0.4][:order] + [0.0] * (6 - order), dtype=torch.float64)
    matrix = basis @ torch.diag(rates) @ basis.T
    error = basis[:, :order].sum(1)
    gradients = []
    for _ in range(order + 2):
        gradients.append(limit + error)
        error = matrix @ error
    torch.testing.assert_close(optim.extrapolate(gradients, reg=1e-12), limit, rtol=1e-6, atol=1e-6)
    far = (gradients[-1] - limit).norm()
    assert (optim.extrapolate(gradients, reg=1e-3) - limit).norm() < 0.2 * far
    square = optim.extrapolate([g.reshape(2, 3) for g in gradients], reg=1e-12)
    torch.testing.assert_close(square, limit.reshape(2, 3), rtol=1e-6, atol=1e-6)


def test_extrapolation_of_a_standstill_is_that():
    still = torch.tensor([1.0, -2.0], dtype=torch.float64)
    torch.testing.assert_close(optim.extrapolate([still] * 4), still)
    torch.testing.assert_close(optim.extrapolate([still, 2 * still]), 2 * still)


@pytest.mark.parametrize(("settings", "message"), [
    ({"reg": 0.0}, "reg must be a finite number > 0, got 0.0.*may be singular"),
    ({"r": 0}, "r must be"),
    ({"r": 2.5}, "r must be"),
    ({"eps": 0.0}, "eps must be a finite number > 0, got 0.0"),
    ({"predictor": "next"}, "predictor must be 'rmpe', 'last' or a function .*, got 'next'"),
    ({"betas": (0.9, 1.0)}, r"betas\[1\] must be a number in \[0, 1\)"),
])
def test_it_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        optim.OptAMSGrad([torch.nn.Parameter(torch.ones(2))], **settings)


def test_extrapolation_refuses():
    with pytest.raises(ValueError, match="gradients must be at least two, got 1"):
        optim.extrapolate([torch.ones(2)])
    with pytest.raises(ValueError, match="reg must be a finite number > 0, got 0"):
        optim.extrapolate([torch.ones(2), torch.zeros(2)], reg=0)


@pytest.mark.parametrize("stop", [2, 5, 7, 8])
def test_going_on_from_a_file_in_the_middle_of_the_ring(stop):
    whole, _ = descended(lambda p: optim.OptAMSGrad(p, lr=0.05, r=3), steps=12)
    half, first = descended(lambda p: optim.OptAMSGrad(p, lr=0.05, r=3), steps=stop)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    rest = [torch.nn.Parameter(p.detach().clone()) for p in half]
    second = optim.OptAMSGrad(rest, lr=0.05, r=3)
    second.load_state_dict(torch.load(file, weights_only=True))
    for t in range(stop + 1, 13):
        for p, g in zip(rest, slopes([p.detach() for p in rest], t), strict=True):
            p.grad = g
        second.step()
    for a, b in zip(rest, whole, strict=True):
        assert torch.equal(a, b)


def test_a_parameter_that_comes_late_takes_its_last_gradient_and_leaves_the_others_alone():
    """Until it has had r + 1 gradients of its own; the extrapolation of the others is over them."""
    early, late, r, joins = starts()[2], starts()[1], 2, 6
    p, q = torch.nn.Parameter(early.clone()), torch.nn.Parameter(late.clone())
    optimizer = optim.OptAMSGrad([p], lr=0.05, r=r)
    alone = reference([early], lambda xs, t: slopes(xs, t), r=r, lr=0.05, steps=joins + r)
    new = reference([late], lambda xs, t: slopes(xs, 100 + t), r=r, lr=0.05, steps=r)
    for t in range(1, joins + r + 1):
        if t == joins + 1:
            optimizer.add_param_group({"params": [q]})
        p.grad = slopes([p.detach()], t)[0]
        if t > joins:
            q.grad = slopes([q.detach()], 100 + t - joins)[0]
        optimizer.step()
    close([p, q], [alone[0], new[0]])
    p.grad, q.grad = slopes([p.detach()], joins + r + 1)[0], slopes([q.detach()], 100 + r + 1)[0]
    optimizer.step()
    apart = reference([early], lambda xs, t: slopes(xs, t), r=r, lr=0.05, steps=joins + r + 1)
    assert not torch.allclose(p.detach(), apart[0], rtol=1e-9, atol=0)


def test_gradients_are_asked_for_at_the_point_and_it_is_the_answer():
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = optim.OptAMSGrad([p], lr=0.1)
    p.grad = torch.tensor([1.0, 0.5], dtype=torch.float64)
    optimizer.step()
    half = optimizer.state[p]["half"]
    v = torch.tensor([0.01 + 0.99e-8, 0.0025 + 0.99e-8], dtype=torch.float64)
    g = torch.tensor([1.0, 0.5], dtype=torch.float64)
    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    torch.testing.assert_close(half, start - 0.1 * 0.1 * g / v.sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(p.detach(), half - 0.1 * (0.9 * 0.1 + 0.1) * g / v.sqrt(), rtol=1e-12, atol=0)
