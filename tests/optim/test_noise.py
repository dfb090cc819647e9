"""Measuring and adding gradient noise."""

import pytest
import torch
from torch import nn

import fallline as fl
from fallline.optim import add_annealed_noise, gradient_noise_report


class Point(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.x = nn.Parameter(torch.zeros(d, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, a):
        self.seen += len(a)
        return self.x - a


def objective(d=5):
    # Half the mean squared distance: a sample's gradient is x - a, so its law is that of the data.
    return fl.Objective(Point(d), lambda out, target: out.square().sum(1).mean() / 2)


def batches(count, size, d=5, mean=2.0, deviation=3.0):
    generator = torch.Generator().manual_seed(0)
    draw = lambda: mean + deviation * torch.randn(size, d, generator=generator, dtype=torch.float64)
    return [(draw(), torch.zeros(size)) for _ in range(count)]


def test_estimates_are_the_data_s_moments_for_any_batch_size():
    for size in (4, 64):
        noise = gradient_noise_report(objective(), batches(4000 // size * 4, size)).whole
        assert noise.squared_norm == pytest.approx(5 * 2.0**2, rel=0.08)
        assert noise.variance == pytest.approx(5 * 3.0**2, rel=0.15)
        assert noise.noise_scale == pytest.approx(noise.variance / noise.squared_norm)
        assert noise.signal_to_noise == pytest.approx((20 * size / 45) ** 0.5, rel=0.15)


def test_two_batches_by_hand():
    data = [(torch.tensor([[1.0], [3.0]]).double(), torch.zeros(2)), (torch.tensor([[5.0], [7.0]]).double(), torch.zeros(2))]
    noise = gradient_noise_report(objective(1), data).tensors["x"]
    # gradients -2 and -6: mean -4, s^2 = 8
    assert noise.variance == 16 and noise.squared_norm == 16 - 4 and noise.batch_size == 2


def test_the_model_is_left_as_it_was():
    asked = objective()
    asked.model.x.grad = torch.ones(5, dtype=torch.float64)
    before = torch.get_rng_state()
    report = gradient_noise_report(asked, batches(3, 4))
    assert asked.model.seen == 0 and torch.equal(asked.model.x.grad, torch.ones(5)) and torch.equal(torch.get_rng_state(), before)
    assert "noise scale" in str(report) and "x:" in str(report)


def test_batches_must_be_several_of_one_size():
    for wrong in (batches(1, 4), [*batches(2, 4), *batches(1, 3)]):
        with pytest.raises(ValueError, match="at least two of one size, got sizes"):
            gradient_noise_report(objective(), wrong)


def test_annealed_noise_has_the_paper_s_variance_and_replays():
    p = nn.Parameter(torch.zeros(200_000))
    frozen = nn.Parameter(torch.zeros(2))
    for t in (0, 99):
        p.grad = torch.full_like(p, 5.0)
        add_annealed_noise([p, frozen], t)
        assert float(p.grad.mean()) == pytest.approx(5.0, abs=0.01)
        assert float(p.grad.var()) == pytest.approx(0.3 / (1 + t) ** 0.55, rel=0.02)
        first, p.grad = p.grad, torch.full_like(p, 5.0)
        add_annealed_noise([p, frozen], t)
        assert torch.equal(p.grad, first) and frozen.grad is None
    with pytest.raises(ValueError, match="t=-1"):
        add_annealed_noise([p], -1)
