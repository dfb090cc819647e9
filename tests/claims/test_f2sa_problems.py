"""The problems of F2SA's claims are what their statements say."""

from __future__ import annotations

import torch

from fallline.claims.f2sa import Cleaning, Toys

ROWS = [(0, 1.0, 1.0), (0, 0.1, 0.5), (3, 1.0, 0.01)]


def test_closed_form_gradients_are_those_of_the_values() -> None:
    problem = Toys(ROWS).problem()
    point = tuple(part + 0.3 for part in problem.x0)
    for level in (problem.upper, problem.lower):
        leaves = [part.clone().requires_grad_() for part in point]
        expected = torch.autograd.grad(level._oracles["value"](tuple(leaves)), leaves)
        for found, exact in zip(level.gradient(point), expected, strict=True):
            torch.testing.assert_close(found, exact)


def test_the_hypergradient_is_the_derivative_of_the_upper_level_at_the_answer() -> None:
    toys = Toys(ROWS)
    x = toys.x0.clone().requires_grad_()
    (exact,) = torch.autograd.grad(toys.upper(x, toys.answer(x)).sum(), x)
    torch.testing.assert_close(toys.hypergradient(x.detach()), exact)
    torch.testing.assert_close(toys.penalty_gradient(toys.x0, 1e8), exact, rtol=1e-5, atol=1e-5)


def test_rows_are_alone() -> None:
    together, alone = Toys(ROWS), Toys(ROWS[1:2])
    torch.testing.assert_close(together.penalty_gradient(together.x0, 3.0)[1:2], alone.penalty_gradient(alone.x0, 3.0))


def test_forty_percent_of_the_labels_are_wrong() -> None:
    from sklearn.datasets import load_digits

    task = Cleaning(2)
    features, labels = torch.tensor(load_digits().data / 16, dtype=torch.float32), torch.tensor(load_digits().target)
    matching = (task.train[0][:, None] == features[None]).all(2).double().argmax(1)
    assert int((labels[matching] != task.train[1]).sum()) == 200
