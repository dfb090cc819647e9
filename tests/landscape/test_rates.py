import math

import pytest
import torch

import fallline as fl
from fallline.core.terms import L1
from fallline.landscape.descents import AveragedMomentum, Descent, MinibatchDescent, ProximalDescent, StochasticDescent
from fallline.landscape.rates import check_rate, iterations_for, theorem
from fallline.landscape.theorems import METHODS, THEOREMS

N, DIMENSION, COPIES = 30, 4, 20
FACTS = {"L": 2.0, "L_max": 5.0, "mu": 0.5, "D": 3.0, "sigma_star_squared": 7.0, "initial_gap": 11.0, "delta_star": 13.0, "G": 4.0,
         "n": 10, "batch_size": 4}
L_B = 10 * 3 / (4 * 9) * 2.0 + 6 / (4 * 9) * 5.0
NOISE_B = 6 / (4 * 9) * 7.0


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=fl.Key(seed).generator())


def regression(copies=1, noise=1.0, rank=DIMENSION):
    """A sum of copies of one regression, every copy with its rows in an order of its own."""
    rows, target = normal(N, DIMENSION), normal(N, seed=1)
    rows[:, rank:] = 0
    solution = torch.linalg.lstsq(rows, target[:, None], driver="gelsd").solution[:, 0]
    target = rows @ solution + noise * (target - rows @ solution)
    orders = torch.stack([torch.randperm(N, generator=fl.Key(2).fold(r).generator()) for r in range(copies)], 1)

    def value(x, a, b):
        return 0.5 * ((a * x).sum(-1) - b).square().mean(0).sum()

    values = torch.linalg.eigvalsh(rows.T @ rows / N)
    best = copies * float(0.5 * (rows @ solution - target).square().mean())
    facts = {"L": float(values[-1]), "mu": float(values[values > 1e-9][0]), "L_max": float(rows.square().sum(1).max()),
             "solution": solution.expand(copies, -1), "best_value": best, "delta_star": best}
    return fl.FiniteSum(value, (rows[orders], target[orders]), torch.zeros(copies, DIMENSION, dtype=torch.float64), facts=facts)


def absolute(copies=1):
    """mean |⟨a, x⟩ − ⟨a, w⟩|, whose solution is w."""
    rows, solution = normal(N, DIMENSION), normal(DIMENSION, seed=3)
    orders = torch.stack([torch.randperm(N, generator=fl.Key(2).fold(r).generator()) for r in range(copies)], 1)
    facts = {"G": math.sqrt(copies * float(rows.square().sum(1).mean())), "solution": solution.expand(copies, -1), "best_value": 0.0}
    return fl.FiniteSum(lambda x, a: (a * (x - solution)).sum(-1).abs().mean(0).sum(), rows[orders],
                        torch.zeros(copies, DIMENSION, dtype=torch.float64), facts=facts)


def lasso(copies=1):
    smooth = regression(copies)
    x, step = smooth.x0[:1], 1 / smooth.facts["L"]
    one = regression()
    for _ in range(3_000):
        x = L1(0.2).prox(x - step * one.gradient(x), step)
    solution = x.expand(copies, -1)
    best = float(smooth.value(solution)) + 0.2 * float(solution.abs().sum())
    return fl.Composite(smooth, L1(0.2), facts={"solution": solution, "best_value": best})


def problem_for(row):
    copies = 1 if row.method in ("gd", "subgradient", "proximal-gd") else COPIES
    if row.method.startswith("proximal"):
        return lasso(copies)
    if "lipschitz" in row.assumptions:
        return absolute(copies)
    return regression(copies, 0.0 if "interpolation" in row.assumptions else 1.0, 3 if "pl" in row.assumptions else DIMENSION)


def label(row):
    return f"{row.method}-{'-'.join(row.assumptions)}"


