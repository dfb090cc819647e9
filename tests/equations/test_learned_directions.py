import math

import numpy as np
import pytest
import torch
from torch import nn

import fallline as fl
from fallline.core.errors import CheckpointError, WrongProblem
from fallline.core.operators import LinearOperator
from fallline.equations import DCDM, ConjugateGradient, DirectionNetwork, ritz_rhs, train_dcdm


def poisson(n, dim=2):
    T = 2 * torch.eye(n) - torch.diag(torch.ones(n - 1), 1) - torch.diag(torch.ones(n - 1), -1)
    eye, terms = torch.eye(n), 0
    for axis in range(dim):
        factor = torch.ones(1, 1)
        for other in range(dim):
            factor = torch.kron(factor, T if other == axis else eye)
        terms = terms + factor
    return terms.double()


def draw(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=fl.Key(seed).generator())


class Same(nn.Module):
    """Proposes the residual itself, times a factor, or what a function makes of it."""

    def __init__(self, change=lambda r: 3 * r):
        super().__init__()
        self.change, self.calls = change, 0

    def forward(self, r):
        self.calls += 1
        return self.change(r)


@pytest.mark.parametrize("n_orth", [0, 1, 2, 3])
def test_the_iterates_are_the_formulas(n_orth):
    A, b = poisson(6), draw(36)
    weights = draw(36, 36, seed=5)
    model = Same(lambda r: torch.tanh(r.flatten() @ weights).view_as(r))
    x, r, kept = np.zeros(36), b.numpy().copy(), []
    a, w = A.numpy(), weights.numpy()
    for _ in range(8):
        d = np.tanh(r / np.linalg.norm(r) * 6 @ w)
        q = d.copy()
        for p in kept[-n_orth:] if n_orth else []:
            d = d - p * (q @ a @ p) / (p @ a @ p)
        x, kept = x + (d @ r) / (d @ a @ d) * d, [*kept, d]
        r = b.numpy() - a @ x
    result = fl.solve(fl.LinearSystem(A, b), DCDM(model, (6, 6), n_orth), fl.Budget(steps=8))
    torch.testing.assert_close(result.x, torch.tensor(x), rtol=1e-8, atol=1e-8)
    assert result.gap == pytest.approx(float(np.linalg.norm(r) / b.norm())) and result.counts["matvecs"] == 8
    assert result.x.dtype == torch.float64 and result.certificate is None


def test_a_network_that_proposes_the_residual_is_conjugate_gradients():
    A, b = poisson(8), draw(64)
    ours = fl.solve(fl.LinearSystem(A, b), DCDM(Same(), (8, 8)), tol=1e-8)
    theirs = fl.solve(fl.LinearSystem(A, b), ConjugateGradient(), tol=1e-8)
    assert ours.success and abs(ours.nit - theirs.nit) <= 1


@pytest.mark.parametrize("change", [lambda r: r * math.nan, lambda r: 0 * r, lambda r: r / 0])
def test_a_network_that_says_nothing_leaves_conjugate_gradients(change):
    A, b = poisson(6), draw(36)
    result = fl.solve(fl.LinearSystem(A, b), DCDM(Same(change), (6, 6)), tol=1e-10)
    assert result.success
    torch.testing.assert_close(result.x, torch.linalg.solve(A, b), rtol=1e-8, atol=1e-8)


def test_a_proposal_that_is_one_of_those_before_is_replaced_by_the_residual():
    first = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    problem = fl.LinearSystem(2 * torch.eye(4).double(), draw(4))
    result = fl.solve(problem, DCDM(Same(lambda r: first), (2, 2)), tol=1e-12)
    assert result.success and result.nit == 2 and result.counts["matvecs"] >= 3


def test_wrong_systems_are_named_as_by_conjugate_gradients():
    indefinite = torch.diag(torch.tensor([3.0, 2.0, 1.0, -1.0])).double()
    result = fl.solve(fl.LinearSystem(indefinite, torch.ones(4).double()), DCDM(Same(), (2, 2)))
    assert result.status == "failed" and "not positive definite" in result.message
    neumann = poisson(4)
    neumann -= torch.diag(neumann.sum(1))
    consistent = draw(16) - draw(16).mean()
    assert fl.solve(fl.LinearSystem(neumann, consistent), DCDM(Same(), (4, 4)), tol=1e-10).success
    result = fl.solve(fl.LinearSystem(neumann, consistent + 1), DCDM(Same(), (4, 4)), tol=1e-10)
    assert result.status == "failed" and "singular" in result.message


