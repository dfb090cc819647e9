"""Gauss-Newton-Bartlett estimates under masks of tokens."""

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

import fallline as fl
from fallline.core.curvature import gauss_newton_bartlett


def batch():
    generator = fl.Key(3).generator()
    return nn.Linear(4, 5), torch.randn(6, 3, 4, generator=generator), torch.randint(5, (6, 3), generator=generator)


def by_token(logits, targets):
    return cross_entropy(logits.flatten(0, -2), targets.flatten())


def test_ignored_targets_count_for_nothing():
    model, x, y = batch()
    objective = fl.Objective(model, by_token)
    masked, flat = y.clone(), y.flatten()
    masked[:, 2] = masked[4:] = -100
    kept = (masked != -100).flatten()

    def mean(x, y):
        draws = [gauss_newton_bartlett(objective(x, y), fl.Key(i).generator())["weight"] for i in range(800)]
        return torch.stack(draws).mean(0)

    expected = mean(x.flatten(0, 1)[kept], flat[kept])
    found = mean(x, masked)
    assert float((found - expected).norm() / expected.norm()) < 0.1
    # What stands where nothing counts makes no difference.
    other = x.clone()
    other[masked == -100] = 7.0
    one, two = (gauss_newton_bartlett(objective(inputs, masked), fl.Key(0).generator())["bias"] for inputs in (x, other))
    torch.testing.assert_close(one, two)
    assert not torch.equal(found, mean(x, y))


def test_a_mask_of_nothing_changes_nothing():
    model, x, y = batch()
    objective = fl.Objective(model, by_token)
    labelled, elsewhere = (gauss_newton_bartlett(objective(x, t), fl.Key(0).generator())["weight"] for t in (y, y.flatten()))
    assert torch.equal(labelled, elsewhere)


def test_one_logit_and_no_logits_are_refused():
    model = nn.Linear(4, 1)
    objective = fl.Objective(model, lambda out, y: binary_cross_entropy_with_logits(out.squeeze(-1), y.float()))
    with pytest.raises(ValueError, match=r"at least two classes.*\(6, 1\).*hutchinson"):
        gauss_newton_bartlett(objective(torch.ones(6, 4), torch.ones(6)), fl.Key().generator())
