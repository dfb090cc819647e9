import pytest
import torch

import fallline as fl
from fallline.core import tree
from fallline.core.counts import Counts
from fallline.core.errors import MissingOracle
from fallline.core.sets import L2Ball
from fallline.core.terms import L1, L2


def logistic(n=40, d=5, batch_size=8):
    generator = fl.Key(1).generator()
    features = torch.randn(n, d, dtype=torch.float64, generator=generator)
    labels = torch.sign(torch.randn(n, dtype=torch.float64, generator=generator))
    mean_loss = lambda w, a, y: torch.nn.functional.softplus(-y * (a @ w)).mean()
    start = torch.full((d,), 0.3, dtype=torch.float64)
    return fl.FiniteSum(mean_loss, (features, labels), start, batch_size=batch_size), mean_loss, (features, labels)


def test_derived_oracles_agree_with_closed_forms():
    matrix = torch.diag(torch.arange(1.0, 5.0, dtype=torch.float64)) + 0.1
    problem = fl.Smooth(lambda x: 0.5 * x @ matrix @ x + (x**3).sum(), torch.ones(4, dtype=torch.float64))
    x = torch.linspace(-1, 2, 4, dtype=torch.float64)
    v = torch.linspace(3, 1, 4, dtype=torch.float64)
    gradient, hessian = matrix @ x + 3 * x**2, matrix + torch.diag(6 * x)
    torch.testing.assert_close(problem.gradient(x), gradient)
    torch.testing.assert_close(problem.hessian(x), hessian)
    torch.testing.assert_close(problem.hvp(x, v), hessian @ v)
    torch.testing.assert_close(problem.jvp(x, v)[1], gradient @ v)


def test_partial_gradients_are_the_parts_of_the_whole():
    problem = fl.Smooth(lambda z: (z["a"] ** 2).sum() * z["b"].sum(), {"a": torch.ones(3), "b": torch.ones(2)})
    point = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([0.5, 2.0])}
    whole = problem.gradient(point)
    for name in ("a", "b"):
        torch.testing.assert_close(problem.gradient(point, wrt=name), whole[name])


def test_a_part_that_the_value_does_not_depend_on_has_gradient_zero():
    problem = fl.Smooth(lambda z: (z[1] ** 2).sum(), (torch.ones(3), torch.ones(2)))
    torch.testing.assert_close(problem.gradient(problem.x0, wrt=0), torch.zeros(3))


@pytest.mark.parametrize("fun", [lambda x: torch.tensor(float((x.detach() ** 2).sum())), lambda x: torch.tensor(3.0)])
@pytest.mark.parametrize("ask", [lambda p, x: p.gradient(x), lambda p, x: p.value_and_gradient(x), lambda p, x: p.hvp(x, x),
                                 lambda p, x: p.bind(x)()])
def test_a_function_cut_off_from_autograd_is_refused(fun, ask):
    problem = fl.Smooth(fun, torch.ones(2), name="cut")
    with pytest.raises(MissingOracle, match=r"'cut' cannot be differentiated.*torch operations.*gradient="):
        ask(problem, problem.x0)


@pytest.mark.parametrize("ask", [lambda p, x: p.hessian(x), lambda p, x: p.jvp(x, x)])
def test_transforms_refuse_a_function_cut_off_from_autograd(ask):
    problem = fl.Smooth(lambda x: (x.detach() ** 2).sum(), torch.ones(2), name="cut")
    with pytest.raises(MissingOracle, match="'cut' cannot be differentiated"):
        ask(problem, problem.x0)
    linear = fl.Smooth(lambda x: x.sum(), torch.ones(2))
    torch.testing.assert_close(linear.hessian(linear.x0), torch.zeros(2, 2))


def numpy_quartic(**given):
    """A function of NumPy over two blocks, with its gradient, whose dict is filled in another order."""
    def fun(z):
        a, b = z["a"].numpy(), z["b"].numpy()
        return torch.tensor((a**4).sum() + (a[0] - b[0]) ** 2)

    def gradient(z):
        apart = 2 * (z["a"][:1] - z["b"])
        return {"b": -apart, "a": 4 * z["a"] ** 3 + torch.cat([apart, torch.zeros_like(apart)])}

    start = {"a": torch.tensor([1.0, -2.0], dtype=torch.float64), "b": torch.tensor([2.0], dtype=torch.float64)}
    return fl.Smooth(fun, start, gradient=gradient, **given)


