"""Two-stage robust programs: referees against enumeration, and programs with a network against the network."""

from dataclasses import fields, replace
from itertools import product

import numpy as np
import pytest
import torch

import fallline as fl
from fallline.solvers import Neur2RO, RobustKnapsack, TwoStageInstance, exact_ccg
from fallline.solvers.set_network import SetNetwork


def plain(instance):
    """The same program without a knapsack's shortcuts."""
    return TwoStageInstance(**{f.name: getattr(instance, f.name) for f in fields(TwoStageInstance)})


def by_hand(instance, x, xi):
    """The least second-stage cost of a knapsack, from the formulas."""
    n = len(x)
    c, _, loss, price, repair, capacity, _ = instance.features.T
    best = 0.0
    for states in product(range(3), repeat=n):
        y, r = np.array(states) >= 1, np.array(states) == 2
        if (y <= x).all() and c @ y + repair @ r <= capacity[0]:
            best = min(best, float((loss * xi - price) @ y - (loss * xi) @ r))
    return best


FIRST_STAGES = [np.array(bits, dtype=float) for bits in product((0, 1), repeat=5)]


def test_knapsacks_are_drawn_as_in_the_paper():
    family = RobustKnapsack((6, 9))
    sizes = set()
    for seed in range(20):
        instance = family.sample(seed)
        c, mean, loss, price, repair, capacity, share = instance.features.T
        n = len(c)
        sizes.add(n)
        assert c.min() >= 1 and c.max() <= 1_000 and (repair <= c).all() and (repair >= 1).all()
        assert ((price >= 1.1 * mean) & (price <= 1.5 * mean)).all() and (loss <= mean).all()
        assert min(abs(capacity[0] / c.sum() - h / 101) for h in (40, 80)) < 1e-12 and instance.b[0] == pytest.approx(share[0] * n)
        np.testing.assert_allclose(instance.cost, price - mean)
        x, xi = family.sample_pairs(instance, 4, 3, fl.Key(seed))
        assert x.shape == xi.shape == (12, n) and set(np.unique(x)) <= {0.0, 1.0} and (x[0] == x[2]).all()
        assert xi.min() >= 0 and xi.max() <= 1 and (xi.sum(1) <= instance.b[0] + 1e-12).all()
    assert sizes == {6, 9} and repr(instance).startswith(f"KnapsackInstance({n} first-stage and {2 * n} recourse decisions")


@pytest.mark.parametrize("items", [4, 7])
def test_second_stages_are_exact(items):
    family = RobustKnapsack(items)
    for seed in range(3):
        instance = family.sample(seed)
        x, xi = family.sample_pairs(instance, 3, 2, fl.Key(seed))
        expected = [by_hand(instance, *pair) for pair in zip(x, xi, strict=True)]
        np.testing.assert_allclose(instance.recourse_values(x, xi), expected)
        np.testing.assert_allclose(plain(instance).recourse_values(x, xi), expected, rtol=1e-6)
        for one, (first, scenario) in zip(expected, zip(x, xi, strict=True), strict=True):
            value, y = instance.recourse(first, scenario)
            assert value == pytest.approx(one) and (instance.q + instance.Q @ scenario) @ y == pytest.approx(value)
            assert (instance.W @ y + instance.T @ first <= instance.h + 1e-9).all() and set(np.unique(y)) <= {0.0, 1.0}


def test_worst_cases_are_worst():
    family = RobustKnapsack(5)
    for seed in range(4):
        instance = family.sample(seed)
        for x in FIRST_STAGES[3::7]:
            worst = instance.worst_case(x)
            assert worst.value == pytest.approx(instance.cost @ x + by_hand(instance, x, worst.xi))
            assert worst.xi.sum() <= instance.b[0] + 1e-9
            _, xi = family.sample_pairs(instance, 1, 300, fl.Key(seed))
            xi = np.concatenate([xi, np.eye(5) * min(1, instance.b[0])])
            others = instance.recourse_values(np.tile(x, (len(xi), 1)), xi)
            assert worst.value >= instance.cost @ x + others.max() - 1e-6
            assert plain(instance).worst_case(x).value == pytest.approx(worst.value, rel=1e-5)


