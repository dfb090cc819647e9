import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import fallline as fl
from fallline.core import tree
from fallline.core.errors import MissingOracle
from fallline.landscape import Spectrum, gauss_newton_spectrum, hessian_spectrum, same_basin, spectrum_summary


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=fl.Key(seed).generator())


def quadratic(values):
    rotation = torch.linalg.qr(normal(len(values), len(values)))[0]
    matrix = (rotation * values) @ rotation.T
    return fl.Smooth(lambda x: 0.5 * x @ matrix @ x, normal(len(values), seed=1))


def classifier(*layers, samples=40):
    model = nn.Sequential(*(layers or (nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)))).double()
    labels = torch.randint(3, (samples,), generator=fl.Key(2).generator())
    return fl.Training(model, cross_entropy, (normal(samples, 6), labels))


def regression(seed=0):
    model = nn.Linear(5, 2, bias=False).double()
    x = normal(30, 5, seed=seed)
    return fl.Training(model, mse_loss, (x, normal(30, 2, seed=3))), x


def test_a_quadratic_has_the_eigenvalues_of_its_matrix_everywhere():
    values = torch.tensor([-2.0, -0.5, 0.0, 0.1, 1.0, 4.0], dtype=torch.float64)
    problem = quadratic(values)
    for x in (None, normal(6, seed=5)):
        found = hessian_spectrum(problem, x)
        assert found.complete and found.size == 6
        torch.testing.assert_close(found.eigenvalues, values.flip(0))
    assert problem.counts["hessians"] == 2


def test_nested_variables_are_one_vector():
    problem = fl.Smooth(lambda x: (x["a"] ** 2).sum() + x["a"][0] * x["b"].sum(),
                        {"a": torch.zeros(2, dtype=torch.float64), "b": torch.zeros(1, 1, dtype=torch.float64)})
    expected = torch.tensor([2.0, 1 + math.sqrt(2), 1 - math.sqrt(2)], dtype=torch.float64).sort(descending=True).values
    torch.testing.assert_close(hessian_spectrum(problem).eigenvalues, expected)


def test_in_linear_least_squares_gauss_newton_is_the_hessian():
    problem, x = regression()
    # The mean over 30 × 2 entries: each output's block is (2 / 60) XᵀX.
    expected = torch.linalg.eigvalsh(x.T @ x / 30).flip(0).repeat_interleave(2)
    torch.testing.assert_close(hessian_spectrum(problem).eigenvalues, expected)
    torch.testing.assert_close(gauss_newton_spectrum(problem).eigenvalues, expected)
    summary = spectrum_summary(hessian_spectrum(problem), gauss_newton_spectrum(problem))
    assert summary.gauss_newton_difference < 1e-10 and summary.negative_mass < 1e-12


def test_gauss_newton_of_a_network_is_j_h_j():
    problem = classifier()
    inputs, targets = problem.data

    def outputs(flat):
        return torch.func.functional_call(problem.model, tree.unflatten(flat, problem.x0), (inputs,)).flatten()

    flat = tree.flatten(problem.x0).detach()
    J = torch.func.jacrev(outputs)(flat)
    H = torch.func.hessian(lambda f: cross_entropy(f.view(-1, 3), targets))(outputs(flat).detach())
    expected = torch.linalg.eigvalsh(J.T @ H @ J).flip(0)
    found = gauss_newton_spectrum(problem)
    torch.testing.assert_close(found.eigenvalues, expected)
    assert found.eigenvalues[-1] > -1e-10
    few = gauss_newton_spectrum(problem, k=4)
    torch.testing.assert_close(few.eigenvalues[:4], expected[:4])
    assert not torch.allclose(hessian_spectrum(problem).eigenvalues, expected)


def test_lanczos_finds_both_ends_of_the_dense_spectrum():
    problem = classifier()
    dense, ends = hessian_spectrum(problem), hessian_spectrum(problem, k=5)
    assert dense.complete and not ends.complete and ends.converged and len(ends.eigenvalues) == 10
    torch.testing.assert_close(ends.eigenvalues[:5], dense.eigenvalues[:5])
    torch.testing.assert_close(ends.eigenvalues[5:], dense.eigenvalues[-5:])
    assert problem.counts["hvps"] > 0
    assert torch.equal(hessian_spectrum(problem, k=5, key=0).eigenvalues, ends.eigenvalues)


