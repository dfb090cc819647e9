"""Kronecker products against the dense curvature of small networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import fallline as fl
from fallline.landscape import kronecker_report


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=fl.Key(seed).generator(), dtype=torch.float64)


def mlp() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def conv() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 2, groups=2), nn.Flatten(),
                             nn.Linear(18, 3)).double()


def data(model: nn.Module, count: int = 30) -> tuple[Tensor, Tensor]:
    inputs = draw(count, 5) if isinstance(model[0], nn.Linear) else draw(count, 2, 4, 4)
    return inputs, torch.arange(count) % 3


def gradients(model: nn.Module, x: Tensor, y: Tensor, batch: int = 1) -> dict[str, Tensor]:
    """By one backward pass a batch: (S, m, n)."""
    found: dict[str, list[Tensor]] = {}
    for rows in torch.arange(len(y) // batch * batch).split(batch):
        model.zero_grad()
        cross_entropy(model(x[rows]), y[rows]).backward()
        for name, p in model.named_parameters():
            found.setdefault(name, []).append(p.grad.flatten(1) if p.ndim > 1 else p.grad)
    model.zero_grad()
    return {name: torch.stack(each) for name, each in found.items()}


def root(A: Tensor) -> Tensor:
    values, V = torch.linalg.eigh(A)
    return (V * values.clamp(min=0).sqrt()) @ V.T


def dense(G: Tensor) -> dict[str, float]:
    """The cosines from H itself and from its rearrangement's singular values."""
    S, m, n = G.shape
    vectors = G.reshape(S, m * n)  # row-major
    H = vectors.T @ vectors / S
    rearranged = H.reshape(m, n, m, n).permute(0, 2, 1, 3).reshape(m * m, n * n)
    L, R = (G @ G.mT).mean(0), (G.mT @ G).mean(0)
    cosine = lambda A, B: float((torch.kron(A, B) * H).sum() / (torch.kron(A, B).norm() * H.norm()))
    return {"optimal": float(torch.linalg.svdvals(rearranged)[0] / H.norm()), "shampoo2": cosine(L, R),
            "shampoo": cosine(root(L), root(R))}


@pytest.mark.parametrize("make", [mlp, conv])
@pytest.mark.parametrize("batch", [1, 4])
def test_matrix_free_is_dense(make, batch: int) -> None:
    model = make()
    x, y = data(model)
    report = kronecker_report(fl.Objective(model, cross_entropy)(x, y), labels="real", batch=batch)
    for name, G in gradients(model, x, y, batch).items():
        if G.ndim == 3:
            expected = dense(G)
            assert {k: report.cosines[name][k] for k in expected} == pytest.approx(expected, abs=1e-8)
            assert report.shapes[name] == tuple(G.shape[1:]) and report.samples == 30 // batch
    assert set(report.cosines) == {name for name, p in model.named_parameters() if p.ndim > 1}


def test_kfac_is_the_product_of_its_factors() -> None:
    model = mlp()
    x, y = data(model)
    report = kronecker_report(fl.Objective(model, cross_entropy)(x, y), labels="real")
    hidden = torch.tanh(model[0](x)).detach()
    G = gradients(model, x, y)["2.weight"]
    s = torch.softmax(model(x), 1).detach() - torch.nn.functional.one_hot(y, 3)
    torch.testing.assert_close(G, s[:, :, None] * hidden[:, None, :])
    product, H = torch.kron(s.T @ s, hidden.T @ hidden), G.flatten(1).T @ G.flatten(1)
    assert report.cosines["2.weight"]["kfac"] == pytest.approx(float((product * H).sum() / (product.norm() * H.norm())))


def test_exact_products_have_cosine_one_and_layers_without_kfac_leave_it_out() -> None:
    linear = nn.Linear(4, 1, bias=False).double()  # a single output: H is 1 ⊗ mean s² x xᵀ
    report = kronecker_report(fl.Objective(linear, mse_loss)(draw(50, 4), draw(50, 1, seed=1)), labels="real")
    assert report.cosines["weight"]["optimal"] == pytest.approx(1) and report.cosines["weight"]["shampoo2"] == pytest.approx(1)
    model = conv()
    grouped = kronecker_report(fl.Objective(model, cross_entropy)(*data(model)), names=["2.weight"])
    assert list(grouped.cosines) == ["2.weight"] and "kfac" not in grouped.cosines["2.weight"]