def test_exact_solutions_are_those_of_enumeration():
    for seed in range(4):
        instance = RobustKnapsack(5).sample(seed)
        best = min(instance.worst_case(x).value for x in FIRST_STAGES)
        found = exact_ccg(instance)
        assert found.value == pytest.approx(best, rel=1e-5) and instance.worst_case(found.x).value == pytest.approx(found.value)
        assert exact_ccg(plain(instance)).value == pytest.approx(best, rel=1e-5)
    limited = replace(instance, first=(np.ones((1, 5)), np.array([1.0])))  # one item at most
    best = min(instance.worst_case(x).value for x in FIRST_STAGES if x.sum() <= 1)
    assert exact_ccg(limited).value == pytest.approx(best, rel=1e-5)


def small(items=5, **options):
    return Neur2RO(RobustKnapsack(items), embed=(8, 4), post=(16, 2), value=4, **options)


@pytest.fixture(scope="module")
def learned():
    return small().collect(40, 4, 5).train(budget=fl.Budget(steps=300))


def test_labels_are_scaled_second_stages():
    made = small((4, 6)).collect(6, 2, 3)
    data = made.data
    assert data.rows.shape == (36, 6, 9) and float(data.values.min()) == 0 and float(data.values.max()) == 1
    assert set(data.value_range) <= {4, 6} and float(data.rows[..., 2:].min()) >= 0 and float(data.rows[..., 2:].max()) <= 1
    for i in range(6):
        instance = made.family.sample(made.key.fold("instance", i))
        n = len(instance.cost)
        low, high = data.value_range[n]
        rows = data.rows[6 * i: 6 * i + 6].double().numpy()
        assert not rows[:, n:].any()
        found = low + (high - low) * data.values[6 * i: 6 * i + 6].double().numpy()
        x, xi = rows[:, :n, 0], rows[:, :n, 1]
        np.testing.assert_allclose(found, instance.recourse_values(x, xi), rtol=1e-4, atol=1e-2)


def test_networks_do_not_see_rows_of_zeros_or_the_order_of_items():
    network = SetNetwork(3).double()
    rows = torch.rand(2, 4, 5, dtype=torch.float64)
    padded = torch.cat([rows, torch.zeros(2, 3, 5, dtype=torch.float64)], 1)
    torch.testing.assert_close(network(padded), network(rows))
    torch.testing.assert_close(network(rows[:, [2, 0, 3, 1]]), network(rows))
    assert [m.bias is None for name, m in network.named_modules() if isinstance(m, torch.nn.Linear)] == [True] * 8 + [False] * 2
    assert network.x_embed[0].out_features == 32 and network.x_post[0].out_features == 64 and network.value[0].out_features == 8


