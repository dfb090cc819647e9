"""Kernel regression of gradients against its formulas in NumPy."""

import math

import numpy as np
import pytest
import torch

import fallline as fl
from fallline.core.gradient_prediction import GradientPredictor, chosen_scale


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=fl.Key(seed).generator())


def reference(positions, gradients, query, noise, scale, kernel):
    positions, gradients, query = (t.numpy() for t in (positions, gradients, query))
    distances = np.sqrt(((positions[:, None] - positions[None]) ** 2).sum(-1))
    above = np.sort(distances[np.triu_indices(len(positions), 1)])
    length = scale * above[(len(above) - 1) // 2]  # torch's median is the lower of two middle ones
    k = {"matern52": lambda r: (1 + math.sqrt(5) * r + 5 / 3 * r**2) * np.exp(-math.sqrt(5) * r), "rbf": lambda r: np.exp(-(r**2) / 2)}
    near = k[kernel](np.sqrt(((positions - query) ** 2).sum(-1)) / length)
    return near @ np.linalg.solve(k[kernel](distances / length) + noise * np.eye(len(positions)), gradients)


@pytest.mark.parametrize("kernel", ["matern52", "rbf"])
@pytest.mark.parametrize("rows, noise, scale", [(2, 1e-6, 3.0), (7, 1e-2, 3.0), (12, 1e-4, 0.5)])
def test_predictions_are_those_of_the_formulas(kernel, rows, noise, scale):
    positions, gradients, query = normal(rows, 4), normal(rows, 6, seed=1), normal(4, seed=2)
    predicted = GradientPredictor(positions, gradients, kernel, noise, scale)(query)
    np.testing.assert_allclose(predicted.numpy(), reference(positions, gradients, query, noise, scale, kernel), rtol=1e-8, atol=1e-10)


def test_without_noise_it_interpolates_and_far_away_it_predicts_nothing():
    positions, gradients = normal(6, 3), normal(6, 5, seed=1)
    predictor = GradientPredictor(positions, gradients, noise=0.0)
    torch.testing.assert_close(predictor(positions[2]), gradients[2], rtol=1e-9, atol=1e-9)
    assert predictor(positions[0] + 1e4).abs().max() < 1e-12


def test_a_linear_field_is_continued_ahead_of_a_path():
    path = torch.linspace(0, 1, 8, dtype=torch.float64)[:, None] * normal(1, 50)
    field = lambda x: 2 * x - 1
    predicted = GradientPredictor(path, field(path))(1.15 * path[-1])
    assert (predicted - field(1.15 * path[-1])).norm() < 0.02 * field(1.15 * path[-1]).norm()


def test_points_near_each_other_and_far_from_zero_keep_their_digits():
    positions, gradients = normal(30, 3), normal(30, 2, seed=1)
    near = GradientPredictor(positions, gradients, noise=1e-3)(positions[0] + 0.1)
    # 2²⁰ is exact in what is added: the same distances up to the rounding of the sums.
    far = GradientPredictor(positions + 2**20, gradients, noise=1e-3)(positions[0] + 0.1 + 2**20)
    torch.testing.assert_close(far, near, rtol=1e-6, atol=1e-6)


def test_a_single_gradient_is_predicted_everywhere():
    gradient = normal(1, 5)
    torch.testing.assert_close(GradientPredictor(normal(1, 3), gradient, noise=0.25)(normal(3, seed=1)), gradient[0] / 1.25)


def test_duplicates_need_noise():
    positions = torch.zeros(3, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="noise=0 leaves the kernel matrix of 3 points singular"):
        GradientPredictor(positions, normal(3, 4), noise=0.0)
    mean = normal(3, 4).mean(0)
    torch.testing.assert_close(GradientPredictor(positions, normal(3, 4))(positions[0]), mean, rtol=1e-5, atol=1e-6)
    mostly = torch.cat([positions, torch.ones(1, 4, dtype=torch.float64)])  # half of the distances are 0
    assert GradientPredictor(mostly, normal(4, 4)).length == pytest.approx(3 * 2)


def test_float32_gradients_stay_float32():
    predictor = GradientPredictor(normal(5, 3).float(), normal(5, 4).float())
    assert predictor(normal(3).float()).dtype == torch.float32


def test_the_scale_is_that_of_least_error_on_the_newest_fifth():
    positions = torch.arange(20, dtype=torch.float64)[:, None]
    wave = torch.sin(positions / 2)
    scales = (0.01, 0.3, 3.0, 30.0)
    errors = []
    for scale in scales:
        predicted = [reference(positions[:16], wave[:16], x, 1e-6, scale, "matern52") for x in positions[16:]]
        errors.append(((np.array(predicted) - wave[16:].numpy()) ** 2).sum())
    assert chosen_scale(positions, wave, scales) == scales[int(np.argmin(errors))] == 0.3
    with pytest.raises(ValueError, match="at least 5 rows"):
        chosen_scale(positions[:4], wave[:4], scales)


def test_an_unknown_kernel_and_a_negative_noise_are_refused():
    for arguments, message in (({"kernel": "matern"}, "kernel must be 'matern52' or 'rbf', got 'matern'"),
                               ({"noise": -1.0}, "noise must be a number of at least 0"), ({"noise": math.nan}, "noise must be")):
        with pytest.raises(ValueError, match=message):
            GradientPredictor(normal(3, 2), normal(3, 2), **arguments)
