"""Schedules against their formulas, under any torch optimizer, with resume; refinement and its bound; recorded norms; snapshots."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

import fallline as fl
from fallline.core.processes import run_gloo
from fallline.optim.schedules import (
    GradNormRecorder,
    LastIterate,
    LinearDecay,
    Schedule,
    Snapshots,
    Tabulated,
    WarmRestarts,
    last_iterate_bound,
    linear_decay,
    refine,
)

MAKERS = {
    "linear": lambda o: LinearDecay(o, 12, warmup=3),
    "restarts": lambda o: WarmRestarts(o, 3, T_mult=2, eta_min=1e-3, decay_max=0.9),
    "tabulated": lambda o: Tabulated(o, [0.5, 1.0, 0.25] * 4),
    "last-iterate": lambda o: LastIterate(o, 12, "smooth", L=3.0),
    "endless": lambda o: LastIterate(o, setting="strongly_convex", mu=0.5),
}
OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1),
    "ours": lambda groups: fl.optim.Lion(groups, lr=0.1, weight_decay=0.1),
}


def parameter():
    return nn.Parameter(torch.ones(3, dtype=torch.float64))


def sgd(lr=1.0):
    return torch.optim.SGD([parameter()], lr=lr)


def rates(scheduler, steps):
    """The rate of every step."""
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MAKERS)
def test_any_optimizer_with_groups_of_their_own_rate_and_exact_resume(name, optimizer):
    def start():
        params = [parameter(), parameter()]
        made = OPTIMIZERS[optimizer]([{"params": [params[0]]}, {"params": [params[1]], "lr": 0.03}])
        return params, made, MAKERS[name](made)

    def go(params, optimizer, scheduler, first, last):
        seen = []
        for t in range(first, last):
            for p in params:
                p.grad = torch.full_like(p, math.sin(t + 1))
            seen.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            scheduler.step()
        return seen

    whole, half, rest = start(), start(), start()
    assert isinstance(whole[2], LRScheduler)
    seen = go(*whole, 0, 12)
    if name not in ("restarts", "last-iterate"):  # there eta_min and the cap are not in proportion to the base rate
        assert all(b == pytest.approx(0.3 * a) for a, b in seen)
    go(*half, 0, 7)
    file = io.BytesIO()
    torch.save({"optimizer": half[1].state_dict(), "scheduler": half[2].state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    with torch.no_grad():
        for p, q in zip(rest[0], half[0], strict=True):
            p.copy_(q)
    rest[1].load_state_dict(saved["optimizer"])
    rest[2].load_state_dict(saved["scheduler"])
    assert rest[2].get_last_lr() == half[2].get_last_lr()
    assert go(*rest, 7, 12) == seen[7:]
    assert all(torch.equal(a, b) for a, b in zip(whole[0], rest[0], strict=True))
    assert repr(rest[2]) == repr(whole[2]) and "after 12 steps" in repr(whole[2])


@pytest.mark.parametrize("name", ["linear", "tabulated", "last-iterate"])
def test_a_schedule_that_is_over_says_so(name):
    scheduler = MAKERS[name](sgd())
    assert min(rates(scheduler, 12)) > 0
    assert scheduler.get_last_lr() == [0.0]
    with pytest.raises(ValueError, match=r"was made for steps=12 and is over"):
        scheduler.step()
    assert scheduler.last_epoch == 12


def test_a_run_goes_on_from_a_checkpoint(tmp_path):
    problem = fl.problems.least_squares()
    method = lambda: fl.Train(torch.optim.SGD, schedule=lambda o: WarmRestarts(o, 5), lr=0.1)
    whole = fl.solve(problem, method(), fl.Budget(steps=20))
    file = tmp_path / "run.safetensors"
    fl.solve(problem, method(), fl.Budget(steps=8), checkpoint=file)
    rest = fl.solve(problem, method(), fl.Budget(steps=20), checkpoint=file)
    assert torch.equal(whole.x, rest.x)


def test_chained_schedules_follow_torch():
    optimizer = sgd()
    warm = torch.optim.lr_scheduler.ConstantLR(optimizer, 0.5, total_iters=100)
    chained = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, LinearDecay(optimizer, 4)], milestones=[3])
    assert rates(chained, 7) == pytest.approx([0.5] * 3 + [1, 0.75, 0.5, 0.25])


def test_tensor_rates_are_kept_as_tensors():
    optimizer = torch.optim.Adam([parameter()], lr=torch.tensor(0.2))
    scheduler = LinearDecay(optimizer, 4)
    optimizer.step()
    scheduler.step()
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor) and float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.15)


# linear decay and tables


def test_linear_decay_falls_to_its_last_step_after_a_warm_up():
    assert rates(LinearDecay(sgd(2.0), 4), 4) == pytest.approx([2.0, 1.5, 1.0, 0.5])
    assert rates(LinearDecay(sgd(), 7, warmup=3), 7) == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25])
    assert linear_decay(7, 3).values.tolist() == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25])


def test_tables_are_followed_shown_and_plotted():
    schedule = Schedule([0.0, 1.0, 0.5], "mine")
    assert rates(Tabulated(sgd(3.0), schedule), 3) == [0.0, 3.0, 1.5]
    assert (len(schedule), schedule[1]) == (3, 1.0) and "3 steps" in repr(schedule) and "mine" in repr(schedule)
    assert list(schedule.plot().data[0].y) == [0.0, 1.0, 0.5]
    kept = torch.tensor([1.0, 0.5])
    schedule = Schedule(kept)
    kept.zero_()
    assert schedule[0] == 1.0


# warm restarts


@pytest.mark.parametrize(("T_mult", "lengths"), [(2, (5, 10, 20)), (1, (5, 5, 5, 5)), (1.5, (5, 7, 12))])
def test_cycles_are_cosines_from_the_largest_to_the_least_rate(T_mult, lengths):
    base, least, decay = 0.4, 0.01, 0.7
    found = rates(WarmRestarts(sgd(base), 5, T_mult, least, decay), sum(lengths))
    expected = []
    for cycle, length in enumerate(lengths):
        optimizer = sgd(base * decay**cycle)
        expected += rates(CosineAnnealingLR(optimizer, length - 1, eta_min=least), length)
    assert found == pytest.approx(expected, rel=1e-9)
    ends = np.cumsum(lengths)
    assert [found[end - 1] for end in ends] == [least] * len(ends)
    assert [found[end] for end in ends[:-1]] == pytest.approx([base * decay ** (i + 1) for i in range(len(ends) - 1)])


def test_epochs_have_steps_and_the_rate_moves_in_each():
    whole = rates(WarmRestarts(sgd(), 20, 2), 60)
    assert rates(WarmRestarts(sgd(), 2, 2, steps_per_epoch=10), 60) == whole
    assert len(set(whole[:20])) == 20
    assert rates(WarmRestarts(sgd(), 1, 1), 3) == [1.0, 1.0, 1.0]


def test_the_largest_rate_never_falls_below_the_least():
    found = rates(WarmRestarts(sgd(), 3, 1, eta_min=0.5, decay_max=0.1), 9)
    assert min(found) == 0.5 and found[3:] == [0.5] * 6


def test_the_end_of_a_cycle_is_called_once_and_after_a_resume():
    seen = []
    scheduler = WarmRestarts(sgd(), 2, 2, on_cycle_end=lambda cycle: seen.append((cycle, scheduler.last_epoch)))
    rates(scheduler, 5)
    again = WarmRestarts(sgd(), 2, 2, on_cycle_end=lambda cycle: seen.append((cycle, again.last_epoch)))
    again.load_state_dict(scheduler.state_dict())
    rates(again, 9)
    assert seen == [(0, 2), (1, 6), (2, 14)]
    assert again.cycle == 3 and "cycle=3" in repr(again)
    assert "on_cycle_end" not in scheduler.state_dict()


# snapshots


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))


def test_snapshots_average_predictions_and_leave_the_model_alone():
    model, x = network(), torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    snapshots = Snapshots(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scheduler = WarmRestarts(optimizer, 2, 1, on_cycle_end=snapshots)
    copies = []
    for step in range(1, 7):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        scheduler.step()
        if step % 2 == 0:
            copies.append(copy.deepcopy(model).eval())
    before = copy.deepcopy(model.state_dict())
    softmax = lambda z: z.softmax(-1)
    torch.testing.assert_close(snapshots.ensemble(x), torch.stack([m(x) for m in copies]).mean(0).detach())
    torch.testing.assert_close(snapshots.ensemble(x, predict=softmax), torch.stack([softmax(m(x)) for m in copies]).mean(0).detach())
    assert len(snapshots) == 3 and "3 taken" in repr(snapshots)
    assert model.training and all(module.training for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    snapshots.restore(0)
    torch.testing.assert_close(copies[0](x), model.eval()(x))
    twin = Snapshots(network())
    twin.load_state_dict(snapshots.state_dict())
    assert torch.equal(twin.ensemble(x), snapshots.ensemble(x))


def test_snapshots_keep_the_newest_and_refuse_by_name():
    model = network()
    snapshots = Snapshots(model, last=2)
    with pytest.raises(RuntimeError, match="no snapshot yet"):
        snapshots.ensemble(torch.ones(1, 4))
    with pytest.raises(RuntimeError, match="no snapshot yet"):
        snapshots.restore()
    for value in (1.0, 2.0, 3.0):
        nn.init.constant_(model[0].bias, value)
        snapshots(0)
    assert [float(state["0.bias"][0]) for state in snapshots.states] == [2.0, 3.0]
    with pytest.raises(ValueError, match="another model"):
        Snapshots(nn.Linear(4, 3)).load_state_dict(snapshots.state_dict())
    with pytest.raises(TypeError, match="model must be"):
        Snapshots([1])
    with pytest.raises(ValueError, match="last must be"):
        Snapshots(model, last=0)


# refinement


def test_refined_schedules_are_the_formula():
    T = 40
    norms = 1 + torch.rand(T, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).numpy()
    for p, width in ((2, 0.1), (1, 0.1), (2, 0.0), (2, 0.3)):
        half = int(width * T) // 2
        padded = np.concatenate([[norms[0]] * half, norms, norms[::-1][1:half + 1]])
        smooth = np.array([np.median(padded[t:t + 2 * half + 1]) for t in range(T)])
        w = smooth ** -float(p)
        s = np.array([w[t] * w[t + 1:].sum() / w.sum() for t in range(T)])
        np.testing.assert_allclose(refine(norms, p, width).values.numpy(), s / s.max(), rtol=1e-12)


def test_equal_norms_give_linear_decay_and_falling_ones_a_warm_up():
    T = 100
    flat = refine([3.0] * T)
    torch.testing.assert_close(flat.values * (1 - 1 / T), 1 - torch.arange(1, T + 1, dtype=torch.float64) / T)
    assert flat[-1] == 0.0
    falling = refine(torch.logspace(0, -2, T))
    peak = int(falling.values.argmax())
    assert 0 < peak < T - 1 and falling[0] < 0.1 and falling.values[:peak].diff().min() > 0 > falling.values[peak:].diff().max()
    spiky = torch.ones(T)
    spiky[50] = 0.01
    assert torch.equal(refine(spiky).values, refine(torch.ones(T)).values)  # one outlier does not pass the median


def test_the_bound_of_linear_decay_is_the_least_there_is():
    for T in (10, 100):
        assert last_iterate_bound(linear_decay(T), 2.0, 3.0) == pytest.approx(6 / math.sqrt(T + 1), rel=1e-6)
        papers = Schedule([1 - t / T for t in range(1, T + 1)])
        assert last_iterate_bound(papers, 2.0, 3.0) == pytest.approx(6 / math.sqrt(T), rel=1e-6)
        at_best = last_iterate_bound(linear_decay(T), 2.0, 3.0, lr=3.0 / 2.0 * T / (T + 1) / math.sqrt(T + 1))
        assert at_best == pytest.approx(6 / math.sqrt(T + 1), rel=1e-6)
        constant = last_iterate_bound([1.0] * T, 2.0, 3.0)
        assert 6 / math.sqrt(T + 1) < constant < last_iterate_bound([1.0] * T, 2.0, 3.0, lr=1.0)
    norms = torch.logspace(0, -1, 50)
    refined = refine(norms, width=0.0)
    least = 1 / math.sqrt(float((norms.double() ** -2).sum()))
    assert last_iterate_bound(refined, norms, 1.0) == pytest.approx(least, rel=1e-6)
    assert last_iterate_bound(linear_decay(50), norms, 1.0) > least


def test_the_bound_holds_for_the_last_iterate():
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(30, 5, dtype=torch.float64, generator=generator)
    for values in (linear_decay(40).values, torch.ones(40, dtype=torch.float64), torch.rand(40, generator=generator).double() + 0.1):
        for lr in (0.003, 0.02, 0.1):
            x, norms = torch.ones(5, dtype=torch.float64), []
            for s in values:
                g = a.T @ (a @ x).sign()
                norms.append(float(g.norm()))
                x = x - lr * s * g
            last = float((a.T @ (a @ x).sign()).norm())
            bound = last_iterate_bound(values, [max(n, last) if i == 39 else n for i, n in enumerate(norms)], math.sqrt(5), lr=lr)
            assert float((a @ x).abs().sum()) <= bound


# recorded norms


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=0.1), lambda p: torch.optim.Adam(p, lr=0.1),
                                  lambda p: fl.optim.Lion(p, lr=0.1, weight_decay=0.1)])
@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("l1", 1)])
def test_norms_are_over_all_parameters_of_every_step(make, norm, order):
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 4)), nn.Parameter(torch.ones(2))]
    optimizer = make([{"params": params[:1]}, {"params": params[1:]}])
    expected = []
    with GradNormRecorder(optimizer, norm) as record:
        for t in range(5):
            gradients = [torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * t + i)) for i, p in enumerate(params[:2])]
            for p, g in zip(params, gradients, strict=False):
                p.grad = g.clone()
            expected.append(float(torch.cat([g.flatten() for g in gradients]).norm(p=order)))
            optimizer.step()
    optimizer.step()
    assert record.norms.tolist() == pytest.approx(expected, rel=1e-6)
    assert len(record) == 5 and "5 steps" in repr(record)


def test_norms_of_closures_half_precision_and_sparse_gradients():
    p = nn.Parameter(torch.zeros(10_000, dtype=torch.float16))
    optimizer = torch.optim.SGD([p], lr=0.0)

    def closure():
        p.grad = torch.full_like(p, 100.0)
        return torch.tensor(0.0)

    with GradNormRecorder(optimizer, "l1") as record:
        optimizer.step(closure)
    assert record.norms.tolist() == [1e6] and record.norms.dtype is torch.float32
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
    with GradNormRecorder(optimizer) as record:
        optimizer.step()  # no gradient yet
        embedding(torch.tensor([1, 1, 3])).sum().backward()
        optimizer.step()
    assert record.norms.tolist() == pytest.approx([math.sqrt(2 * 4 + 2)])


def test_a_recorder_stops_and_goes_on():
    optimizer = sgd()
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3, dtype=torch.float64)
    record = GradNormRecorder(optimizer)
    assert record.norms.shape == (0,)
    for _ in range(2):
        with record:
            optimizer.step()
            with pytest.raises(RuntimeError, match="recording already"):
                record.__enter__()
        optimizer.step()
    assert record.norms.tolist() == pytest.approx([math.sqrt(3)] * 2)


def sharded_norms(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    found = {}
    for name in ("alone", "sharded"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)).double()
        if name == "sharded":
            fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with GradNormRecorder(optimizer, "l1") as record:
            for t in range(3):
                optimizer.zero_grad()
                model(torch.linspace(-1, 2, 12, dtype=torch.float64).view(4, 3) + t).square().sum().backward()
                optimizer.step()
        found[name] = record.norms
    return found


def test_norms_of_sharded_gradients_are_those_of_the_whole():
    for found in run_gloo(sharded_norms, 2):
        torch.testing.assert_close(found["sharded"], found["alone"])


# last iterate


def test_last_iterate_steps_are_the_formulas():
    T, eta = 9, 0.7
    known = lambda **facts: rates(LastIterate(sgd(eta), T, **facts), T)
    open_ = lambda **facts: rates(LastIterate(sgd(eta), **facts), T)
    steps = range(1, T + 1)
    assert known() == pytest.approx([eta * (T - t + 1) / T**1.5 for t in steps])
    assert open_() == pytest.approx([eta / math.sqrt(t) for t in steps])
    assert known(setting="smooth", L=4.0) == pytest.approx([min(1 / 8, eta * (T - t + 1) / T**1.5) for t in steps])
    assert known(setting="heavy_tailed", p=1.5) == pytest.approx([eta * (T - t + 1) / T ** (1 + 1 / 1.5) for t in steps])
    assert open_(setting="heavy_tailed", p=1.25) == pytest.approx([eta / t**0.8 for t in steps])
    assert open_(setting="strongly_convex", mu=0.5) == pytest.approx([eta / (0.5 * t) for t in steps])
    assert open_(setting="strongly_convex", mu=0.5, L=3.0) == pytest.approx([eta / (0.5 * t + 6) for t in steps])
    half = [eta / (0.5 * t) for t in range(1, 6)]
    assert known(setting="strongly_convex", mu=0.5) == pytest.approx(half + [half[-1] * (T - t + 1) / 5 for t in range(6, T + 1)])
    assert known()[-1] > 0


@pytest.mark.parametrize(("make", "words"), [
    (lambda o: LinearDecay(o, 0), "steps must be a whole number >= 1"),
    (lambda o: LinearDecay(o, 2.5), "steps must be a whole number >= 1"),
    (lambda o: LinearDecay(o, 5, warmup=5), "warmup must be less than steps"),
    (lambda o: linear_decay(5, -1), "warmup must be a whole number >= 0"),
    (lambda o: WarmRestarts(o, 0.5), "T0 must be a finite number >= 1"),
    (lambda o: WarmRestarts(o, 5, 0.5), "T_mult must be a finite number >= 1"),
    (lambda o: WarmRestarts(o, 5, math.nan), "T_mult must be a finite number >= 1"),
    (lambda o: WarmRestarts(o, 5, eta_min=2.0), "eta_min must be a number from 0 to the groups' lr"),
    (lambda o: WarmRestarts(o, 5, decay_max=1.5), r"decay_max must be a number in \(0, 1\]"),
    (lambda o: WarmRestarts(o, 5, steps_per_epoch=0), "steps_per_epoch must be a whole number >= 1"),
    (lambda o: Tabulated(o, []), "values must be a row"),
    (lambda o: Tabulated(o, [0.0, 0.0]), "values must be a row"),
    (lambda o: Tabulated(o, [1.0, -1.0]), "values must be a row"),
    (lambda o: LastIterate(o, 5, "convex"), "setting must be one of"),
    (lambda o: LastIterate(o, 5, "smooth"), "L must be given"),
    (lambda o: LastIterate(o, 5, mu=1.0), "mu must be left out"),
    (lambda o: LastIterate(o, 5, "heavy_tailed", p=1.0), r"p must be in \(1, 2\]"),
    (lambda o: LastIterate(o, 5, "strongly_convex", mu=0.0), "mu must be a finite number > 0"),
    (lambda o: refine([1.0]), "at least two norms"),
    (lambda o: refine([1.0, math.nan]), "grad_norms must be a row"),
    (lambda o: refine([0.0] * 20), "running median of 0"),
    (lambda o: refine([1.0, 2.0], p=0), "p must be a finite number > 0"),
    (lambda o: refine([1.0, 2.0], width=2), "width must be a share"),
    (lambda o: last_iterate_bound([1.0, 0.5], [1.0], 1.0), "G must be"),
    (lambda o: last_iterate_bound([1.0, 0.5], 1.0, 0.0), "D must be"),
    (lambda o: GradNormRecorder(o, "linf"), "norm must be 'l2'"),
])
def test_bad_arguments_are_refused_by_name(make, words):
    with pytest.raises(ValueError, match=words):
        make(sgd())


def test_wrong_kinds_are_refused():
    with pytest.raises(TypeError, match="on_cycle_end"):
        WarmRestarts(sgd(), 5, on_cycle_end="snapshot")
    with pytest.raises(TypeError, match="optimizer"):
        GradNormRecorder(nn.Linear(1, 1))


def test_lists_keep_their_digits():
    assert float(Schedule([0.1, 0.2]).values[0]) == 0.1
    assert refine([1e-50] * 10)[0] == 1.0
