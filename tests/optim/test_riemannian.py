"""Riemannian Adam and Adagrad against float64 references written from the formulas of the ball and the sphere, not from geoopt's."""

import math

import pytest
import torch

import fallline as fl
from fallline import optim

geoopt = pytest.importorskip("geoopt")
STEPS = 20


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=fl.Key(seed).generator())


# The Poincaré ball of curvature −c, a point: every formula on one vector

def mobius_add(x, y, c=1.0):
    xy, xx, yy = x @ y, x @ x, y @ y
    return ((1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y) / (1 + 2 * c * xy + c**2 * xx * yy)


def conformal(x, c=1.0):
    return 2 / (1 - c * (x @ x))


class Ball:
    def __init__(self, c=1.0):
        self.c = c

    def gradient(self, x, g):
        return g / conformal(x, self.c) ** 2

    def squared(self, x, u):
        return conformal(x, self.c) ** 2 * (u @ u)

    def exp(self, x, u):
        size, root = u.norm(), math.sqrt(self.c)
        y = mobius_add(x, torch.tanh(root * conformal(x, self.c) * size / 2) * u / (root * size), self.c)
        limit = (1 - 1e-5) / root
        return y * limit / y.norm() if y.norm() > limit else y

    def transport(self, x, y, u):
        gyr = mobius_add(-mobius_add(y, -x, self.c), mobius_add(y, mobius_add(-x, u, self.c), self.c), self.c)
        return gyr * conformal(x, self.c) / conformal(y, self.c)


class Sphere:
    def gradient(self, x, g):
        return g - (x @ g) * x

    def squared(self, x, u):
        return u @ u

    def exp(self, x, u):
        y = torch.cos(u.norm()) * x + torch.sin(u.norm()) * u / u.norm()
        return y / y.norm()  # or rounding would grow from step to step

    def transport(self, x, y, u):
        """Along the great circle: what points along it turns with it, the rest stays."""
        along = y - (x @ y) * x
        along = along / along.norm()
        angle = torch.atan2((y - (x @ y) * x).norm(), x @ y)
        return u + (along @ u) * ((torch.cos(angle) - 1) * along - torch.sin(angle) * x)


class Line:
    def gradient(self, x, g):
        return g

    def squared(self, x, u):
        return u**2

    def exp(self, x, u):
        return x + u

    def transport(self, x, y, u):
        return u


def reference(space, x, slope, rule, lr, b1=0.9, b2=0.999, eps=1e-10, steps=STEPS):
    m, v, largest = torch.zeros_like(x), 0.0, torch.zeros((), dtype=torch.float64)
    for t in range(1, steps + 1):
        g = space.gradient(x, slope(x, t))
        size = space.squared(x, g)
        if rule == "adagrad":
            v = v + size
            y = space.exp(x, -lr * g / (torch.sqrt(v) + eps))
        else:
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * size
            largest = torch.maximum(largest, v)
            u = m / (torch.sqrt(largest) + eps) if rule == "ramsgrad" else \
                m / (1 - b1**t) / (torch.sqrt(v / (1 - b2**t)) + eps)
            y = space.exp(x, -lr * u)
            m = space.transport(x, y, m)
        x = y
    return x


RULES = {"ramsgrad": lambda p, **k: optim.RiemannianAdam(p, **k), "radam": lambda p, **k: optim.RiemannianAdam(p, amsgrad=False, **k),
         "adagrad": lambda p, **k: optim.RiemannianAdagrad(p, **k)}


def in_ball(seed=0, radius=0.8):
    x = normal(4, 3, seed=seed)
    return radius * torch.linspace(0.1, 1.0, 4, dtype=torch.float64)[:, None] * x / x.norm(dim=1, keepdim=True)


def on_sphere(seed=0):
    x = normal(4, 3, seed=seed)
    return x / x.norm(dim=1, keepdim=True)


def pull(x, t):
    """A gradient that depends on the point and on the step, of a size of its own for each row."""
    rows = x if x.ndim == 2 else x[None]
    scale = torch.logspace(-1, 1, len(rows), dtype=torch.float64)[:, None]
    return (scale * (rows - 0.3 * normal(4, rows.shape[1], seed=100 + t)[:len(rows)])).reshape(x.shape)


def descend(make, p, slope=pull, steps=STEPS):
    optimizer = make([p])
    for t in range(1, steps + 1):
        p.grad = slope(p.detach(), t)
        optimizer.step()
    return optimizer


def expected(space, x, rule, **hyper):
    """Rows are components: each goes by itself, under its own part of the gradient."""
    def only(i):
        def slope(row, t):
            rows = torch.zeros_like(x)
            rows[i] = row
            return pull(rows, t)[i]
        return slope
    return torch.stack([reference(space, row, only(i), rule, **hyper) for i, row in enumerate(x)])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("c", [1.0, 0.25])
def test_the_ball(rule, c):
    x = in_ball()
    p = geoopt.ManifoldParameter(x.clone(), manifold=geoopt.PoincareBall(c=c))
    descend(lambda params: RULES[rule](params, lr=0.1), p)
    torch.testing.assert_close(p.detach().as_subclass(torch.Tensor), expected(Ball(c), x, rule, lr=0.1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rule", RULES)
def test_the_sphere(rule):
    x = on_sphere()
    p = geoopt.ManifoldParameter(x.clone(), manifold=geoopt.Sphere())
    descend(lambda params: RULES[rule](params, lr=0.2), p)
    torch.testing.assert_close(p.detach().as_subclass(torch.Tensor), expected(Sphere(), x, rule, lr=0.2), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rule", RULES)
def test_a_plain_parameter_is_a_product_of_lines(rule):
    """With RAMSGrad, AMSGrad without debiasing: every entry has its own v."""
    x = in_ball()
    p = torch.nn.Parameter(x.clone())
    descend(lambda params: RULES[rule](params, lr=0.1), p)
    torch.testing.assert_close(p.detach(), reference(Line(), x, pull, rule, lr=0.1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("make", "rule", "lr"), [(optim.RiemannianAdam, "ramsgrad", 1e-3), (optim.RiemannianAdagrad, "adagrad", 1e-2)])
def test_the_defaults(make, rule, lr):
    x = in_ball()
    p = geoopt.ManifoldParameter(x.clone(), manifold=geoopt.PoincareBall())
    descend(make, p)
    torch.testing.assert_close(p.detach().as_subclass(torch.Tensor), expected(Ball(), x, rule, lr=lr), rtol=1e-10, atol=1e-10)


def test_a_product_has_a_second_moment_for_each_factor():
    sphere, ball, line = on_sphere(), in_ball(1), normal(4, 2, seed=2)
    manifold = geoopt.ProductManifold((geoopt.Sphere(), 3), (geoopt.PoincareBall(), 3), (geoopt.Euclidean(), 2))
    p = geoopt.ManifoldParameter(torch.cat([sphere, ball, line], 1), manifold=manifold)

    def slope(x, t):
        return torch.cat([pull(x[:, :3], t), pull(x[:, 3:6], t), pull(x[:, 6:], t)], 1)

    descend(lambda params: optim.RiemannianAdam(params, lr=0.1), p, slope)
    found = p.detach().as_subclass(torch.Tensor)
    torch.testing.assert_close(found[:, :3], expected(Sphere(), sphere, "ramsgrad", lr=0.1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[:, 3:6], expected(Ball(), ball, "ramsgrad", lr=0.1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[:, 6:], reference(Line(), line, pull, "ramsgrad", lr=0.1), rtol=1e-10, atol=1e-10)


def test_mixed_manifolds_in_one_optimizer_go_as_they_would_alone():
    def parameters():
        return [geoopt.ManifoldParameter(in_ball(), manifold=geoopt.PoincareBall()),
                geoopt.ManifoldParameter(on_sphere(), manifold=geoopt.Sphere()), torch.nn.Parameter(normal(4, 3, seed=5)),
                torch.nn.Parameter(normal(7, seed=6)), geoopt.ManifoldParameter(in_ball(1), manifold=geoopt.PoincareBall(c=0.5))]

    together, alone = parameters(), parameters()
    optimizer = optim.RiemannianAdam(together, lr=0.1)
    for t in range(1, 6):
        for p in together:
            p.grad = pull(p.detach(), t) if p.ndim == 2 else p.detach() - 0.1 * t
        optimizer.step()
    for p in alone:
        descend(lambda params: optim.RiemannianAdam(params, lr=0.1), p, pull if p.ndim == 2 else lambda x, t: x - 0.1 * t, steps=5)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("manifold", "start"), [(geoopt.PoincareBall(), in_ball), (geoopt.Sphere(), on_sphere),
                                                 (geoopt.Scaled(geoopt.Sphere(), 2.0), on_sphere)])
def test_transport_keeps_the_norm_of_the_average_and_its_tangency(manifold, start):
    """A step without a gradient only carries the average: its norm falls by β₁ and by nothing else."""
    p = geoopt.ManifoldParameter(start(), manifold=manifold)
    optimizer = optim.RiemannianAdam([p], lr=0.5)
    p.grad = pull(p.detach(), 1)
    optimizer.step()
    for _ in range(3):
        before, where = optimizer.state[p]["exp_avg"].view_as(p).clone(), p.detach().clone()
        p.grad = torch.zeros_like(p)
        optimizer.step()
        after = optimizer.state[p]["exp_avg"].view_as(p)
        assert (p.detach() - where).norm() > 0.01
        torch.testing.assert_close(manifold.norm(p.detach(), after), 0.9 * manifold.norm(where, before), rtol=1e-8, atol=0)
        assert manifold.check_vector_on_tangent(p.detach(), after)


@pytest.mark.parametrize(("manifold", "bad"), [(geoopt.PoincareBall(), 1.5 * torch.ones(2)), (geoopt.Sphere(), torch.ones(2))])
def test_a_point_off_its_manifold_is_refused_with_its_remedy(manifold, bad):
    p = geoopt.ManifoldParameter(bad, manifold=manifold)
    with pytest.raises(ValueError, match=r"parameter number 0 .* shape \(2,\) is not on its manifold .*; make it of a point that is"):
        optim.RiemannianAdam([p])
    optim.RiemannianAdam([geoopt.ManifoldParameter(manifold.projx(bad), manifold)])


@pytest.mark.parametrize("lr", [0.05, 0.5])
def test_rounding_does_not_lead_away_from_the_sphere(lr):
    p = geoopt.ManifoldParameter(on_sphere(), manifold=geoopt.Sphere())
    optimizer = descend(lambda params: optim.RiemannianAdam(params, lr=lr), p, steps=200)
    assert float((p.detach().norm(dim=1) - 1).abs().max()) < 1e-14
    average = optimizer.state[p]["exp_avg"].view_as(p)
    assert float((average * p.detach()).sum(1).abs().max()) < 1e-12


def test_eps_is_positive():
    with pytest.raises(ValueError, match=r"eps must be a finite number > 0, got 0.0.*0 / 0"):
        optim.RiemannianAdam([torch.nn.Parameter(torch.ones(2))], eps=0.0)


def test_rows_taken_twice_in_a_batch_have_the_sum_of_their_gradients_and_others_move_by_their_average_alone():
    table = geoopt.ManifoldParameter(in_ball(), manifold=geoopt.PoincareBall())
    optimizer = optim.RiemannianAdam([table], lr=0.1)
    torch.nn.functional.embedding(torch.tensor([2, 2, 0]), table).sum().backward()
    optimizer.step()
    twin = geoopt.ManifoldParameter(in_ball(), manifold=geoopt.PoincareBall())
    twin.grad = torch.tensor([1.0, 0.0, 2.0, 0.0], dtype=torch.float64)[:, None].expand(4, 3).clone()
    optim.RiemannianAdam([twin], lr=0.1).step()
    assert torch.equal(table.detach(), twin.detach())
    assert torch.equal(table.detach()[[1, 3]], in_ball()[[1, 3]])


def test_a_sparse_table_is_refused():
    table = torch.nn.Embedding(4, 3, sparse=True)
    optimizer = optim.RiemannianAdam(table.parameters())
    table(torch.tensor([1, 1])).sum().backward()
    with pytest.raises(Exception, match="sparse"):
        optimizer.step()


def test_points_stay_inside_the_ball_under_steps_that_would_leave_it():
    p = geoopt.ManifoldParameter(in_ball(), manifold=geoopt.PoincareBall())
    optimizer = descend(lambda params: optim.RiemannianAdam(params, lr=50.0), p, lambda x, t: -torch.ones_like(x), steps=5)
    norms = p.detach().norm(dim=1)
    assert bool((norms <= 1 - 1e-5 + 1e-12).all()) and bool((norms > 0.99).all())
    assert all(bool(value.isfinite().all()) for value in optimizer.state[p].values() if isinstance(value, torch.Tensor))


def test_the_retraction_is_a_choice():
    x = on_sphere()
    p = geoopt.ManifoldParameter(x.clone(), manifold=geoopt.Sphere())
    g = pull(x, 1)
    descend(lambda params: optim.RiemannianAdam(params, lr=0.1, retraction=True), p, lambda *_: g, steps=1)
    tangent = g - (x * g).sum(1, keepdim=True) * x
    moved = x - 0.1 * 0.1 * tangent / (math.sqrt(0.001) * tangent.norm(dim=1, keepdim=True) + 1e-10)
    torch.testing.assert_close(p.detach().as_subclass(torch.Tensor), moved / moved.norm(dim=1, keepdim=True), rtol=1e-12, atol=0)


@pytest.mark.parametrize("amsgrad", [True, False])
def test_geoopt_s_own_debiases_in_both_cases_and_ours_as_the_paper_says(amsgrad):
    """Without amsgrad the two agree on the ball. With it geoopt divides m and v̂ by 1 − βᵗ, ours does not: with its lr scaled by
    √(1 − β₂ᵗ) / (1 − β₁ᵗ) at every step, ours follows geoopt's trajectory."""
    ours = geoopt.ManifoldParameter(in_ball(), manifold=geoopt.PoincareBall())
    theirs = geoopt.ManifoldParameter(in_ball(), manifold=geoopt.PoincareBallExact())
    first = optim.RiemannianAdam([ours], lr=0.05, eps=1e-14, amsgrad=amsgrad)
    second = geoopt.optim.RiemannianAdam([theirs], lr=0.05, eps=1e-14, amsgrad=amsgrad)
    plain = geoopt.ManifoldParameter(in_ball(), manifold=geoopt.PoincareBall())
    third = optim.RiemannianAdam([plain], lr=0.05, amsgrad=amsgrad)
    for t in range(1, STEPS + 1):
        if amsgrad:
            first.param_groups[0]["lr"] = 0.05 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        for p in (ours, theirs, plain):
            p.grad = pull(p.detach(), t)
        for optimizer in (first, second, third):
            optimizer.step()
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-9, atol=1e-10)
    assert amsgrad != torch.allclose(plain.detach(), theirs.detach(), rtol=1e-6)


@pytest.mark.parametrize("make", [optim.RiemannianAdam, optim.RiemannianAdagrad])
@pytest.mark.parametrize("manifold", [geoopt.EuclideanStiefel(), geoopt.EuclideanStiefelExact(), geoopt.SymmetricPositiveDefinite(),
                                      geoopt.BirkhoffPolytope(), geoopt.SphereExact()], ids=lambda m: type(m).__name__)
def test_it_descends_on_other_manifolds_and_stays_there(manifold, make):
    torch.manual_seed(0)
    draw = getattr(manifold, "random", None) or (lambda *shape: manifold.projx(torch.randn(shape)))
    start, target = (manifold.projx(draw(3, 3).double()) for _ in range(2))
    p = geoopt.ManifoldParameter(start.clone(), manifold=manifold)
    optimizer = make([p], lr=0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = ((p - target) ** 2).sum()
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < losses[0]
    assert manifold.check_point_on_manifold(p.detach())


def test_a_manifold_that_lacks_something_is_named():
    manifold = geoopt.Stiefel()
    p = geoopt.ManifoldParameter(manifold.projx(torch.eye(3)), manifold=manifold)
    with pytest.raises(TypeError, match=r"RiemannianAdam needs norms of components and a transport .* geoopt's .* lacks one of them"):
        optim.RiemannianAdam([p])


def test_weights_on_a_manifold_are_not_predicted_and_plain_ones_are():
    ball = geoopt.ManifoldParameter(in_ball(), manifold=geoopt.PoincareBall())
    plain = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = optim.XGrad([plain], base=optim.RiemannianAdam, lr=0.1)
    plain.grad = torch.ones(3, dtype=torch.float64)
    optimizer.step()
    assert float(plain[0].detach()) == pytest.approx(1 - 2 * 0.1 * 0.1 / math.sqrt(1e-3), rel=1e-6)
    with pytest.raises(TypeError, match="XGrad cannot predict the weights of RiemannianAdam: its state belongs to the point"):
        optimizer.add_param_group({"params": [ball]})
