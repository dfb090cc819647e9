import pytest
import torch

import fallline as fl
from fallline.core.constraints import LagrangePoint

D = torch.float64


def problem(**given):
    x0 = {"a": torch.tensor([1.0, 2.0], dtype=D), "b": torch.tensor(0.5, dtype=D)}
    smooth = fl.Smooth(lambda x: (x["a"] ** 3).sum() + x["b"].exp(), x0)
    return fl.Constrained(smooth, equality=lambda x: torch.stack([x["a"].prod() - x["b"], (x["a"] ** 2).sum() - 4]), **given)


def test_derivatives_of_equalities_are_over_the_flattened_variables():
    p = problem()
    x = p.x0
    G = p.equality_jacobian(x)
    torch.testing.assert_close(G, torch.tensor([[2.0, 1.0, -1.0], [2.0, 4.0, 0.0]], dtype=D))
    lam = torch.tensor([3.0, 0.5], dtype=D)
    torch.testing.assert_close(p.equality_hessian(x, lam), torch.tensor([[1.0, 3, 0], [3, 1, 0], [0, 0, 0]], dtype=D))
    point = LagrangePoint.at(p, x)
    torch.testing.assert_close(point.residual(lam), torch.cat([torch.tensor([3.0, 12.0, 0.5], dtype=D).where(
        torch.tensor([True, True, False]), torch.tensor(0.5, dtype=D).exp()) + G.T @ lam, torch.tensor([1.5, 1.0], dtype=D)]))
    assert p.counts["equality"] == p.counts["gradients"] == 1 and p.counts["equality_jacobian"] == 2


def test_given_derivatives_are_taken():
    p = problem(equality_jacobian=lambda x: torch.ones(2, 3, dtype=D),
                equality_hessian=lambda x, lam: lam.sum() * torch.eye(3, dtype=D))
    assert bool((p.equality_jacobian(p.x0) == 1).all())
    torch.testing.assert_close(p.equality_hessian(p.x0, torch.ones(2, dtype=D)), 2 * torch.eye(3, dtype=D))


def test_a_single_number_is_one_constraint_and_a_missing_one_is_named():
    p = fl.Constrained(fl.Smooth(lambda x: (x**2).sum(), torch.ones(2, dtype=D)), equality=lambda x: x.sum() - 1)
    assert p.equality(p.x0).shape == (1,) and p.equality_jacobian(p.x0).shape == (1, 2)
    with pytest.raises(fl.MissingOracle, match="equality"):
        fl.Smooth(lambda x: (x**2).sum(), torch.ones(2, dtype=D)).require("equality")
