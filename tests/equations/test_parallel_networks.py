import pytest
import torch
from torch import nn

import fallline as fl
from fallline.core.counts import Counts
from fallline.equations import gumbel_argmax, parallel_layers, parallel_rnn, parallel_sample

METHODS = ["jacobi", "gs", "jacobi_gs", "gs_jacobi"]
ALL = pytest.mark.parametrize("method", METHODS)


def in_order(cell, x, state):
    states = []
    for step in x:
        state = cell(step, state)
        states.append(torch.cat(state, -1) if isinstance(state, tuple) else state)
    return torch.stack(states)


@ALL
@pytest.mark.parametrize("make", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_a_recurrent_cell_and_its_gradient(make, method):
    cell = make(3, 4).double()
    x = torch.randn(17, 2, 3, dtype=torch.float64).requires_grad_()
    zero = torch.zeros(2, 4, dtype=torch.float64)
    expected = in_order(cell, x, (zero, zero) if make is nn.LSTMCell else zero)
    result = parallel_rnn(cell, x, method=method)
    torch.testing.assert_close(result.x, expected, atol=1e-13, rtol=0)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    inputs = [x, *cell.parameters()]
    found, wanted = (torch.autograd.grad((weights * states).sum(), inputs) for states in (result.x, expected))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=1e-11)


def test_the_first_state_has_a_gradient_and_any_function_is_a_cell():
    s0 = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)
    result = parallel_rnn(lambda x, s: x * s**2, torch.full((3, 1, 1), 2.0, dtype=torch.float64), s0)
    result.x[-1].sum().backward()  # 2 (2 (2 s²)²)² = 128 s⁸
    assert result.x[-1].item() == pytest.approx(128 * 0.3**8) and float(s0.grad) == pytest.approx(8 * 128 * 0.3**7)


def test_adjoint_rounds_are_counted_and_end_by_the_tolerance():
    cell, x = nn.RNNCell(2, 5).double(), torch.randn(60, 1, 2, dtype=torch.float64)
    with torch.no_grad():
        cell.weight_hh.mul_(0.4 / torch.linalg.matrix_norm(cell.weight_hh, 2))
    rounds = []
    for tol in (1e-3, 0.0):
        counts = Counts()
        parallel_rnn(cell, x, adjoint_tol=tol, counts=counts).x.sum().backward()
        rounds.append(counts["adjoint_maps"])
    assert 2 <= rounds[0] < rounds[1] <= 61


class Masked(nn.Module):
    """Logits (B, T, 2) of binary positions, from those before by one hidden layer."""

    def __init__(self, length, strength):
        super().__init__()
        self.first, self.second = nn.Linear(length, length), nn.Linear(length, length)
        mask = torch.ones(length, length)
        self.register_buffer("strict", mask.tril(-1))
        self.register_buffer("loose", mask.tril())
        self.strength = strength

    def forward(self, s):
        hidden = torch.tanh(nn.functional.linear(s.float(), self.strength * self.first.weight * self.strict))
        logit = nn.functional.linear(hidden, self.strength * self.second.weight * self.loose, self.second.bias)
        return torch.stack([torch.zeros_like(logit), logit], -1)


def gumbel(*shape):
    return -torch.log(-torch.log(torch.rand(*shape)))


@ALL
def test_a_sampler_gives_the_sample_of_its_noise(method):
    model, noise = Masked(40, 4.0), gumbel(3, 40, 2)
    sample = torch.zeros(3, 40, dtype=torch.long)
    with torch.no_grad():
        for t in range(40):
            sample[:, t] = gumbel_argmax(model(sample), noise)[:, t]
    result = parallel_sample(model, noise, method=method)
    assert torch.equal(result.x, sample) and result.x.dtype == torch.long
    assert method == "gs" or result.nit < 40 or method == "gs_jacobi"


def test_a_draw_of_one_s_own():
    model = Masked(20, 3.0)
    draw = lambda outputs, u: (u < torch.sigmoid(outputs[..., 1])).to(u.dtype)
    result, order = (parallel_sample(model, torch.rand(5, 20, generator=fl.Key(1).generator()), draw, method) for method in METHODS[:2])
    assert torch.equal(result.x, order.x) and set(result.x.unique().tolist()) <= {0.0, 1.0}