def test_where_only_a_gradient_is_given_curvature_comes_from_its_differences():
    problem = numpy_quartic()
    x, v = problem.x0, {"b": torch.tensor([0.5], dtype=torch.float64), "a": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    hessian = torch.tensor([[14.0, 0, -2], [0, 48, 0], [-2, 0, 2]], dtype=torch.float64)
    flat = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(problem.hessian(x), hessian, rtol=1e-8, atol=1e-7)
    assert dict(problem.counts) == {"gradients": 6}
    torch.testing.assert_close(tree.flatten(problem.hvp(x, v)), hessian @ flat, rtol=1e-8, atol=1e-7)
    assert dict(problem.counts) == {"gradients": 8}
    assert float(problem.jvp(x, v)[1]) == pytest.approx(2 * 1.0 - 32 * 2.0 + 2 * 0.5)
    torch.testing.assert_close(problem.hvp(x, tree.zeros_like(v)), tree.zeros_like(x))
    exact = numpy_quartic(hvp=lambda z, u: tree.unflatten(hessian @ tree.flatten(tree.aligned(u, z, "u")), z))
    assert torch.equal(exact.hessian(x), hessian) and dict(exact.counts) == {"hvps": 3}


def test_a_gradient_is_taken_by_its_names():
    problem = numpy_quartic()
    gradient = problem.gradient(problem.x0)
    assert list(gradient) == ["a", "b"]
    torch.testing.assert_close(tree.flatten(gradient), torch.tensor([2.0, -32.0, 2.0], dtype=torch.float64))
    result = fl.solve(problem, fl.solvers.LazyCubicNewton(), fl.Budget(steps=200), tol=1e-6)
    assert result.success


def test_every_call_is_counted_once_whatever_it_derives_from():
    calls = 0

    def fun(x):
        nonlocal calls
        calls += 1
        return (x**4).sum()

    problem = fl.Smooth(fun, torch.ones(3))
    x = torch.ones(3)
    problem.value(x), problem.gradient(x), problem.value_and_gradient(x), problem.hvp(x, x), problem.hessian(x)
    assert dict(problem.counts) == {"values": 1, "gradients": 2, "hvps": 1, "hessians": 1}
    assert calls == 5
    problem.observe(x)
    assert sum(problem.counts.values()) == 5


def test_a_realisation_reuses_its_sample_and_counts_on_the_same_bill():
    problem, *_ = logistic()
    drawn = problem.draw(fl.Key(3))
    x = problem.x0
    assert drawn.value(x) == drawn.value(x) != problem.draw(fl.Key(4)).value(x)
    assert problem.draw(fl.Key(3)).value(x) == drawn.value(x)
    drawn.gradient(x)
    assert problem.counts["gradients"] == 1 and problem.counts["samples"] == 8


def test_chosen_indices_and_parts_are_the_terms_of_the_sum():
    problem, loss, (features, labels) = logistic()
    x = problem.x0
    rows = torch.tensor([3, 5])
    torch.testing.assert_close(problem.draw(fl.Key(), indices=rows).value(x), loss(x, features[rows], labels[rows]))
    torch.testing.assert_close(sum(part.weight * part.value(x) for part in problem.parts), problem.value(x))
    torch.testing.assert_close(problem.per_sample_gradients(x).mean(0), problem.gradient(x))


def test_parts_are_billed_to_the_view_they_are_asked_of():
    problem, *_ = logistic()
    view = problem.counted(Counts())
    for part in (view.parts[0], view.parts[-1], *view.parts[3:5]):
        part.gradient(problem.x0)
    assert dict(view.counts) == {"gradients": 4, "samples": 4} and not problem.counts

    class OneAfterAnother(fl.Method):
        def init(self, problem, key):
            return {"x": problem.x0, "t": 0}

        def step(self, problem, state):
            gradient = problem.parts[state["t"] % len(problem.parts)].gradient(state["x"])
            return {"x": state["x"] - 0.1 * gradient, "t": state["t"] + 1}

        def report(self, problem, state):
            return fl.Report(state["x"])

    result = fl.solve(problem, OneAfterAnother(), fl.Budget(gradients=10, steps=50))
    assert result.nit == 10 and result.counts == {"gradients": 10, "samples": 10}


def test_parts_given_as_problems_are_billed_as_well():
    clients = [fl.Smooth(lambda x, c=c: ((x - c) ** 2).sum(), torch.ones(2)) for c in (1.0, 3.0)]
    whole = fl.Problem(torch.ones(2), {"value": lambda x: sum(c._oracles["value"](x) for c in clients)}, kind="smooth", parts=clients)
    view = whole.counted(Counts())
    assert sum(part.weight * float(part.value(whole.x0)) for part in view.parts) == float(view.value(whole.x0))
    assert view.counts["values"] == 3 and not whole.counts and not clients[0].counts


def test_a_constrained_sum_keeps_its_data():
    smooth, loss, (features, labels) = logistic()
    problem = fl.Constrained(smooth, L2Ball(1.0))
    x, rows = problem.x0, torch.tensor([3, 5])
    drawn = problem.draw(fl.Key(2))
    assert drawn.value(x) == smooth.draw(fl.Key(2)).value(x) != problem.value(x)
    torch.testing.assert_close(drawn.project(4 * x), problem.project(4 * x))
    torch.testing.assert_close(problem.draw(fl.Key(), indices=rows).value(x), loss(x, features[rows], labels[rows]))
    torch.testing.assert_close(sum(part.weight * part.value(x) for part in problem.parts), problem.value(x))
    counts = Counts()
    problem.counted(counts).draw(fl.Key(0)).gradient(x)
    assert dict(counts) == {"gradients": 1, "samples": 8}
    deterministic = fl.Constrained(fl.Smooth(lambda x: (x**2).sum(), x), L2Ball(1.0))
    assert deterministic.draw(fl.Key()) is deterministic and not deterministic.parts


def test_a_problem_that_evaluations_do_not_move_has_no_buffers():
    problem, *_ = logistic()
    assert problem.buffers == problem.persistent_buffers == {}
    problem.load_buffers({})
    with pytest.raises(ValueError, match=r"has no buffers to load, got \['mean'\]"):
        problem.load_buffers({"mean": torch.zeros(2)})


def test_draws_are_unbiased():
    problem, *_ = logistic()
    draws = torch.stack([problem.draw(fl.Key(0).fold(i), size=4).gradient(problem.x0) for i in range(2000)])
    error = (draws.mean(0) - problem.gradient(problem.x0)).abs()
    assert (error < 4 * draws.std(0) / 2000**0.5).all()


def test_views_count_apart_and_parents_count_along():
    problem, *_ = logistic()
    inner = problem.counted(Counts(parent=problem.counts))
    inner.gradient(problem.x0)
    assert inner.counts["gradients"] == problem.counts["gradients"] == 1
    problem.gradient(problem.x0)
    assert inner.counts["gradients"] == 1


@pytest.mark.parametrize("oracle", ["prox", "project", "linear_minimize", "values", "residual", "upper"])
def test_a_missing_oracle_names_itself_the_problem_and_the_remedy(oracle):
    problem = fl.Smooth(lambda x: x.sum(), torch.ones(2), name="plane")
    with pytest.raises(MissingOracle, match=rf"{oracle}.*plane.*build the problem with"):
        problem.require(oracle)


def test_composite_keeps_the_smooth_part_apart():
    class Soft:
        def value(self, x):
            return x.abs().sum()

        def prox(self, x, step):
            return torch.sign(x) * (x.abs() - step).clamp(min=0)

    problem = fl.Composite(fl.Smooth(lambda x: (x**2).sum(), torch.ones(2)), Soft())
    x = torch.tensor([3.0, -0.5])
    assert problem.value(x) == x.square().sum() + x.abs().sum()
    torch.testing.assert_close(problem.smooth.gradient(x), 2 * x)
    torch.testing.assert_close(problem.prox(x, 1.0), torch.tensor([2.0, 0.0]))
    assert not problem.has("gradient") and problem.counts["prox"] == 1 and problem.counts["gradients"] == 1


def test_saddle_operator_has_the_sign_of_descent_in_both_players():
    problem = fl.Saddle(lambda x, y: x @ y + x @ x, torch.ones(2), torch.ones(2))
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    for part, expected in zip(problem.operator((x, y)), (y + 2 * x, -x), strict=True):
        torch.testing.assert_close(part, expected)


def test_linear_system_takes_matrices_and_functions():
    matrix, b = torch.diag(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 1.0])
    for A in (matrix, matrix.to_sparse(), lambda v: matrix @ v):
        problem = fl.LinearSystem(A, b)
        torch.testing.assert_close(problem.residual(torch.ones(2)), b - matrix @ torch.ones(2))
    assert problem.observe(torch.zeros(2)) == {"residual_norm": pytest.approx(2**0.5)}
    with pytest.raises(ValueError, match="A must be 2 by 3 to fit b and x0, got shape"):
        fl.LinearSystem(torch.ones(3, 3), b, torch.zeros(3))
    with pytest.raises(TypeError, match="got str"):
        fl.LinearSystem("A", b)


