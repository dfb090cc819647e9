import pytest
import torch

import fallline as fl
from fallline.core.composite_loss import CompositeLoss


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("outer, h", [("abs", lambda c: c.abs().sum(1)), ("l1", lambda c: c.abs().sum(1)),
                                      ("hinge", lambda c: c.clamp(min=0).sum(1)), ("max", lambda c: c.amax(1))])
def test_values_gradients_and_samples_are_those_of_the_composition(outer, h):
    rows = normal(12, 3, 4)
    x = {"u": normal(2, seed=1), "v": normal(2, seed=2)}

    def inner(x, a):
        return torch.sin(a @ torch.cat([x["u"], x["v"]]))

    problem = CompositeLoss(outer, inner, rows, x, batch_size=4)
    assert problem.draw(fl.Key(3)).samples == 4
    for drawn, seen in [(problem, rows), (problem.draw(fl.Key(), indices=[5, 7]), rows[[5, 7]])]:
        z = torch.cat([x["u"], x["v"]]).requires_grad_()
        expected = h(torch.sin(seen @ z)).mean()
        value, gradient = drawn.value_and_gradient(x)
        torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0)
        slope = torch.autograd.grad(expected, z)[0]
        torch.testing.assert_close(torch.cat([gradient["u"], gradient["v"]]), slope, rtol=1e-10, atol=1e-12)
        c, jacobian = drawn.linearization(x)
        torch.testing.assert_close(c, torch.sin(seen @ z).detach().reshape(-1), rtol=1e-12, atol=0)
        torch.testing.assert_close(jacobian, (torch.cos(seen @ z)[..., None] * seen).detach().reshape(-1, 4), rtol=1e-10, atol=1e-12)
    assert len(problem.parts) == 12 and problem.parts[3].weight == 1 / 12
    assert problem.draw(fl.Key(1), size=2).counts is problem.counts and problem.counts["linearization"] == 2


def test_a_proximal_point_is_offered_by_samples_of_one_row():
    problem = CompositeLoss("abs", lambda x, a: a @ x, normal(5, 2), normal(2), batch_size=2,
                            proximal_point=lambda x, step, a: x - step * a)
    assert not problem.has("proximal_point") and not problem.draw(fl.Key()).has("proximal_point")
    drawn = problem.draw(fl.Key(), indices=[3])
    torch.testing.assert_close(drawn.proximal_point(problem.x0, 0.5), problem.x0 - 0.5 * normal(5, 2)[3])


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match=r"outer must be one of 'abs'.*got 'huber'"):
        CompositeLoss("huber", lambda x, a: a @ x, normal(5, 2), normal(2))
    with pytest.raises(ValueError, match="batch_size must be between 1 and the 5"):
        CompositeLoss("abs", lambda x, a: a @ x, normal(5, 2), normal(2), batch_size=6)
    with pytest.raises(ValueError, match="inner must return a row of residuals for each of 5"):
        CompositeLoss("abs", lambda x, a: (a @ x).sum(), normal(5, 2), normal(2)).value(normal(2))