def test_a_realisation_and_its_training_problem_agree_and_float32_does_nearly():
    problem = classifier()
    realisation = fl.Objective(problem.model, cross_entropy)(*problem.data)
    expected = hessian_spectrum(problem).eigenvalues
    torch.testing.assert_close(hessian_spectrum(realisation).eigenvalues, expected)
    problem.model.float()
    single = fl.Objective(problem.model, cross_entropy)(problem.data[0].float(), problem.data[1])
    found = hessian_spectrum(single, k=3)
    assert found.converged
    torch.testing.assert_close(found.eigenvalues[:3].double(), expected[:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [None, 5])
def test_the_density_integrates_to_one_and_has_the_moments(k):
    problem = classifier()
    values = hessian_spectrum(problem).eigenvalues
    density = hessian_spectrum(problem, k=k, density=True).density
    grid = torch.linspace(float(values[-1]) - 1, float(values[0]) + 1, 4001, dtype=torch.float64)
    assert float(torch.trapezoid(density.density(grid, 0.02), grid)) == pytest.approx(1, abs=1e-6)
    for power in (1, 2):
        moment, exact = float((density.weights * density.nodes**power).sum()), float((values**power).mean())
        assert moment == pytest.approx(exact, rel=1e-9 if k is None else 0.25)
    whole = spectrum_summary(hessian_spectrum(problem))
    assert spectrum_summary(hessian_spectrum(problem, k=k, density=True)).bulk_fraction == pytest.approx(whole.bulk_fraction, abs=0.1)


def test_the_summary_counts_bulk_outliers_and_negative_mass():
    problem = quadratic(torch.tensor([-1.0, -0.009, 0.0, 0.005, 0.02, 1.0], dtype=torch.float64))
    summary = spectrum_summary(hessian_spectrum(problem))
    assert summary.largest == pytest.approx(1) and summary.outliers == 3
    assert summary.bulk_fraction == pytest.approx(0.5)
    assert summary.negative_mass == pytest.approx(1.009 / 2.034)
    assert summary.gauss_newton_difference is None


def test_the_summary_compares_the_largest_relative_to_the_hessian():
    def spectrum(*values):
        return Spectrum(torch.tensor(values, dtype=torch.float64), 3, True, True, None, "Hessian")

    difference = spectrum_summary(spectrum(4.0, 2.0, 0.1), spectrum(5.0, 2.0, 9.0), k=2).gauss_newton_difference
    assert difference == pytest.approx(0.25)


def test_a_convex_loss_has_no_barrier_and_two_wells_have_theirs():
    problem, _ = regression()
    first, second = ({"weight": normal(2, 5, seed=s)} for s in (6, 7))
    segment = same_basin(problem, first, second)
    assert len(segment.values) == 21 and segment.barrier <= 1e-12
    assert float(segment.values[0]) == pytest.approx(float(problem.value(first)))
    assert float(segment.values[-1]) == pytest.approx(float(problem.value(second)))
    wells = fl.Smooth(lambda x: ((x**2 - 1) ** 2).sum(), torch.ones(1, dtype=torch.float64))
    one = torch.ones(1, dtype=torch.float64)
    assert same_basin(wells, -one, one).barrier == pytest.approx(1.0)
    assert same_basin(wells, one, one).barrier == 0


def test_models_are_seen_in_evaluation_mode_and_left_as_they_were():
    problem = classifier(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))
    model = problem.model.train()
    model[3].eval()
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    realisation = fl.Objective(model, cross_entropy)(*problem.data)
    before = torch.get_rng_state()
    found = [hessian_spectrum(realisation, k=3).eigenvalues for _ in range(2)]
    assert torch.equal(*found) and torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(found[0][:3], hessian_spectrum(problem).eigenvalues[:3])
    gauss_newton_spectrum(realisation)
    assert model.training and model[1].training and not model[3].training
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    assert all(p.grad is None for p in model.parameters())
    realisation()
    assert int(model[1].num_batches_tracked) == 1


def test_a_result_of_training_is_a_point():
    problem = classifier(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    result = fl.solve(problem, fl.Train(torch.optim.SGD, lr=0.1), fl.Budget(steps=3))
    assert hessian_spectrum(problem, result.x).size == tree.size(problem.x0)
    assert same_basin(problem, problem.x0, result.x, points=3).barrier >= 0


@pytest.mark.parametrize("k, density, axis", [(None, False, "rank"), (3, False, "rank"), (None, True, "eigenvalue")])
def test_plots_are_logarithmic(k, density, axis):
    figure = hessian_spectrum(classifier(), k=k, density=density).plot()
    assert figure.layout.yaxis.type == "log" and figure.layout.xaxis.title.text == axis
    assert len(figure.data[0].x) > 0


def test_texts_and_the_segment_plot():
    problem = classifier()
    assert "Hessian, 123 parameters: all" in repr(hessian_spectrum(problem))
    assert "4 at the ends" in repr(gauss_newton_spectrum(problem, k=2))
    segment = same_basin(problem, problem.x0, problem.x0, points=5)
    assert "barrier=0" in repr(segment) and len(segment.plot().data[0].x) == 5


@pytest.mark.parametrize("call, error, message", [
    (lambda p: hessian_spectrum(p.model), TypeError, "problem must be a Problem"),
    (lambda p: hessian_spectrum(p, k=0), ValueError, "k must be"),
    (lambda p: hessian_spectrum(p, k=1000), ValueError, "k must be"),
    (lambda p: hessian_spectrum(p, {"0.weight": torch.zeros(12, 6)}), ValueError, "missing"),
    (lambda p: hessian_spectrum(p, torch.zeros(3)), ValueError, "dict of the model's parameters"),
    (lambda p: hessian_spectrum(p, {n: v.bfloat16() for n, v in p.x0.items()}), ValueError, "float32 or float64"),
    (lambda p: hessian_spectrum(p, {n: v * math.nan for n, v in p.x0.items()}), ValueError, "NaN"),
    (lambda p: hessian_spectrum(fl.BlackBox(lambda x: x.sum(), torch.zeros(2))), MissingOracle, "hvp"),
    (lambda p: hessian_spectrum(fl.Smooth(lambda x: x @ x, torch.ones(2)), torch.ones(3)), ValueError, "shapes"),
    (lambda p: gauss_newton_spectrum(fl.Smooth(lambda x: x @ x, torch.ones(2))), MissingOracle, "outputs"),
    (lambda p: same_basin(p, p.x0, p.x0, points=2), ValueError, "points"),
    (lambda p: same_basin(p, p.x0, {}), ValueError, "second"),
    (lambda p: spectrum_summary(hessian_spectrum(p, k=3)), ValueError, "density=True"),
    (lambda p: spectrum_summary(hessian_spectrum(p), gauss_newton_spectrum(p, k=3)), ValueError, "k must be"),
])
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(classifier())