# The handbook's bounds at γ = 0.04 and t = 7, and the largest steps, written out.
C = (1 - 0.04 * 0.5) ** 7
EXPECTED = {
    "gd-smooth-strongly convex": (C * 9, 1 / 2),
    "gd-smooth-pl": (C * 11, 1 / 2),
    "gd-smooth-convex": (9 / (2 * 0.04 * 7), 1 / 2),
    "sgd-smooth-strongly convex-interpolation": (C * 9, 1 / 10),
    "sgd-smooth-strongly convex": (C * 9 + 2 * 0.04 * 7 / 0.5, 1 / 10),
    "sgd-smooth-pl": (C * 11 + 0.04 * 2 * 5 * 13 / 0.5, 0.5 / 10),
    "sgd-smooth-convex-interpolation": (9 / (0.04 * 7), 1 / 20),
    "sgd-smooth-convex": (9 / (0.04 * 7) + 2 * 0.04 * 7, 1 / 20),
    "minibatch-sgd-smooth-strongly convex": (C * 9 + 2 * 0.04 * NOISE_B / 0.5, 1 / (2 * L_B)),
    "minibatch-sgd-smooth-convex": (9 / (0.04 * 7) + 2 * 0.04 * NOISE_B, 1 / (4 * L_B)),
    "momentum-smooth-convex": (9 / (0.04 * 8) + 2 * 0.04 * 7, 1 / 20),
    "subgradient-lipschitz-convex": (9 / (2 * 0.04 * 7) + 0.04 * 16 / 2, math.inf),
    "stochastic-subgradient-lipschitz-convex": (9 / (2 * 0.04 * 7) + 0.04 * 16 / 2, math.inf),
    "proximal-gd-smooth-strongly convex": (C * 9, 1 / 2),
    "proximal-gd-smooth-convex": (9 / (2 * 0.04 * 7), 1 / 2),
    "proximal-sgd-smooth-strongly convex": (C * 9 + 2 * 0.04 * 7 / 0.5, 1 / 10),
}


@pytest.mark.parametrize("row", THEOREMS, ids=label)
def test_bounds_and_largest_steps_are_those_of_the_handbook(row):
    bound, largest = EXPECTED[label(row)]
    assert row.rate(7, FACTS, 0.04) == pytest.approx(bound, rel=1e-12)
    assert row.largest_step(FACTS) == pytest.approx(largest, rel=1e-12)
    assert theorem(row.method, row.assumptions) is row
    assert row.floor(FACTS, 0.08) == pytest.approx(2 * row.floor(FACTS, 0.04))  # iterations_for relies on it
    if math.isfinite(largest):
        assert row.rate(7, FACTS) == pytest.approx(row.rate(7, FACTS, largest))
    else:
        assert row.step_size(FACTS, 25) == pytest.approx(3 / (4 * 5))
        assert row.rate(25, FACTS) == pytest.approx(3 * 4 / 5)


@pytest.mark.parametrize("row", THEOREMS, ids=label)
def test_measured_runs_respect_every_theorem_and_none_is_vacuous(row):
    problem = problem_for(row)
    batch = 3 if row.method == "minibatch-sgd" else None
    before = dict(problem.counts)
    found = check_rate(problem, row.method, [1, 20, 100, 400], row.assumptions, batch_size=batch, replicas=1)
    assert found.theorem is row and found.allowed and found.largest_ratio <= 1
    assert dict(problem.counts) == before
    assert found.bound[-1] < found.bound[0]
    # A bound that a run passes by many orders of magnitude says nothing: here at the first step compared.
    assert found.ratios[0] > 1e-3


def test_the_strongest_theorem_that_follows_is_taken():
    assert theorem("gd", ["smooth", "strongly convex"]).measure == "distance"
    assert theorem("gd", ["smooth", "convex", "pl"]).assumptions == ("smooth", "pl")
    assert theorem("minibatch-sgd", ["smooth", "convex", "interpolation"]).assumptions == ("smooth", "convex")
    assert theorem("momentum", ["smooth", "strongly convex"]).assumptions == ("smooth", "convex")
    assert {row.method for row in THEOREMS} == set(METHODS)


def test_batches_of_one_and_of_all_are_sgd_and_gd():
    row = theorem("minibatch-sgd", ["smooth", "convex"])
    one, whole = {**FACTS, "batch_size": 1}, {**FACTS, "batch_size": 10}
    assert row.largest_step(one) == pytest.approx(1 / 20) and row.floor(one, 0.04) == pytest.approx(2 * 0.04 * 7)
    assert row.largest_step(whole) == pytest.approx(1 / 8) and row.floor(whole, 0.04) == 0