def test_linear_systems_have_an_adjoint_where_one_is_known():
    matrix, b, u = torch.tensor([[1.0, 2.0], [0.0, 3.0], [4.0, 0.0]]), torch.ones(3), torch.tensor([1.0, 2.0, 3.0])
    rectangular = fl.LinearSystem(matrix, b)
    function = fl.LinearSystem(lambda v: matrix @ v, b, torch.zeros(2), adjoint=lambda w: matrix.T @ w)
    for problem in (rectangular, fl.LinearSystem(matrix.to_sparse(), b), function):
        torch.testing.assert_close(problem.rmatvec(u), matrix.T @ u)
        assert problem.x0.shape == (2,) and problem.counts["matvecs"] == 1
    with pytest.raises(MissingOracle, match="adjoint="):
        fl.LinearSystem(lambda v: v, b).rmatvec(u)


def test_terms_and_sets_act_on_nested_variables():
    x = {"a": torch.tensor([3.0, -0.5]), "b": (torch.tensor([[4.0]]),)}
    smooth = fl.Smooth(lambda x: x["a"].sum(), x)
    entrywise = fl.Composite(smooth, L1(1.0))
    assert float(entrywise.value(x)) == 2.5 + 7.5
    moved = entrywise.prox(x, 1.0)
    torch.testing.assert_close(moved, {"a": torch.tensor([2.0, 0.0]), "b": (torch.tensor([[3.0]]),)})
    joint = fl.Composite(smooth, L2(1.0, dim=None))
    length = (9 + 0.25 + 16) ** 0.5
    assert float(joint.value(x)) == pytest.approx(2.5 + length)
    torch.testing.assert_close(joint.prox(x, 1.0), tree.scale(1 - 1 / length, x))
    ball = fl.Constrained(smooth, L2Ball(1.0, dim=None))
    torch.testing.assert_close(ball.project(x), tree.scale(1 / length, x))
    assert ball.linear_minimize(x)["b"][0].shape == (1, 1)