@pytest.mark.parametrize("seed", range(3))
def test_the_main_program_is_the_networks_best(learned, seed):
    instance = learned.family.sample(100 + seed)
    scenarios = [np.zeros(5), np.eye(5)[0] * 0.5, np.full(5, instance.b[0] / 5)]
    every = np.stack(FIRST_STAGES)
    outputs = np.stack([learned.predict(instance, every, np.tile(xi, (32, 1))) for xi in scenarios], 1)
    x, value, known = learned._main(instance, scenarios, "network", {"mip_rel_gap": 0.0})
    totals = every @ instance.cost + outputs.max(1)
    assert value == pytest.approx(totals.min(), rel=1e-5) and float(x @ instance.cost) + outputs.max(1)[
        int((every == x).all(1).argmax())] == pytest.approx(value, rel=1e-5)
    low, spread = learned._scale(instance)
    assert low + spread * known == pytest.approx(outputs[int((every == x).all(1).argmax())].max(), rel=1e-4)
    x, value, _ = learned._main(instance, scenarios, "argmax", {"mip_rel_gap": 0.0})
    worst = outputs.argmax(1)
    exact = np.array([first @ instance.cost + by_hand(instance, first, scenarios[k]) for first, k in zip(every, worst, strict=True)])
    assert value == pytest.approx(exact.min(), rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_the_adversary_finds_the_networks_worst(learned, seed):
    instance = learned.family.sample(200 + seed)
    low, spread = learned._scale(instance)
    for x in FIRST_STAGES[5::9]:
        xi, worst = learned._adversary(instance, x, {})
        assert xi.sum() <= instance.b[0] + 1e-6 and xi.min() >= 0 and xi.max() <= 1
        assert low + spread * worst == pytest.approx(learned.predict(instance, x[None], xi[None])[0], rel=1e-4)
        _, others = learned.family.sample_pairs(instance, 1, 2_000, fl.Key(seed))
        assert low + spread * worst >= learned.predict(instance, np.tile(x, (2_000, 1)), others).max() - 1e-4 * spread


def test_solutions_are_near_the_exact_ones_and_reproducible(learned):
    gaps = []
    for seed in range(5):
        instance = learned.family.sample(300 + seed)
        exact = exact_ccg(instance)
        for main in ("argmax", "network"):
            found = learned.solve(instance, main)
            true = instance.worst_case(found.x).value
            assert true >= exact.value - 1e-3 and len(found.scenarios) >= 1
        gaps.append((instance.worst_case(learned.solve(instance).x).value - exact.value) / abs(exact.value))
    assert np.mean(gaps) < 0.1
    again = small().collect(40, 4, 5).train(budget=fl.Budget(steps=300))
    assert all(torch.equal(a, b) for a, b in zip(learned.network.parameters(), again.network.parameters(), strict=True))
    assert len(learned.solve(instance, max_rounds=1).scenarios) == 1
    larger = RobustKnapsack(8).sample(0)  # of a size that was not collected
    assert learned.solve(larger).x.shape == (8,)
    assert learned.result.trace[-1]["observed_loss"] < 0.02


def test_bad_input_is_refused(learned):
    with pytest.raises(TypeError, match="family must be a TwoStageFamily"):
        Neur2RO(3)
    with pytest.raises(ValueError, match=r"call collect\(\) first"):
        small().train()
    with pytest.raises(ValueError, match=r"call collect\(\) and train\(\) first"):
        small().collect(2, 1, 1).solve(learned.family.sample(0))
    with pytest.raises(ValueError, match="n_x must be a whole number"):
        small().collect(2, 0, 1)
    with pytest.raises(ValueError, match="number of items that was collected, 5, got 7"):
        learned.solve(RobustKnapsack(7).sample(0), "network")
    with pytest.raises(ValueError, match="main must be 'argmax' or 'network'"):
        learned.solve(learned.family.sample(0), "exact")
    with pytest.raises(ValueError, match="items must be whole numbers of at least 2"):
        RobustKnapsack(1)
    instance = learned.family.sample(0)
    with pytest.raises(ValueError, match="uncertainty set has no point"):
        replace(instance, b=np.array([-1.0])).worst_case(np.ones(5))
    with pytest.raises(ValueError, match="the program has no solution"):
        replace(plain(instance), h=instance.h - 1e6).worst_case(np.ones(5))
    with pytest.raises(ValueError, match=r"T must have shape \(11, 5\) to fit Q, h, b and features, got \(11, 4\)"):
        replace(instance, T=instance.T[:, :4])
    with pytest.raises(ValueError, match="high must be finite"):
        replace(instance, high=np.full(5, np.inf))
    shifted = replace(instance, A=-np.ones((1, 5)), b=np.array([-2.0]))  # Σξ ≥ 2: the nominal point is not 0
    assert shifted.nominal().sum() >= 2 - 1e-9 and shifted.worst_case(np.ones(5)).xi.sum() >= 2 - 1e-9


def test_instances_with_nan_or_wrong_shapes_are_refused():
    instance = plain(RobustKnapsack((5,)).sample(0))
    for field in ("cost", "q", "Q", "W", "T", "h", "A", "b", "low", "high", "features"):
        spoiled = np.array(getattr(instance, field), dtype=float)
        spoiled.flat[0] = np.nan
        with pytest.raises(ValueError, match=f"{field} must be finite"):
            replace(instance, **{field: spoiled})
    for field in ("cost", "h", "b", "high"):
        with pytest.raises(ValueError, match=f"{field} must have shape"):
            replace(instance, **{field: getattr(instance, field)[None]})
    with pytest.raises(ValueError, match=r"G must have shape \(1, 5\)"):
        replace(instance, first=(np.ones((1, 4)), np.ones(1)))