def test_iterations_are_the_fewest_and_grow_as_the_handbook_says():
    for eps in (1.0, 1e-3):
        found = iterations_for(eps, "sgd", ["smooth", "strongly convex"], FACTS)
        row = theorem("sgd", ["smooth", "strongly convex"])
        assert found.step_size <= row.largest_step(FACTS)
        assert row.rate(found.steps, FACTS, found.step_size) <= eps < row.rate(found.steps - 1, FACTS, found.step_size)
        complexity = max(2 * 5 / 0.5, 4 * 7 / (0.5**2 * eps)) * math.log(2 * 9 / eps)
        assert found.steps == pytest.approx(complexity, rel=0.02)
    assert iterations_for(1e-3, "subgradient", ["lipschitz", "convex"], FACTS).steps == pytest.approx(9 * 16 / 1e-6, rel=1e-6)
    assert iterations_for(0.1, "gd", ["smooth", "convex"], FACTS).steps == 90
    assert iterations_for(1e9, "gd", ["smooth", "convex"], FACTS).steps == 1
    flat = iterations_for(1e-3, "gd", ["smooth", "pl"], {**FACTS, "mu": 1e-18})
    assert flat.steps == pytest.approx(2e18 * math.log(11e3), rel=1e-6)


def test_facts_follow_from_what_a_problem_states():
    problem = regression()
    rows = torch.stack([part.gradient(problem.facts["solution"]).flatten() for part in problem.parts])
    row = theorem("sgd", ["smooth", "convex"])
    expected = row.rate(3, {**problem.facts, "D": float(problem.facts["solution"].norm()),
                            "sigma_star_squared": float((rows - rows.mean(0)).square().sum(1).mean())}, 0.01)
    assert check_rate(problem, "sgd", [3], ["smooth", "convex"], step_size=0.01, replicas=2).bound[0] == pytest.approx(expected)
    # Without data there is no noise, and L is that of the only term.
    bowl = fl.Smooth(lambda x: (x * x).sum() / 2, torch.ones(3, dtype=torch.float64),
                     facts={"L": 1.0, "best_value": 0.0, "solution": torch.zeros(3, dtype=torch.float64)})
    found = check_rate(bowl, "momentum", 8, ["smooth", "convex"])
    assert found.steps == (1, 2, 4, 8) and found.largest_ratio <= 1
    assert found.bound[-1] == pytest.approx(3 / (0.25 * 9))


def test_replicas_are_averaged_and_the_sum_of_copies_is_as_many():
    found = check_rate(regression(), "sgd", [50], ["smooth", "strongly convex"], replicas=20)
    stacked = check_rate(regression(COPIES), "sgd", [50], ["smooth", "strongly convex"], replicas=1)
    assert stacked.bound[0] == pytest.approx(COPIES * found.bound[0])
    assert stacked.measured[0] / COPIES == pytest.approx(found.measured[0], rel=0.5)


def test_a_step_that_is_too_long_is_noted_and_found_out():
    problem = regression()
    found = check_rate(problem, "gd", [10, 100], ["smooth", "convex"], step_size=2.2 / problem.facts["L"])
    assert not found.allowed and found.largest_ratio > 2
    assert "beyond what the theorem allows" in repr(found) and "no" in repr(found).split()
    far = check_rate(problem, "gd", [10, 20_000], ["smooth", "convex"], step_size=2.2 / problem.facts["L"])
    assert far.measured[1] == math.inf


def test_texts_and_the_plot():
    found = check_rate(regression(), "gd", [1, 10], ["smooth", "convex"])
    assert "D² / (2γt)" in repr(found) and "t = 10" in repr(found) and "x_t" in repr(found.theorem)
    figure = found.plot()
    assert [trace.name for trace in figure.data] == ["guaranteed", "measured"] and figure.layout.yaxis.type == "log"


# ---------------------------------------------------------------- the methods


def iterates(problem, method, steps=20):
    state, seen = method.init(problem, fl.Key(7)), []
    for _ in range(steps):
        state = method.step(problem, state)
        seen.append(method.report(problem, state).resolve().clone())
    return seen


def samples(steps=20, seed=7):
    """The samples that stochastic methods see."""
    return [torch.randint(N, (1,), generator=fl.Key(seed).fold(t).generator()) for t in range(steps)]