class Tied(nn.Module):
    """Two uses of one weight: by one layer, by two, or by a layer and an embedding."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.a = nn.Linear(5, 5, bias=False)
            self.c = nn.Linear(5, 3)
        self.kind = kind
        if kind != "one":
            self.b = nn.Embedding(5, 5) if kind == "embedding" else nn.Linear(5, 5, bias=False)
            self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        if self.kind == "embedding":
            return self.c(torch.tanh(x + self.b(torch.zeros(len(x), dtype=torch.long))))
        return self.c(torch.tanh(self.a(x) if self.kind == "one" else self.b(x)))


def test_kfac_of_a_tied_weight_has_the_rows_of_all_its_layers() -> None:
    x, y = draw(30, 5), torch.arange(30) % 3
    found = {kind: kronecker_report(fl.Objective(Tied(kind).double(), cross_entropy)(x, y), labels="real").cosines["a.weight"]
             for kind in ("one", "two", "embedding")}
    assert found["two"] == pytest.approx(found["one"]) and "kfac" in found["two"]
    assert "kfac" not in found["embedding"] and "optimal" in found["embedding"]


def test_sampled_labels_are_the_models_anew_for_every_sample_and_replayed_by_the_key() -> None:
    with torch.no_grad():
        model = nn.Linear(2, 2).double()
        model.weight.zero_(), model.bias.copy_(torch.tensor([1e4, 0.0]))  # certain of class 0: its own labels give no gradient
    x, y = draw(20, 2), torch.ones(20, dtype=torch.long)
    problem = fl.Training(model, cross_entropy, (x, y))
    assert kronecker_report(problem, labels="real").cosines["weight"]["optimal"] > 0.9
    assert not kronecker_report(problem).cosines["weight"]["optimal"] > 0
    network = mlp()
    training = fl.Training(network, cross_entropy, data(network))
    one, same, other = (kronecker_report(training, key=key).cosines for key in (0, 0, 1))
    assert one == same != other


def test_the_problem_is_left_as_it_was_and_another_point_counts() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    x, y = draw(30, 5), torch.arange(30) % 3
    problem = fl.Objective(model, cross_entropy)(x, y)
    kept, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    report = kronecker_report(problem)
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items()) and torch.equal(state, torch.get_rng_state())
    assert model.training and all(p.grad is None for p in model.parameters()) and not model[0]._forward_hooks
    moved = {name: 2 * p.detach() for name, p in model.named_parameters()}
    elsewhere = kronecker_report(problem, moved)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(moved[name])
    for name, row in kronecker_report(problem).cosines.items():
        assert row == pytest.approx(elsewhere.cosines[name])
        assert row != pytest.approx(report.cosines[name])


def test_report_shows_itself() -> None:
    model = mlp()
    report = kronecker_report(fl.Objective(model, cross_entropy)(*data(model)))
    assert "0.weight (4 × 5): optimal 0." in repr(report) and "30 gradients, labels sampled" in repr(report)
    assert len(report.plot().data) == 4
    pandas = pytest.importorskip("pandas")
    frame = report.to_frame()
    assert isinstance(frame, pandas.DataFrame) and frame.loc["2.weight", "optimal"] == report.cosines["2.weight"]["optimal"]


def test_bad_input_is_refused() -> None:
    model = mlp()
    problem = fl.Objective(model, cross_entropy)(*data(model))
    regression = fl.Objective(model, mse_loss)(draw(10, 5), draw(10, 3))
    for call, kind, message in (
        (lambda: kronecker_report(fl.Smooth(lambda x: x @ x, torch.ones(2))), TypeError, "Training"),
        (lambda: kronecker_report(problem, labels="drawn"), ValueError, "labels must be"),
        (lambda: kronecker_report(problem, batch=0), ValueError, "batch must be"),
        (lambda: kronecker_report(problem, batch=31), ValueError, "30 data points"),
        (lambda: kronecker_report(problem, names=["0.bias"]), ValueError, "0.bias"),
        (lambda: kronecker_report(problem, names="0.weight"), ValueError, "names must be"),
        (lambda: kronecker_report(regression), ValueError, "labels='real'"),
    ):
        with pytest.raises(kind, match=message):
            call()
