import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline.core.errors import MissingOracle
from fallline.landscape.batch_scaling import BatchHessianReport, batch_eigenvalue, batch_hessian_report, scale_lr
from fallline.landscape.lanczos_lr import LanczosLR, heavy_ball


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=fl.Key(seed).generator())


def regression(n=400, d=40, top=8.0):
    rows = normal(n, d)
    rows[:, 0] *= math.sqrt(top)
    return fl.FiniteSum(lambda w, a: ((a @ w) ** 2).mean() / 2, rows, torch.zeros(d, dtype=torch.float64)), rows


def classifier():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    return fl.Training(model, cross_entropy, (normal(60, 6), torch.randint(3, (60,), generator=fl.Key(1).generator())))


def noise_levels(rows):
    """λ₁, V and Pσ² from all samples' Hessians."""
    each = rows[:, :, None] * rows[:, None, :]
    whole = each.mean(0)
    values, vectors = torch.linalg.eigh(whole)
    difference = each - whole
    return float(values[-1]), float((difference @ vectors[:, -1]).square().sum(1).mean()), \
        float(difference.square().sum((1, 2)).mean()) / rows.shape[1]


@pytest.mark.parametrize("replacement", [True, False])
def test_the_report_finds_the_noise_levels_of_a_regression(replacement):
    problem, rows = regression()
    top, V, homogeneous = noise_levels(rows)
    report = batch_hessian_report(problem, None, [64, 8, 200], draws=100, replacement=replacement)
    assert report.sizes == (8, 64, 200) and report.parameters == 40
    assert report.largest == pytest.approx(top, rel=1e-6)
    assert report.noise == pytest.approx(V, rel=0.15)
    assert report.homogeneous_noise == pytest.approx(homogeneous, rel=0.15)
    assert report.critical_size == pytest.approx(report.noise / top**2)
    for size, mean in zip(report.sizes, report.means, strict=True):
        b = size if replacement else size / (1 - size / 400)
        assert report.predicted(size) == pytest.approx(batch_eigenvalue(top, report.noise, b))
        assert mean == pytest.approx(report.predicted(size), rel=0.12)
        assert report.sgd_rate(size) == pytest.approx(2 / report.predicted(size))
    assert report.homogeneous(8) < report.predicted(8)


def test_measured_eigenvalues_are_those_of_the_batches_drawn():
    problem, _ = regression()
    report = batch_hessian_report(problem, None, [16], draws=2, key=3)
    for j, value in enumerate(report.measured[0]):
        batch = problem.draw(fl.Key(3).fold("batch", 16, j), 16)
        assert value == pytest.approx(float(torch.linalg.eigvalsh(batch.hessian(problem.x0))[-1]), rel=1e-6)
    assert batch_hessian_report(problem, None, [16], draws=2, key=3).measured == report.measured


def test_the_eigenvalue_has_two_regimes_that_meet():
    assert batch_eigenvalue(10.0, 80.0, 4.0) == pytest.approx(10 + 80 / 40)
    assert batch_eigenvalue(2.0, 80.0, 5.0) == pytest.approx(2 * 4)
    assert batch_eigenvalue(4.0, 80.0, 5.0) == pytest.approx(8.0)
    assert batch_eigenvalue(4.0 + 1e-9, 80.0, 5.0) == pytest.approx(8.0)
    assert batch_eigenvalue(4.0, 80.0, math.inf) == 4.0


def test_a_model_is_seen_in_evaluation_mode_and_left_as_it_was():
    problem = classifier()
    buffers = {name: b.clone() for name, b in problem.model.named_buffers()}
    before = torch.get_rng_state()
    report = batch_hessian_report(problem, problem.x0, [8, 32], draws=2)
    assert problem.model.training and torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(b, buffers[name]) for name, b in problem.model.named_buffers())
    assert all(v > 0 for row in report.measured for v in row)