def test_stochastic_descent_and_its_mean():
    problem = regression()
    rows, x, points = [], problem.x0, [problem.x0]
    for i in samples():
        x = x - 0.05 * problem.draw(fl.Key(), indices=i).gradient(x)
        rows.append(x)
        points.append(x)
    torch.testing.assert_close(iterates(problem, StochasticDescent(0.05)), rows, rtol=1e-10, atol=1e-10)
    means = [torch.stack(points[:t]).mean(0) for t in range(1, 21)]
    torch.testing.assert_close(iterates(problem, StochasticDescent(0.05, "average")), means, rtol=1e-10, atol=1e-10)


def test_averaged_momentum_is_the_heavy_ball_with_its_coefficients():
    problem = regression()
    x, m, rows = problem.x0, torch.zeros_like(problem.x0), []
    for t, i in enumerate(samples()):
        m = t / (t + 2) * m + problem.draw(fl.Key(), indices=i).gradient(x)
        x = x - 2 * 0.05 / (t + 3) * m
        rows.append(x)
    torch.testing.assert_close(iterates(problem, AveragedMomentum(0.05)), rows, rtol=1e-10, atol=1e-10)


def test_batches_hold_different_samples():
    problem = regression()
    whole = iterates(problem, MinibatchDescent(0.05, N))
    torch.testing.assert_close(whole, iterates(problem, Descent(0.05)))
    x = problem.x0
    chosen = torch.randperm(N, generator=fl.Key(7).fold(0).generator())[:3]
    expected = x - 0.05 * problem.draw(fl.Key(), indices=chosen).gradient(x)
    torch.testing.assert_close(iterates(problem, MinibatchDescent(0.05, 3), 1)[0], expected)


def test_the_best_iterate_is_kept():
    problem = absolute()
    points, x = [problem.x0], problem.x0
    for _ in range(19):
        x = x - 0.5 * problem.gradient(x)
        points.append(x)
    best = min(points, key=lambda p: float(problem.value(p)))
    torch.testing.assert_close(iterates(problem, Descent(0.5, "best"))[-1], best)


def test_proximal_descent_thresholds():
    problem = lasso()
    x = problem.x0
    for _ in range(20):
        y = x - 0.1 * problem.smooth.gradient(x)
        x = y.sign() * (y.abs() - 0.1 * 0.2).clamp(min=0)
    torch.testing.assert_close(iterates(problem, ProximalDescent(0.1))[-1], x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("call, message", [
    (lambda p: theorem("adam", "smooth"), "gd, sgd"),
    (lambda p: theorem("gd", "quasiconvex"), "strongly convex"),
    (lambda p: theorem("gd", ["lipschitz", "convex"]), "smooth and strongly convex; or smooth and pl"),
    (lambda p: theorem("gd", ["smooth", "convex"]).rate(0, FACTS), "t must"),
    (lambda p: theorem("subgradient", ["lipschitz", "convex"]).step_size(FACTS), "horizon"),
    (lambda p: iterations_for(0.0, "gd", ["smooth", "convex"], FACTS), "eps"),
    (lambda p: iterations_for(0.1, "gd", ["smooth", "convex"], {"L": 1.0}), "needs the facts D"),
    (lambda p: iterations_for(0.1, "gd", ["smooth", "convex"], {"L": 0.0, "D": 1.0}), "L=0"),
    (lambda p: iterations_for(0.1, "minibatch-sgd", ["smooth", "convex"], FACTS, batch_size=11), "batch_size must be between"),
    (lambda p: check_rate(p, "gd", [10], ["smooth", "convex"], batch_size=2), "batch_size has no place"),
    (lambda p: check_rate(p, "minibatch-sgd", [10], ["smooth", "convex"]), "needs the facts batch_size"),
    (lambda p: check_rate(p, "gd", [0], ["smooth", "convex"]), "steps"),
    (lambda p: check_rate(p, "gd", [10], ["smooth", "convex"], step_size=-1.0), "step_size"),
    (lambda p: check_rate(p, "sgd", [10], ["smooth", "convex"], replicas=0), "replicas"),
    (lambda p: check_rate(fl.problems.least_squares(), "sgd", [10], ["smooth", "convex"]), "needs the facts L_max"),
    (lambda p: check_rate(fl.Smooth(lambda x: x @ x, torch.ones(2), facts={"L": 2.0, "D": 1.0}), "gd", [10], ["smooth", "convex"]),
     "must state best_value"),
])
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(regression())