def test_black_box_counts_every_point_and_has_no_gradient():
    problem = fl.BlackBox(lambda x: (x**2).sum(), torch.zeros(2))
    problem.values(torch.ones(7, 2))
    assert problem.counts["values"] == 7
    with pytest.raises(MissingOracle, match="gradient"):
        problem.gradient(problem.x0)


def plane():
    return fl.Smooth(lambda x: x.sum(), torch.ones(2))


def rows():
    return fl.FiniteSum(lambda x, a: a.sum() * x.sum(), torch.ones(4, 2), torch.ones(2))


def levels():
    return fl.Bilevel(lambda x, y: y.sum(), lambda x, y: y.sum(), torch.ones(2), torch.ones(2))


@pytest.mark.parametrize("make, message", [
    (lambda: fl.Smooth(lambda x: x.sum(), [1.0, 2.0]), r"x0\[0\] must be a tensor.*got a float; torch\.as_tensor"),
    (lambda: fl.Smooth(lambda x: x.sum(), {"a": [None]}), r"x0\['a'\]\[0\] must be a tensor"),
    (lambda: fl.Smooth(lambda x: x.sum(), torch.ones(2, dtype=torch.int64)), r"x0 must be floating point, got torch\.int64; \.double"),
    (lambda: fl.Smooth(lambda x: x.sum(), torch.ones(2), gradient=True), "gradient must be a function"),
    (lambda: fl.BlackBox(lambda x: x.sum(), torch.ones(2, dtype=torch.int64)), "x0 must be floating point"),
    (lambda: fl.BlackBox(lambda x: x.sum(), torch.ones(2, 3)), r"x0 must be a 1-D tensor.*got shape \(2, 3\)"),
    (lambda: fl.BlackBox(lambda x: x.sum(), {"a": torch.ones(2)}), "x0 must be a 1-D tensor.*a dict"),
    (lambda: fl.BlackBox(lambda x: x.sum(), torch.ones(2), bounds=(1.0, -1.0)), "bounds must be finite with low < high"),
    (lambda: fl.BlackBox(lambda x: x.sum(), torch.ones(2), bounds=(1.0,)), "bounds must be a pair"),
    (lambda: fl.BlackBox(lambda x: x.sum(), torch.ones(2), bounds=(torch.zeros(3), torch.ones(3))), "bounds must be a pair"),
    (lambda: fl.BlackBox(lambda x: x, torch.ones(2)).value(torch.ones(2)), "one number for one point, got a tensor of shape"),
    (lambda: fl.BlackBox(lambda x: "a", torch.ones(2)).value(torch.ones(2)), "one number for one point, got 'a'"),
    (lambda: fl.BlackBox(lambda p: p.sum(), torch.ones(2), vectorized=True).value(torch.ones(2)), r"return a tensor of shape \(1,\)"),
    (lambda: rows().draw(fl.Key(), indices=torch.tensor([], dtype=torch.long)), "indices must be one or more"),
    (lambda: rows().draw(fl.Key(), indices=[-1]), "indices must be from 0 to 3 .*got -1"),
    (lambda: rows().draw(fl.Key(), indices=[4]), "indices must be from 0 to 3 .*got 4"),
    (lambda: rows().draw(fl.Key(), indices=[0.5]), "indices must be one or more whole numbers"),
    (lambda: rows().draw(fl.Key(), size=0), "size must be a whole number of at least 1"),
    (lambda: rows().draw(fl.Key(), size=2.5), "size must be a whole number of at least 1"),
    (lambda: fl.FiniteSum(lambda x, a: a.sum(), [[1.0]], torch.ones(2)), "data must be a tensor .*got list"),
    (lambda: levels().draw(fl.Key(), indices=[0]), r"problem\.upper or problem\.lower"),
    (lambda: fl.Constrained(plane(), 3), "set must have project"),
    (lambda: fl.Constrained(lambda x: x.sum(), L2Ball(1.0)), r"smooth must be a Problem, got function; Smooth\(fun, x0\)"),
    (lambda: fl.Composite(lambda x: x.sum(), L1()), r"smooth must be a Problem, got function"),
    (lambda: fl.Smooth(3, torch.ones(2)), "fun must be a function"),
    (lambda: fl.Smooth(lambda x: x, torch.ones(0)), "empty"),
    (lambda: fl.Smooth(lambda x: x * 2, torch.ones(2)).gradient(torch.ones(2)), "one element"),
    (lambda: fl.FiniteSum(lambda x, a: a.sum(), torch.ones(4, 2), torch.ones(2), batch_size=9), "batch_size"),
    (lambda: fl.FiniteSum(lambda x, a: a.sum(), (torch.ones(4), torch.ones(3)), torch.ones(2)), "first dimension"),
    (lambda: fl.Constrained(fl.Smooth(lambda x: x.sum(), torch.ones(2))), "without any use Smooth"),
    (lambda: fl.Composite(fl.Smooth(lambda x: x.sum(), torch.ones(2)), object()), "prox"),
])
def test_bad_input_is_refused_at_the_door(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_tree_is_a_vector_space():
    a = {"u": torch.tensor([1.0, 2.0]), "v": [torch.tensor(3.0), torch.ones(2, 2)]}
    b = tree.scale(2.0, a)
    assert float(tree.dot(a, b)) == 36.0 and float(tree.norm(a)) == pytest.approx(18**0.5)
    torch.testing.assert_close(tree.flatten(tree.axpy(-2.0, a, b)), torch.zeros(7))
    torch.testing.assert_close(tree.gram([a, b]), tree.norm(a) ** 2 * torch.tensor([[1.0, 2.0], [2.0, 4.0]]))
    torch.testing.assert_close(tree.unflatten(tree.flatten(a), a), a)
    assert tree.all_finite(a) and not tree.all_finite({"u": torch.tensor([1.0, float("nan")])})
