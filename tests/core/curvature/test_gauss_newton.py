"""A model linearised, against dense Jacobians and Hessians; the push-through solution against the dense system."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.flop_counter import FlopCounterMode

import fallline as fl
from fallline.core import tree
from fallline.core.curvature import GaussNewton, push_through
from fallline.core.curvature.gram import SampleJacobian
from fallline.core.errors import MissingOracle


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=fl.Key(seed).generator())


def network(*layers):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), *(layers or (nn.Tanh(),)), nn.Linear(5, 3)).double()


def robust(outputs, targets):
    """Convex, and neither a squared error nor a cross-entropy."""
    return (1 + (outputs - targets) ** 2).sqrt().sum(-1).mean()


LOSSES = {"mse": (mse_loss, normal(6, 3, seed=2)), "ce": (cross_entropy, torch.tensor([0, 2, 1, 1, 0, 2])),
          "robust": (robust, normal(6, 3, seed=2))}


def realisation(loss="ce", model=None):
    loss_fn, targets = LOSSES[loss]
    return fl.Objective(network() if model is None else model, loss_fn)(normal(6, 4), targets)


def dense(batch):
    """J, r and Q from their definitions."""
    flat = tree.flatten(batch.variables).detach()
    outputs = lambda v: torch.func.functional_call(batch.model, tree.unflatten(v, batch.variables), (batch.inputs,))
    found = outputs(flat).detach()
    loss = lambda f: batch.loss_fn(f.view_as(found), batch.targets)
    return torch.func.jacrev(lambda v: outputs(v).flatten())(flat), torch.func.grad(loss)(found.flatten()), \
        torch.func.jacfwd(torch.func.jacrev(loss))(found.flatten())


@pytest.mark.parametrize("loss", ["ce", "robust"])
def test_products_are_those_of_the_dense_matrices(loss):
    batch = realisation(loss)
    J, r, Q = dense(batch)
    model = GaussNewton(batch)
    v, u = normal(J.shape[1], seed=3), normal(6, 3, seed=4)
    torch.testing.assert_close(model.jvp(v).flatten(), J @ v)
    torch.testing.assert_close(model.vjp(u), J.T @ u.flatten())
    torch.testing.assert_close(model.output_hessian(u).flatten(), Q @ u.flatten())
    torch.testing.assert_close(model.residual.flatten(), r)
    torch.testing.assert_close(model.product(v), J.T @ Q @ J @ v)
    torch.testing.assert_close(model.operator.matvec(v), J.T @ Q @ J @ v)
    torch.testing.assert_close(model.to_dense(chunk=7), J.T @ Q @ J)
    torch.testing.assert_close(model.gradient(), tree.flatten(batch.gradient()))
    assert float(model.loss) == pytest.approx(float(batch.value())) and "18 outputs of 43 parameters" in repr(model)


def test_the_squared_error_has_a_constant_hessian():
    model = GaussNewton(realisation("mse"))
    u = normal(6, 3, seed=4)
    torch.testing.assert_close(model.output_hessian(u), u * 2 / 18)


def test_no_product_evaluates_the_model_again_and_all_are_counted():
    calls = []

    class Spy(nn.Module):
        def forward(self, x):
            calls.append(1)
            return x.tanh()

    batch = realisation("ce", network(Spy()))
    model = GaussNewton(batch)
    for _ in range(3):
        model.operator.matvec(normal(43))
    assert len(calls) == 1 == batch.counts["values"]
    assert batch.counts["matvecs"] == batch.counts["jvps"] == batch.counts["vjps"] == 3


def test_some_parameters_elsewhere_with_the_rest_in_place():
    batch = realisation("ce")
    moved = {"2.weight": batch.variables["2.weight"].detach() + 0.1}
    J, _, _ = dense(batch)
    with torch.no_grad():
        batch.variables["2.weight"] += 0.1
    J, _, Q = dense(batch)
    with torch.no_grad():
        batch.variables["2.weight"] -= 0.1
    J = J[:, 25:40]
    torch.testing.assert_close(GaussNewton(batch, moved).to_dense(), J.T @ Q @ J)
    own = {name: batch.variables[name] for name in ("0.bias", "2.weight")}
    assert GaussNewton(batch, own).size == 20


def test_a_loss_linear_in_the_outputs_has_no_gauss_newton_part():
    batch = fl.Objective(network(), lambda out, y: out.sum())(normal(6, 4), torch.zeros(6))
    model = GaussNewton(batch)
    assert torch.equal(model.product(normal(43)), torch.zeros(43, dtype=torch.float64))
    assert float(model.gradient().norm()) > 0


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("entries", [1 << 20, 300])
def test_push_through_solves_the_dense_system(loss, entries):
    batch = realisation(loss)
    model = GaussNewton(batch)
    J, *_ = dense(batch if loss != "mse" else realisation("robust"))
    G, g = model.to_dense(), model.gradient()
    for damp in (1e-3, 1.0):
        expected = torch.linalg.solve(G + damp * torch.eye(43, dtype=torch.float64), g)
        torch.testing.assert_close(push_through(batch, model, damp, entries=entries), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(SampleJacobian(batch, model, entries).gram(), J @ J.T)


def test_a_loss_that_is_maximised():
    batch = fl.Objective(network(), lambda z, y: -cross_entropy(z, y))(*(realisation("ce").inputs, LOSSES["ce"][1]))
    plain = realisation("ce")
    torch.testing.assert_close(push_through(batch, GaussNewton(batch), 0.1, sign=-1.0), push_through(plain, GaussNewton(plain), 0.1))


def test_outputs_of_several_dimensions_and_inputs_that_are_tuples():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x, shift):
            return self.inner(x + shift.unsqueeze(-1))

    loss = lambda z, y: cross_entropy(z.flatten(0, -2), y.flatten())
    inputs = normal(3, 2, 4), normal(3, 2, seed=5)
    batch = fl.Objective(Model(), loss)(inputs, torch.randint(3, (3, 2), generator=fl.Key(1).generator()))
    model = GaussNewton(batch)
    expected = torch.linalg.solve(model.operator.shifted(0.1).to_dense(), model.gradient())
    torch.testing.assert_close(push_through(batch, model, 0.1), expected)


def test_random_masks_are_the_same_one_by_one():
    batch = realisation("ce", network(nn.Tanh(), nn.Dropout(0.5)))
    model = GaussNewton(batch)
    expected = torch.linalg.solve(model.operator.shifted(0.1).to_dense(), model.gradient())
    torch.testing.assert_close(push_through(batch, model, 0.1), expected)


def test_samples_that_depend_on_their_batch_are_refused():
    with pytest.raises(MissingOracle, match=r"batch normalisation.*in 1;.*eval\(\)"):
        batch = realisation("ce", network(nn.BatchNorm1d(5)))
        push_through(batch, GaussNewton(batch), 0.1)
    model = network(nn.BatchNorm1d(5))
    model[1].eval()
    batch = realisation("ce", model)
    assert push_through(batch, GaussNewton(batch), 0.1).isfinite().all()

    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    batch = realisation("ce", network(Centred()))
    with pytest.raises(MissingOracle, match="depend on one sample each"):
        push_through(batch, GaussNewton(batch), 0.1)


@pytest.mark.parametrize("mixing", ["centred", "dropout"])
def test_a_head_of_zeros_hides_nothing(mixing):
    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    class Transposed(nn.Module):
        """Masks that a batch draws in another order than its samples."""

        def forward(self, x):
            return nn.functional.dropout(x.mT.contiguous(), 0.5).mT

    model = network(nn.Tanh(), Centred() if mixing == "centred" else Transposed())
    nn.init.zeros_(model[-1].weight)
    batch = realisation("ce", model)
    with pytest.raises(MissingOracle, match="depend on one sample each"):
        push_through(batch, GaussNewton(batch), 0.1)


@pytest.mark.parametrize("entries", [1 << 20, 2_000])
def test_float32_is_as_good_as_float64_with_more_outputs_than_parameters(entries):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = 30 * torch.randn(128, 5), torch.randn(128, 3)
    found = {}
    for dtype in (torch.float32, torch.float64):
        batch = fl.Objective(model.to(dtype), mse_loss)(x.to(dtype), y.to(dtype))
        found[dtype] = push_through(batch, GaussNewton(batch), 1e-6, entries=entries).double()
    expected = found[torch.float64]
    assert float((found[torch.float32] - expected).norm() / expected.norm()) < 1e-3


def test_an_empty_batch_is_refused_by_name():
    batch = fl.Objective(network(), lambda z, y: z.sum())(normal(0, 4), torch.zeros(0))
    with pytest.raises(ValueError, match=r"at least one sample, got outputs of shape \(0, 3\)"):
        push_through(batch, GaussNewton(batch), 0.1)


def test_what_cannot_be_linearised_is_refused_by_name():
    smooth = fl.Smooth(lambda x: x @ x, torch.ones(2))
    with pytest.raises(MissingOracle, match="needs a model's outputs"):
        GaussNewton(smooth, {"x": torch.ones(2)})

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x), x

    pair = fl.Objective(Pair(), lambda z, y: cross_entropy(z[0], y))(normal(6, 4), LOSSES["ce"][1])
    with pytest.raises(TypeError, match="must return one tensor, got tuple"):
        GaussNewton(pair)


def test_half_precision_is_computed_in_float32():
    model = network().bfloat16()
    batch = fl.Objective(model, cross_entropy)(normal(6, 4).bfloat16(), LOSSES["ce"][1])
    linear = GaussNewton(batch)
    assert linear.dtype is torch.float32 and linear.product(torch.ones(43)).dtype is torch.float32
    assert push_through(batch, linear, 0.1).dtype is torch.float32


def test_many_outputs_warn(monkeypatch):
    monkeypatch.setattr("fallline.core.curvature.gram.MANY_OUTPUTS", 10)
    batch = realisation("ce")
    with pytest.warns(UserWarning, match="= 18 unknowns"):
        push_through(batch, GaussNewton(batch), 0.1)


def test_flops_of_the_push_through_step_are_linear_in_the_parameters():
    def flops(width):
        model = nn.Sequential(nn.Linear(16, width), nn.Tanh(), nn.Linear(width, 3))
        batch = fl.Objective(model, cross_entropy)(torch.randn(8, 16), torch.zeros(8, dtype=torch.long))
        with FlopCounterMode(display=False) as counter:
            push_through(batch, GaussNewton(batch), 1.0)
        return counter.get_total_flops()

    assert flops(4000) < 4.2 * flops(1000)