def test_a_causal_language_model_starts_from_a_token():
    embedding, attention = nn.Embedding(7, 8), nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    head = nn.Linear(8, 7)

    class Causal(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList([embedding, attention, head])

        def forward(self, tokens):
            mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
            return head(attention(embedding(tokens), src_mask=mask, is_causal=True))

    model, noise = Causal(), gumbel(2, 12, 7)
    with pytest.raises(ValueError, match=r"Dropout 'parts.1.*' is in training mode; call model.eval\(\)"):
        parallel_sample(model, noise, start=0)
    model.eval()
    tokens = torch.zeros(2, 1, dtype=torch.long)
    with torch.no_grad():
        for t in range(12):
            tokens = torch.cat([tokens, gumbel_argmax(model(tokens)[:, -1], noise[:, t])[:, None]], 1)
    assert torch.equal(parallel_sample(model, noise, start=0).x, tokens[:, 1:])
    with pytest.raises(ValueError, match="must use earlier states only"):
        parallel_sample(model, noise)  # its output at t has seen the token t


@ALL
def test_a_chain_of_layers(method):
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    result = parallel_layers(net, x, method=method, block=2)
    assert torch.equal(result.x[-1], net(x)) and [s.shape[1] for s in result.x] == [8, 8, 8, 2]
    for mine, theirs in zip(torch.autograd.grad(result.x[-1].square().sum(), net.parameters()),
                            torch.autograd.grad(net(x).square().sum(), net.parameters()), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-13, rtol=1e-12)


def test_a_dense_block_converges_in_fewer_rounds_than_layers():
    layers = [nn.Sequential(nn.BatchNorm2d(4 + 2 * t), nn.ReLU(), nn.Conv2d(4 + 2 * t, 2, 3, padding=1)) for t in range(12)]
    x = torch.randn(2, 4, 6, 6)
    with pytest.raises(ValueError, match="BatchNorm2d '0' is in training mode"):
        parallel_layers(layers, x, "dense")
    for layer in layers:
        layer.eval()
    features = x
    for layer in layers:
        features = torch.cat([features, layer(features)], 1)
    exact, rough = (parallel_layers(layers, x, "dense", tol=tol) for tol in (0.0, 1e-2))
    assert torch.equal(torch.cat([x, *exact.x], 1), features) and exact.nit <= 12
    assert rough.nit < 12
    torch.testing.assert_close(torch.cat([x, *rough.x], 1), features, atol=0.05, rtol=0)


def test_bad_input():
    with pytest.raises(ValueError, match=r"x must be of shape \(T, B, ...\)"):
        parallel_rnn(nn.RNNCell(1, 1), torch.zeros(3))
    with pytest.raises(ValueError, match="s0 must be given for a function"):
        parallel_rnn(lambda x, s: s, torch.zeros(3, 1, 1))
    with pytest.raises(ValueError, match=r"noise must be of shape \(B, T, ...\)"):
        parallel_sample(Masked(3, 1.0), torch.zeros(3))
    with pytest.raises(ValueError, match="connect must be"):
        parallel_layers([nn.Linear(1, 1)], torch.zeros(1, 1), "residual")
    with pytest.raises(ValueError, match="at least one module"):
        parallel_layers([], torch.zeros(1, 1))


@pytest.mark.parametrize("connect", ["chain", "dense"])
@pytest.mark.parametrize("first", [nn.Identity, lambda: nn.Linear(4, 4).requires_grad_(False)], ids=["no parameters", "frozen"])
def test_layers_without_a_gradient_leave_that_of_the_others_right(first, connect):
    layers = [layer.double() for layer in (first(), nn.Linear(8 if connect == "dense" else 4, 4), nn.Tanh())]
    x = torch.randn(3, 4, dtype=torch.float64, generator=fl.Key(0).generator())
    if connect == "dense":
        layers[2] = nn.Linear(12, 4).double()
    seen = x
    for layer in layers:
        last = layer(seen)
        seen = torch.cat([seen, last], 1) if connect == "dense" else last
    (expected,) = torch.autograd.grad(last.square().sum(), layers[1].weight)
    (found,) = torch.autograd.grad(parallel_layers(layers, x, connect).x[-1].square().sum(), layers[1].weight)
    torch.testing.assert_close(found, expected)
