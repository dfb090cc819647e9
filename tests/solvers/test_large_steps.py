"""Huge steps of logistic regression and the perceptrons they become."""

import math

import pytest
import torch

import fallline as fl
from fallline.core.errors import WrongProblem
from fallline.solvers import LargeStepGD, LogRegGD, NormalizedLargeStepGD, separation_time

D = torch.float64


def data(n=40, d=3):
    X = torch.randn(n, d, dtype=D, generator=torch.Generator().manual_seed(0))
    w = torch.tensor([1.0, -2.0, 0.5], dtype=D)[:d]
    return X, (X @ w + 0.0).sign()


def problem():
    return fl.LinearModel(*data(), "logistic")


@pytest.mark.parametrize("step_size", [0.3, 50.0])
@pytest.mark.parametrize("sparse", [False, True])
def test_steps_are_their_formulas(step_size, sparse):
    X, y = data()
    z = y[:, None] * X
    x = plain = torch.zeros(3, dtype=D)
    for _ in range(3):
        p = torch.sigmoid(-z @ plain)
        plain = plain + step_size * (p[:, None] * z).mean(0)
        p = torch.sigmoid(-z @ x)
        x = x + step_size * (p[:, None] * z).sum(0) / p.sum()
    model = fl.LinearModel(X.to_sparse() if sparse else X, y, "logistic")
    steps = 3
    for method, expected in ((LargeStepGD(step_size), plain), (NormalizedLargeStepGD(step_size), x)):
        state = method.init(model, fl.Key(0))
        reached = False
        for _ in range(steps):
            reached |= bool((state["margins"] > 0).all())
            state = method.step(model, state)
        if not reached:
            torch.testing.assert_close(state["x"], expected)


def test_the_limits_are_the_batch_perceptrons_and_ties_count_half():
    X, y = data()
    z = y[:, None] * X
    state = LargeStepGD(math.inf).init(problem(), fl.Key(0))
    state = LargeStepGD(math.inf).step(problem(), state)
    torch.testing.assert_close(state["x"], z.mean(0) / 2)
    state = LargeStepGD(math.inf).step(problem(), state)
    first = z.mean(0) / 2
    torch.testing.assert_close(state["x"], first + z[z @ first < 0].sum(0) / len(z))


def test_it_stops_at_the_first_separation_with_the_margin_as_certificate():
    result = fl.solve(problem(), NormalizedLargeStepGD(), fl.Budget(steps=1_000))
    X, y = data()
    assert result.success and result.gap == 0 and result.counts["samples"] == 40 * (result.nit + 1)
    margins = y * (X @ result.x) / result.x.norm()
    assert float(margins.min()) > 0 and result.certificate == pytest.approx(float(margins.min()))


def test_huge_margins_neither_overflow_nor_underflow():
    X = torch.tensor([[1e4, 0.0], [1e4, 1.0], [-1e4, 1e-3]], dtype=D)
    result = fl.solve(fl.LinearModel(X, torch.ones(3, dtype=D), "logistic"), NormalizedLargeStepGD(1e6), fl.Budget(steps=3_000))
    assert math.isfinite(result.fun) and bool(torch.isfinite(result.x).all())


def test_data_that_are_not_separable_end_with_the_budget_and_a_warning():
    X, y = data()
    y = y.clone()
    y[:5] = -y[:5]
    result = fl.solve(fl.LinearModel(X, y, "logistic"), LargeStepGD(), fl.Budget(steps=50))
    assert result.status == "budget" and result.gap > 0
    with pytest.warns(UserWarning, match="may not be separable"):
        LogRegGD(max_iter=50).fit(X, y)


def test_the_classifier_has_scikit_learns_manners():
    X, y = data()
    labels = torch.where(y > 0, 7, 3)
    model = LogRegGD().fit(X.numpy() + 1.0, labels.numpy())
    assert model.classes_ == (3, 7) and model.score(X + 1.0, labels) == 1.0 and model.margin_ > 0
    assert model.coef_.shape == (3,) and model.n_iter_ > 0 and "normalized=True" in repr(model)
    with pytest.raises(ValueError, match="comes first"):
        LogRegGD().predict(X)
    with pytest.raises(ValueError, match="two kinds"):
        LogRegGD().fit(X, torch.ones(40))
    with pytest.raises(ValueError, match="shapes"):
        LogRegGD().fit(X, torch.ones(3))


def test_separation_times_say_what_the_loss_does():
    found = separation_time(*data(), (0.01, 1.0, 1e3))
    assert [row.step_size for row in found] == [0.01, 1.0, 1e3]
    assert found[0].iterations > found[-1].iterations and found[0].peak_loss == pytest.approx(math.log(2))
    assert math.isinf(separation_time(*data(), (1e-6,), max_iter=3)[0].iterations)


def test_the_door():
    with pytest.raises(ValueError, match="step_size"):
        LargeStepGD(0.0)
    with pytest.raises(WrongProblem, match="without a ridge"):
        fl.solve(fl.LinearModel(*data(), "logistic", ridge=0.1), LargeStepGD(), fl.Budget(steps=1))
    with pytest.raises(WrongProblem, match="squared"):
        fl.solve(fl.LinearModel(*data()), LargeStepGD(), fl.Budget(steps=1))
    with pytest.raises(WrongProblem, match="weights"):
        fl.solve(fl.LinearModel(*data(), "logistic", weights=torch.ones(40, dtype=D)), LargeStepGD(), fl.Budget(steps=1))
    with pytest.raises(fl.MissingOracle, match="LinearModel"):
        fl.solve(fl.FiniteSum(lambda x, a: (a @ x).mean(), torch.ones(3, 2), torch.ones(2)), LargeStepGD(), fl.Budget(steps=1))
