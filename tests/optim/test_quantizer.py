"""The 8-bit map against its definition, and its rounding against a search through all values."""

import pytest
import torch

import fallline as fl
from fallline import optim
from fallline.optim import Quantized
from fallline.optim.engine import quantizer


def definition(signed):
    values = [0.0, 1.0]
    for i in range(7):
        count = 2**i if signed else 2 ** (i + 1)
        edges = torch.linspace(0.1, 1, count + 1, dtype=torch.float64)
        middle = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (i - 6)
        values += middle.tolist() + ([-m for m in middle.tolist()] if signed else [])
    return torch.tensor(sorted(values), dtype=torch.float64)


@pytest.mark.parametrize("signed", [True, False])
def test_the_map_is_the_dynamic_tree(signed):
    values = quantizer.dynamic_map(signed).double()
    assert len(values) == 256
    torch.testing.assert_close(values, definition(signed), rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_nearest(signed):
    generator = fl.Key(0).generator()
    x = torch.rand(20_000, generator=generator) ** 6
    x = torch.cat([x, torch.tensor([0.0, 1.0, 1e-9])])
    if signed:
        x = torch.cat([x, -x])
    values = definition(signed)
    distance = (x.double()[:, None] - values).abs()
    found = quantizer.decode(quantizer.encode(x, signed), signed).double()
    torch.testing.assert_close((x.double() - found).abs(), distance.min(1).values, rtol=1e-4, atol=5e-7)


def test_blocks_tails_zeros_and_layouts():
    x = torch.randn(5, 1000, generator=fl.Key(0).generator())
    x[2] = 0
    kept = Quantized(x.t(), block=256)
    assert kept.dequantize().shape == (1000, 5) and kept.nbytes == 5000 + 4 * 20
    torch.testing.assert_close(kept.dequantize(), x.t(), rtol=0.1, atol=0.02)
    assert torch.equal(Quantized(torch.zeros(10)).dequantize(), torch.zeros(10))
    exact = Quantized(torch.tensor([0.0, 4.0]))
    assert torch.equal(exact.dequantize(), torch.tensor([0.0, 4.0]))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("largest", [1e-45, 1e-39, 1.2e-38, 1e-30, 3e38])
def test_codes_of_tiny_and_huge_blocks_are_defined(largest, signed):
    x = torch.tensor([0.0, largest, largest / 2])
    codes, scale = quantizer.quantize_blocks(x, signed)
    found = quantizer.decode(codes, signed) * scale
    if largest < torch.finfo(torch.float32).tiny:
        assert torch.equal(codes, torch.full_like(codes, quantizer.zero_code(signed))) and torch.equal(found, torch.zeros(3))
    else:
        torch.testing.assert_close(found, x, rtol=0.05, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_stable_embedding_is_normalised_in_its_own_precision_or_better(dtype):
    embedding = optim.StableEmbedding(10, 64).to(dtype)
    indices = torch.arange(10)
    found = embedding(indices)
    reference = torch.nn.functional.layer_norm(embedding.weight.double(), (64,))
    assert found.dtype is dtype
    torch.testing.assert_close(found.double(), reference, rtol=torch.finfo(dtype).eps, atol=1e-5)
    found.square().sum().backward()
    assert embedding.weight.grad is not None and embedding.norm.weight.grad is not None


@pytest.mark.parametrize("make, message", [
    (lambda: Quantized(torch.ones(3, dtype=torch.int32)), "floating-point"),
    (lambda: Quantized(-torch.ones(3), signed=False), "signed=True"),
    (lambda: Quantized(torch.ones(3), block=0), "block"),
])
def test_bad_input(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_embeddings_keep_whole_state():
    model = torch.nn.Sequential(fl.optim.StableEmbedding(256, 64), torch.nn.Linear(64, 128))
    optimizer = fl.optim.Adam8bit(fl.optim.roles(model))
    model(torch.arange(8)).square().mean().backward()
    optimizer.step()
    assert optimizer.state[model[0].weight]["exp_avg"].dtype == torch.float32
    assert optimizer.state[model[1].weight]["exp_avg"].dtype == torch.uint8