def test_rates_scale_linearly_then_saturate_and_by_the_square_root():
    assert scale_lr(0.1, 64, 256) == pytest.approx(0.4)
    assert scale_lr(0.1, 64, 256, kind="adam") == pytest.approx(0.2)
    assert scale_lr(0.1, 256, 64) == pytest.approx(0.025)
    assert scale_lr(0.1, 64, 64, samples=100) == pytest.approx(0.1)
    assert scale_lr(0.1, 10, 50, samples=100) == pytest.approx(0.1 * (50 / 0.5) / (10 / 0.9))
    by = {"curvature": 10.0, "noise": 1000.0}
    assert scale_lr(0.1, 20, 40, **by) == pytest.approx(0.1 * (10 + 5) / (10 + 2.5))
    assert scale_lr(0.1, 10**6, 10**7, **by) == pytest.approx(0.1, rel=1e-3)
    report = BatchHessianReport(10.0, 1000.0, 30.0, (8,), ((20.0,),), None, 5)
    assert scale_lr(0.1, 20, 40, report=report) == scale_lr(0.1, 20, 40, **by)
    assert report.critical_size == 10 and report.adam_factor(32) == 2


def test_texts_and_the_plot():
    problem, _ = regression()
    report = batch_hessian_report(problem, None, [4, 16], draws=2)
    assert "B = 16" in repr(report) and "saturates at B*" in repr(report)
    figure = report.plot()
    assert [trace.name for trace in figure.data] == ["measured", "predicted, V", "predicted, Pσ²"]
    assert len(figure.data[0].x) == 4 and figure.layout.xaxis.type == "log"


@pytest.mark.parametrize("call, error, message", [
    (lambda p: batch_hessian_report(p, None, []), ValueError, "sizes"),
    (lambda p: batch_hessian_report(p, None, [0]), ValueError, "sizes"),
    (lambda p: batch_hessian_report(p, None, [4], draws=0), ValueError, "draws"),
    (lambda p: batch_hessian_report(p, None, [400], replacement=False), ValueError, "400 data points"),
    (lambda p: batch_hessian_report(p.x0, None, [4]), TypeError, "problem must be a Problem"),
    (lambda p: batch_hessian_report(fl.Smooth(lambda x: x @ x, torch.ones(2)), None, [4]), ValueError, "random data"),
    (lambda p: batch_hessian_report(fl.FiniteSum(lambda x, a: -((a @ x) ** 2).mean(), normal(9, 2), p.x0[:2]), None, [2]),
     ValueError, "positive"),
    (lambda p: scale_lr(0.1, 64, 256, kind="lion"), ValueError, "kind"),
    (lambda p: scale_lr(0.0, 64, 256), ValueError, "lr"),
    (lambda p: scale_lr(0.1, 64, 0), ValueError, "to_size"),
    (lambda p: scale_lr(0.1, 64, 256, curvature=1.0), ValueError, "both"),
    (lambda p: scale_lr(0.1, 64, 256, curvature=1.0, noise=-1.0), ValueError, "noise"),
    (lambda p: scale_lr(0.1, 64, 256, kind="adam", curvature=1.0, noise=1.0), ValueError, "adam"),
    (lambda p: scale_lr(0.1, 64, 256, samples=100), ValueError, "samples"),
])
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(regression()[0])


def test_a_problem_without_curvature_is_refused():
    problem = fl.Problem(torch.ones(2), {"value": lambda x: x.sum()}, kind="data", differentiable=False,
                         sampler=lambda p, *_: fl.Smooth(lambda x: x.sum(), torch.ones(2)))
    with pytest.raises(MissingOracle, match="hvp"):
        batch_hessian_report(problem, None, [2])


# ---------------------------------------------------------------- LanczosLR


def quadratic(values):
    rotation = torch.linalg.qr(normal(len(values), len(values)))[0]
    matrix = (rotation * torch.tensor(values, dtype=torch.float64)) @ rotation.T
    return fl.Smooth(lambda x: 0.5 * x @ matrix @ x, normal(len(values), seed=1))


def tuned(problem, make=torch.optim.SGD, **options):
    p = nn.Parameter(problem.x0.clone())
    optimizer = make([p], lr=1.0, momentum=0.5)
    return p, optimizer, LanczosLR(optimizer, **options)


