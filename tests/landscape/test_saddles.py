"""Saddle reports at points whose Hessians are known."""

import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline.core.errors import MissingOracle
from fallline.landscape import hessian_spectrum, saddle_report

VALUES = torch.tensor([3.0, -2.0, 0.0, -0.5, 1.0], dtype=torch.float64)


def quadratic():
    return fl.Smooth(lambda x: (VALUES * x**2).sum() / 2, torch.ones(5, dtype=torch.float64))


def test_of_a_quadratic():
    report = saddle_report(quadratic())
    assert report.negative_index == 2 and report.exact and report.size == 5
    assert report.lambda_min == pytest.approx(-2) and report.grad_norm == pytest.approx(float(VALUES.norm()))
    at_saddle = saddle_report(quadratic(), torch.zeros(5, dtype=torch.float64))
    assert at_saddle.grad_norm == 0 and at_saddle.negative_index == 2
    assert repr(at_saddle) == "SaddleReport(grad_norm=0.000e+00, negative_index=2 of 5, lambda_min=-2)"


def test_zeros_of_a_rotated_matrix_are_not_negative():
    Q = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64, generator=fl.Key(0).generator())).Q
    A = Q[:, :20] @ Q[:, :20].T
    problem = fl.Smooth(lambda x: x @ A @ x / 2, torch.ones(60, dtype=torch.float64))
    assert saddle_report(problem).negative_index == 0


def test_small_negative_curvature_counts_in_float32():
    values = torch.cat([torch.linspace(1, 100, 900), torch.full((5,), -5e-3)])
    report = saddle_report(fl.Smooth(lambda x: (values * x**2).sum() / 2, torch.zeros(905)))
    assert report.lambda_min == pytest.approx(-5e-3) and report.negative_index == 5


def test_zeros_of_a_rotated_float32_matrix_are_not_negative():
    Q = torch.linalg.qr(torch.randn(400, 400, generator=fl.Key(0).generator())).Q
    A = (100 * Q[:, :100]) @ Q[:, :100].T
    assert saddle_report(fl.Smooth(lambda x: x @ A @ x / 2, torch.ones(400))).negative_index == 0


def test_of_a_network_dense_and_estimated(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    x, y = torch.randn(20, 6, dtype=torch.float64), torch.randint(3, (20,))
    batch = fl.Objective(model, cross_entropy)(x, y)
    found = saddle_report(batch)
    values = hessian_spectrum(batch).eigenvalues
    assert found.lambda_min == pytest.approx(float(values[-1])) and model.training
    assert found.negative_index == int((values < -1e-12).sum()) > 0
    monkeypatch.setattr(sys.modules["fallline.landscape.hessian_spectrum"], "DENSE_LIMIT", 10)
    estimated = saddle_report(batch)
    assert not estimated.exact and "about" in repr(estimated)
    assert abs(estimated.negative_index - found.negative_index) <= 15
    assert estimated.lambda_min == pytest.approx(found.lambda_min)


def test_what_is_missing_is_named():
    with pytest.raises(MissingOracle, match="saddle_report needs"):
        saddle_report(fl.BlackBox(lambda x: x.sum(), torch.zeros(2)))
    with pytest.raises(TypeError, match="must be a Problem"):
        saddle_report(nn.Linear(2, 2))