def test_errors_at_the_door():
    with pytest.raises(WrongProblem, match=r"as many points as 'linear-system' has unknowns, got \(3, 3\) for 4"):
        fl.solve(fl.LinearSystem(torch.eye(4), torch.ones(4)), DCDM(Same(), (3, 3)))
    with pytest.raises(WrongProblem, match="real numbers"):
        fl.solve(fl.LinearSystem(torch.eye(4, dtype=torch.complex64), torch.ones(4, dtype=torch.complex64)), DCDM(Same(), (2, 2)))
    with pytest.raises(TypeError, match="model must be a network"):
        DCDM(lambda r: r, (2, 2))
    with pytest.raises(ValueError, match="n_orth"):
        DCDM(Same(), (2, 2), -1)
    with pytest.raises(ValueError, match="grid"):
        DCDM(Same(), (2, 0))
    with pytest.raises(ValueError, match="dim must be 2 or 3"):
        DirectionNetwork(1)


def test_a_run_goes_on_from_its_checkpoint_with_the_same_weights_only(tmp_path):
    problem = fl.LinearSystem(poisson(8), draw(64))
    method = DCDM(DirectionNetwork(2, channels=4, key=1), (8, 8))
    whole = fl.solve(problem, method, fl.Budget(steps=9))
    fl.solve(problem, method, fl.Budget(steps=4), checkpoint=tmp_path / "c")
    with pytest.raises(CheckpointError, match="weights"):
        fl.solve(problem, DCDM(DirectionNetwork(2, channels=4, key=2), (8, 8)), fl.Budget(steps=9), checkpoint=tmp_path / "c")
    rest = fl.solve(problem, method, fl.Budget(steps=9), checkpoint=tmp_path / "c")
    assert torch.equal(whole.x, rest.x) and whole.counts == rest.counts


def test_right_hand_sides_lie_in_the_krylov_space_and_weigh_its_low_end():
    A = poisson(8)
    values, vectors = torch.linalg.eigh(A)
    b = ritz_rhs(A, 64, 4, 500, key=2)
    torch.testing.assert_close(b.norm(dim=1), torch.ones(500).double())
    energy = (b @ vectors).square().mean(0)
    assert energy[values < 3.5].mean() > 20 * energy[values > 5].mean()
    assert torch.equal(b, ritz_rhs(LinearOperator.from_tensor(A), 64, 4, 500, key=2))
    neumann = A - torch.diag(A.sum(1))
    assert float(ritz_rhs(neumann, 60, 0, 50).sum(1).abs().max()) < 1e-6  # nothing of the null space
    few = ritz_rhs(A, 3, 0, 50)
    assert torch.linalg.matrix_rank(few) == 3


def test_the_training_loss_is_its_formula_and_training_lowers_it():
    A, b = poisson(8), ritz_rhs(poisson(8), 40, 2, 40)
    model = DirectionNetwork(2, channels=4, levels=2, pairs=1, key=3)

    def loss(network):
        q = network((b * 8).float().view(-1, 1, 8, 8)).flatten(1).double()
        Aq = q @ A
        return (b - Aq * (q * b).sum(1, keepdim=True) / (q * Aq).sum(1, keepdim=True)).square().sum(1).mean()

    before = {name: p.clone() for name, p in model.named_parameters()}
    trained = train_dcdm(A.to_sparse(), model, (8, 8), b, epochs=15, lr=3e-3)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with torch.no_grad():
        assert float(loss(trained)) < 0.3 * float(loss(model))
    # One step of Adam moves against the gradient of the formula.
    loss(model).backward()
    stepped = train_dcdm(A, model, (8, 8), b, epochs=1, lr=1e-3, batch_size=40)
    weights = dict(stepped.named_parameters())
    along = sum(float(((weights[name] - p).detach() * p.grad).sum()) for name, p in model.named_parameters())
    assert along < 0


@pytest.mark.parametrize(("dim", "grid"), [(2, (32, 32)), (2, (13, 20)), (3, (8, 9, 10))])
def test_networks_take_grids_of_any_size_and_leave_the_generator_alone(dim, grid):
    before = torch.random.get_rng_state()
    network = DirectionNetwork(dim, channels=4, levels=3, pairs=1, key=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert network(torch.randn(2, 1, *grid, generator=fl.Key().generator())).shape == (2, 1, *grid)
    same = DirectionNetwork(dim, channels=4, levels=3, pairs=1, key=1)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), same.parameters(), strict=True))
    paper = DirectionNetwork(dim)
    assert sum(isinstance(m, nn.Conv2d | nn.Conv3d) for m in paper.modules()) == 1 + 4 + 6 + 4 + 1


def test_three_dimensions():
    A = poisson(5, dim=3)
    result = fl.solve(fl.LinearSystem(A, draw(125)), DCDM(DirectionNetwork(3, channels=4, pairs=1), (5, 5, 5)), fl.Budget(steps=4))
    x, exact = result.x, torch.linalg.solve(A, draw(125))
    assert result.status == "budget" and float((x - exact) @ A @ (x - exact)) < float(exact @ A @ exact)