@pytest.mark.parametrize("make", [torch.optim.SGD, fl.optim.Momentum])
def test_a_quadratic_gets_the_heavy_balls_best(make):
    problem = quadratic([1.0, 2.0, 5.0, 9.0, 16.0])
    p, optimizer, tuner = tuned(problem, make)
    realisation = problem.bind(p)
    tuner.step(realisation)
    group = optimizer.param_groups[0]
    assert group["lr"] == pytest.approx((2 / (4 + 1)) ** 2) and group["momentum"] == pytest.approx((3 / 5) ** 2)
    assert p.grad is None
    before = float(problem.value(p.detach()))
    for _ in range(100):
        optimizer.step(realisation)
    assert float(problem.value(p.detach())) < 1e-30 * before


def test_negative_curvature_and_a_bulk_at_zero_are_floored():
    for values in ([-3.0, 1.0, 4.0], [0.0, 0.0, 4.0]):
        problem = quadratic(values)
        p, optimizer, tuner = tuned(problem, floor=0.01)
        tuner.step(problem.bind(p))
        expected = heavy_ball(4.0, 0.04)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected.lr)
        assert optimizer.param_groups[0]["momentum"] == pytest.approx(expected.momentum)
        assert tuner.last.largest == pytest.approx(4.0)


def test_without_positive_curvature_the_groups_stay_and_a_warning_says_so():
    problem = quadratic([-3.0, -1.0])
    p, optimizer, tuner = tuned(problem)
    with pytest.warns(UserWarning, match="no Ritz value"):
        tuner.step(problem.bind(p))
    assert optimizer.param_groups[0]["lr"] == 1.0 and tuner.last is None


def test_it_estimates_when_due_and_goes_on_from_a_state_dict():
    problem = classifier()
    objective = fl.Objective(problem.model, cross_entropy)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1, momentum=0.9)
    tuner = LanczosLR(optimizer, every=3, m=5)
    realisation = objective(*problem.data)
    for call in range(4):
        before = objective.counts["hvps"]
        tuner.step(realisation)
        assert objective.counts["hvps"] - before == (5 if call % 3 == 0 else 0)
    other = LanczosLR(optimizer, every=3, m=5)
    other.load_state_dict(tuner.state_dict())
    assert other.calls == 4 and other.last == tuner.last
    assert other.propose(realisation) == tuner.propose(realisation)
    assert all(p.grad is None for p in problem.model.parameters())
    assert "lr" in repr(tuner) and "nothing estimated" in repr(LanczosLR(optimizer))


def test_float32_finds_the_same_rate():
    problem = quadratic([1.0, 2.0, 5.0, 9.0, 16.0])
    p, _, tuner = tuned(problem)
    single = fl.Smooth(lambda x: 0.5 * x @ problem.hessian(problem.x0).float() @ x, problem.x0.float())
    q, _, other = tuned(single)
    tuner.step(problem.bind(p))
    other.step(single.bind(q))
    assert other.last.lr == pytest.approx(tuner.last.lr, rel=1e-4)


@pytest.mark.parametrize("call, error, message", [
    (lambda p: LanczosLR(torch.optim.Adam([p])), ValueError, "heavy ball"),
    (lambda p: LanczosLR(torch.optim.SGD([p], lr=1.0, momentum=0.9, nesterov=True)), ValueError, "nesterov"),
    (lambda p: LanczosLR(torch.optim.SGD([p], lr=1.0), every=0), ValueError, "every"),
    (lambda p: LanczosLR(torch.optim.SGD([p], lr=1.0), m=1.5), ValueError, "m must"),
    (lambda p: LanczosLR(torch.optim.SGD([p], lr=1.0), floor=0.0), ValueError, "floor"),
    (lambda p: LanczosLR(torch.optim.SGD([p], lr=1.0)).step(lambda: p.sum()), TypeError, "realisation"),
    (lambda p: heavy_ball(1.0, 2.0), ValueError, "smallest"),
])
def test_bad_input_of_lanczos_lr_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(nn.Parameter(torch.ones(2)))


def test_half_precision_is_refused():
    p = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    tuner = LanczosLR(torch.optim.SGD([p], lr=1.0))
    with pytest.raises(ValueError, match="float32 or float64"):
        tuner.step(fl.Smooth(lambda x: (x * x).sum(), p.detach()).bind(p))
