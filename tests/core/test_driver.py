import functools
import itertools
import math
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import fallline as fl
from fallline.core.errors import CheckpointError, NonFiniteError, WrongProblem
from fallline.core.method import Fitted
from fallline.core.processes import run_gloo
from fallline.core.sets import L2Ball


class Descent(fl.Method):
    """Gradient descent on a realisation a step."""

    def __init__(self, lr=0.1):
        self.lr = lr

    def init(self, problem, key):
        return {"x": problem.x0.clone(), "t": 0, "key": key, "norm": None}

    def step(self, problem, state):
        g = problem.draw(state["key"].fold(state["t"])).gradient(state["x"])
        return {**state, "x": state["x"] - self.lr * g, "t": state["t"] + 1, "norm": g.norm()}

    def report(self, problem, state):
        return fl.Report(state["x"], gap=state["norm"])


def quadratic(d=4):
    return fl.Smooth(lambda x: 0.5 * (x**2).sum(), torch.ones(d, dtype=torch.float64), name="quadratic")


def noisy():
    data = torch.randn(50, 4, dtype=torch.float64, generator=fl.Key(0).generator())
    return fl.FiniteSum(lambda x, a: 0.5 * ((x - a) ** 2).sum(1).mean(), data, torch.zeros(4, dtype=torch.float64),
                        batch_size=5, name="noisy")


def test_budgets_end_a_run_at_the_first_boundary():
    assert fl.solve(quadratic(), Descent(), fl.Budget(steps=7)).nit == 7
    assert fl.solve(quadratic(), Descent(), fl.Budget(steps=7), every=5).nit == 7
    result = fl.solve(noisy(), Descent(), fl.Budget(samples=23))
    assert result.nit == 5 and result.counts == {"gradients": 5, "samples": 25} and "samples" in result.message


def test_rare_reports_do_not_stretch_a_budget():
    result = fl.solve(noisy(), Descent(), fl.Budget(gradients=7), every=50)
    assert result.nit == 7 and result.counts["gradients"] == 7


@pytest.mark.parametrize("limits", [{}, {"steps": 0}, {"gradients": -1}, {"seconds": math.nan}, {"steps": "many"}])
def test_a_budget_of_nothing_is_refused(limits):
    with pytest.raises(ValueError, match="budget"):
        fl.Budget(**limits)


def test_tolerance_is_on_the_reported_gap():
    result = fl.solve(quadratic(), Descent(0.5), fl.Budget(steps=1000), tol=1e-6)
    assert result.success and result.gap <= 1e-6 < result.trace[-2]["gap"]


def test_the_trace_is_thinned_evenly_and_ends_with_the_run():
    result = fl.solve(quadratic(), Descent(), fl.Budget(steps=1003), trace=100)
    steps = [row["step"] for row in result.trace]
    gaps = {b - a for a, b in itertools.pairwise(steps[:-1])}
    assert len(steps) <= 101 and steps[0] == 0 and steps[-1] == 1003 and len(gaps) == 1


def test_observing_is_free():
    result = fl.solve(noisy(), Descent(), fl.Budget(steps=10), observe_every=5)
    assert [row["step"] for row in result.trace if "observed_value" in row] == [0, 5, 10]
    assert result.counts == {"gradients": 10, "samples": 50}


@pytest.mark.parametrize("every, observe_every, steps", [(7, 5, 50), (10, 25, 47), (1, 4, 6)])
def test_observations_come_at_the_first_report_after_they_are_due_and_at_the_end(every, observe_every, steps):
    result = fl.solve(noisy(), Descent(), fl.Budget(steps=steps), every=every, observe_every=observe_every)
    reports, expected, due = [*range(0, steps, every)], [], 0
    for step in reports:
        if step >= due:
            expected.append(step)
            due = (step // observe_every + 1) * observe_every
    assert [row["step"] for row in result.trace if "observed_value" in row] == sorted({*expected, steps})


def test_reported_and_observed_figures_are_apart():
    problem = noisy()
    trained = fl.solve(problem, fl.Train(torch.optim.SGD, lr=0.1), fl.Budget(steps=4), observe_every=2)
    assert trained.fun is None and all("value" not in row for row in trained.trace)
    assert [row["step"] for row in trained.trace if "batch_loss" in row] == [1, 2, 3, 4]
    assert trained.trace[-1]["observed_value"] == float(problem.value(trained.x)) != trained.trace[-1]["batch_loss"]
    assert list(trained.plot().data[0].x) == [0, 2, 4]
    exact = fl.solve(problem, fl.solvers.LazyNewton(), fl.Budget(steps=3), observe_every=1)
    assert all(row["value"] == row["observed_value"] for row in exact.trace)


@pytest.mark.parametrize("stop", [True, np.True_, torch.tensor(True), StopIteration])
def test_a_callback_can_end_the_run(stop):
    def callback(moment):
        if moment.step < 3:
            return torch.tensor(1.0)  # a figure is no answer
        if stop is StopIteration:
            raise StopIteration
        return stop

    result = fl.solve(quadratic(), Descent(), fl.Budget(steps=10), callback=callback)
    assert result.status == "stopped" and result.nit == 3


def test_non_finite_values_end_the_run_with_a_status():
    result = fl.solve(quadratic(), Descent(lr=1e200), fl.Budget(steps=50))
    assert result.status == "nonfinite" and not result.success and result.nit < 5

    class Refuses(Descent):
        def step(self, problem, state):
            raise NonFiniteError("the gradient of 'w' is NaN")

    result = fl.solve(quadratic(), Refuses(), fl.Budget(steps=50))
    assert result.status == "nonfinite" and "'w'" in result.message


@pytest.mark.parametrize("method", [Descent(1.0), fl.Train(torch.optim.SGD, lr=1.0)])
@pytest.mark.parametrize("every", [1, 4])
def test_a_run_that_breaks_returns_the_last_finite_answer_seen(method, every):
    calls = 0

    def breaks(x):
        nonlocal calls
        calls += 1
        return (x**2).sum() / 20 * (math.nan if calls > 10 else 1.0)

    result = fl.solve(fl.Smooth(breaks, torch.ones(3, dtype=torch.float64)), method, fl.Budget(steps=50), every=every)
    seen = 10 if every == 1 else 8
    if isinstance(method, fl.Train):  # reports the loss before the step: only the next report vouches for a solution
        seen -= every
    assert result.status == "nonfinite" and f"step {seen}" in result.message
    torch.testing.assert_close(result.x, torch.full((3,), 0.9**seen, dtype=torch.float64))


@pytest.mark.parametrize("lr", [0.2, 0.3, 0.45])
def test_the_last_finite_answer_has_a_finite_objective(lr):
    problem = fl.Smooth(lambda x: torch.log(x).sum(), torch.ones(3, dtype=torch.float64))
    result = fl.solve(problem, fl.Train(torch.optim.SGD, lr=lr), fl.Budget(steps=50))
    assert result.status == "nonfinite" and result.nit > 1 and torch.isfinite(problem.value(result.x))


def test_a_run_that_breaks_at_once_after_a_checkpoint_answers_with_it(tmp_path):
    broken = False
    problem = fl.Smooth(lambda x: (x**2).sum() * (math.nan if broken and x.requires_grad else 1.0), torch.ones(3))
    train = lambda steps: fl.solve(problem, fl.Train(torch.optim.SGD, lr=0.1), fl.Budget(steps=steps), checkpoint=tmp_path / "c")
    kept = train(4)
    broken = True
    result = train(9)
    assert result.status == "nonfinite" and result.nit == 5 and torch.equal(result.x, kept.x)


def test_a_large_solution_is_checked_at_the_end():
    problem = fl.Smooth(lambda x: (x**2).sum(), torch.ones(20_000))

    class Breaks(Descent):
        def report(self, problem, state):
            return fl.Report(state["x"])

        def step(self, problem, state):
            return {**state, "x": state["x"] * math.nan}

    assert fl.solve(problem, Breaks(), fl.Budget(steps=2)).status == "nonfinite"


def test_interrupts_return_what_is_there():
    def press(moment):
        if moment.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    result = fl.solve(quadratic(), Descent(), fl.Budget(steps=100), callback=press)
    assert result.status == "interrupted" and 4 <= result.nit <= 5 and torch.isfinite(result.x).all()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_goes_on_from_its_checkpoint_exactly(tmp_path):
    path = tmp_path / "run.safetensors"
    whole = fl.solve(noisy(), Descent(), fl.Budget(steps=20))
    fl.solve(noisy(), Descent(), fl.Budget(steps=8), checkpoint=path)
    rest = fl.solve(noisy(), Descent(), fl.Budget(steps=20), checkpoint=path)
    assert torch.equal(whole.x, rest.x) and whole.counts == rest.counts
    drop = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    assert drop(whole.trace) == drop(rest.trace)


@pytest.mark.parametrize("stop", [8, 9, 14])
def test_the_trace_does_not_show_where_a_run_was_stopped(tmp_path, stop):
    options = {"every": 7, "observe_every": 3, "trace": 4}
    whole = fl.solve(noisy(), Descent(), fl.Budget(steps=40), **options)
    fl.solve(noisy(), Descent(), fl.Budget(steps=stop), checkpoint=tmp_path / "c", **options)
    rest = fl.solve(noisy(), Descent(), fl.Budget(steps=40), checkpoint=tmp_path / "c", **options)
    drop = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    assert drop(whole.trace) == drop(rest.trace)


@pytest.mark.parametrize("where", ["step", "callback"])
def test_a_run_that_raises_keeps_its_last_whole_state(tmp_path, where):
    calls, working = 0, noisy()

    def breaks(x, a):
        nonlocal calls
        calls += 1
        if where == "step" and calls == 7:
            raise RuntimeError("the disk is gone")
        return working_fun(x, a)

    def callback(moment):
        if where == "callback" and moment.step == 5:
            raise RuntimeError("the disk is gone")

    working_fun = lambda x, a: 0.5 * ((x - a) ** 2).sum(1).mean()
    data = torch.randn(50, 4, dtype=torch.float64, generator=fl.Key(0).generator())
    problem = fl.FiniteSum(breaks, data, working.x0, batch_size=5, name="noisy")
    with pytest.raises(RuntimeError, match="disk"):
        fl.solve(problem, Descent(), fl.Budget(steps=20), checkpoint=tmp_path / "c", callback=callback)
    rest = fl.solve(working, Descent(), fl.Budget(steps=20), checkpoint=tmp_path / "c")
    whole = fl.solve(working, Descent(), fl.Budget(steps=20))
    assert torch.equal(rest.x, whole.x) and rest.counts == whole.counts


class InPlace(Descent):
    """Descent that consumes its state, and breaks off once in the middle of its seventh step, or in its report."""

    def __init__(self, where, error):
        super().__init__()
        self.where, self.errors = where, [error]

    def step(self, problem, state):
        g = problem.draw(state["key"].fold(state["t"])).gradient(state["x"])
        state["x"] -= self.lr * g
        if self.where == "step" and state["t"] == 6 and self.errors:
            raise self.errors.pop()
        state["t"] += 1
        return state

    def report(self, problem, state):
        if self.where == "report" and state["t"] == 6 and self.errors:
            raise self.errors.pop()
        return fl.Report(state["x"])

    def __repr__(self):
        return "InPlace"


@pytest.mark.parametrize("seconds", [0, 60])
@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["step", "report", "callback"])
def test_what_a_broken_run_leaves_goes_on_exactly(tmp_path, where, error, seconds):
    def callback(moment):
        if where == "callback" and moment.step == 6:
            raise error

    path, budget = tmp_path / "c", fl.Budget(steps=12)
    method = InPlace(where, error)
    fl.solve(noisy(), method, fl.Budget(steps=3), checkpoint=path)
    before = path.read_bytes()
    broken = lambda: fl.solve(noisy(), method, budget, checkpoint=path, checkpoint_seconds=seconds, callback=callback)
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError, match="broken"):
            broken()
    else:
        assert broken().status == "interrupted"
    assert (path.read_bytes() == before) == (where == "step" and seconds == 60)
    rest, whole = fl.solve(noisy(), method, budget, checkpoint=path), fl.solve(noisy(), method, budget)
    assert torch.equal(rest.x, whole.x) and rest.counts == whole.counts and rest.nit == whole.nit


def test_a_failing_save_does_not_hide_the_exception(tmp_path):
    class Unpackable(Descent):
        def pack(self, state):
            raise ZeroDivisionError

    def callback(moment):
        raise ValueError("the callback's own")

    with pytest.raises(ValueError, match="the callback's own"):
        fl.solve(quadratic(), Unpackable(), checkpoint=tmp_path / "c", callback=callback)


class BreaksOff(torch.optim.SGD):
    """Interrupted in its eighth step, after the parameters moved."""

    steps = 0

    def step(self, closure=None):
        loss = super().step(closure)
        self.steps += 1
        if self.steps == 8:
            raise KeyboardInterrupt
        return loss


@pytest.mark.parametrize("every, answer", [(1, 7), (3, 6)])
def test_a_run_interrupted_inside_a_step_answers_with_the_last_solution_seen(every, answer):
    result = fl.solve(quadratic(), fl.Train(BreaksOff, lr=0.1), fl.Budget(steps=20), every=every, observe_every=1)
    exact = fl.solve(quadratic(), fl.Train(torch.optim.SGD, lr=0.1), fl.Budget(steps=answer))
    assert result.status == "interrupted" and result.nit == 7 and f"the answer is that of step {answer}" in result.message
    assert torch.equal(result.x, exact.x)
    assert result.trace[-1]["observed_value"] == float(quadratic().value(exact.x))


def test_a_large_run_interrupted_inside_a_step_says_that_it_may_be_half_taken():
    result = fl.solve(quadratic(20_000), fl.Train(BreaksOff, lr=0.1), fl.Budget(steps=20))
    assert result.status == "interrupted" and "inside step 8, which the answer may have half taken" in result.message


def test_a_checkpoint_of_another_objective_is_refused(tmp_path):
    def run(fun, x0=(1.0, 1.0), problem=fl.Smooth, steps=5):
        start = torch.tensor(x0, dtype=torch.float64)
        return fl.solve(problem(fun, start, name="fun"), Descent(0.01), fl.Budget(steps=steps), checkpoint=tmp_path / "c")

    run(lambda x: (x**4).sum())
    with pytest.raises(CheckpointError, match=r"observation at the starting point.*2\.0.*32\.0"):
        run(lambda x: ((x - 3) ** 4).sum())
    with pytest.raises(CheckpointError, match="starting point"):
        run(lambda x: (x**4).sum(), (1.0, 2.0))
    with pytest.raises(CheckpointError, match=r"kind is 'smooth'.*'other'"):
        run(lambda x: (x**4).sum(), problem=lambda *a, **o: fl.Smooth(*a, **o, kind="other"))
    assert run(lambda x: (x**4).sum(), steps=9).nit == 9


def test_a_problem_without_a_value_can_be_kept(tmp_path):
    make = lambda: fl.Problem(torch.ones(2), {"gradient": lambda x: x}, kind="smooth")
    fl.solve(make(), Descent(), fl.Budget(steps=3), checkpoint=tmp_path / "c")
    rest = fl.solve(make(), Descent(), fl.Budget(steps=6), checkpoint=tmp_path / "c")
    assert torch.equal(rest.x, fl.solve(make(), Descent(), fl.Budget(steps=6)).x)


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder; give a file in it"):
        fl.solve(quadratic(), Descent(), fl.Budget(steps=3), checkpoint=tmp_path)


@pytest.mark.parametrize("make", [
    lambda: fl.Saddle(lambda x, y: x @ y, torch.ones(2), torch.ones(2)),
    lambda: fl.Bilevel(lambda x, y: x @ y, lambda x, y: y @ y, torch.ones(2), torch.ones(2)),
    lambda: fl.Constrained(quadratic(), L2Ball(1.0)),
])
def test_a_method_of_plain_minimisation_is_refused_where_its_step_solves_nothing(make):
    problem = make()
    for method in (Descent(), fl.Train(torch.optim.SGD, lr=0.1)):
        with pytest.raises(WrongProblem, match=rf"unconstrained minimisation.*a {problem.kind} problem"):
            fl.solve(problem, method)


def test_a_killed_run_loses_only_what_came_after_its_checkpoint(tmp_path):
    script = textwrap.dedent("""
        import os, sys, torch, fallline as fl
        sys.path.insert(0, sys.argv[2])
        from test_driver import Descent, noisy
        def die(moment):
            if moment.step == 9:
                os.kill(os.getpid(), 9)
        fl.solve(noisy(), Descent(), fl.Budget(steps=20), checkpoint=sys.argv[1], checkpoint_seconds=0, callback=die)
    """)
    path = tmp_path / "run.safetensors"
    done = subprocess.run([sys.executable, "-c", script, str(path), os.path.dirname(__file__)])
    assert done.returncode == -9 and path.exists()
    rest = fl.solve(noisy(), Descent(), fl.Budget(steps=20), checkpoint=path)
    assert torch.equal(rest.x, fl.solve(noisy(), Descent(), fl.Budget(steps=20)).x)


def test_a_checkpoint_of_another_run_or_a_corrupt_one_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    fl.solve(noisy(), Descent(), fl.Budget(steps=3), checkpoint=path)
    with pytest.raises(CheckpointError, match=r"method.*lr=0\.1.*lr=0\.2"):
        fl.solve(noisy(), Descent(0.2), fl.Budget(steps=5), checkpoint=path)
    with pytest.raises(CheckpointError, match="key"):
        fl.solve(noisy(), Descent(), fl.Budget(steps=5), checkpoint=path, key=1)
    cosine = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2)
    trained = tmp_path / "trained.safetensors"
    fl.solve(quadratic(), fl.Train(torch.optim.SGD, lr=0.1), fl.Budget(steps=3), checkpoint=trained)
    with pytest.raises(CheckpointError, match=r"method.*schedule=.*lambda"):
        fl.solve(quadratic(), fl.Train(torch.optim.SGD, schedule=cosine, lr=0.1), fl.Budget(steps=5), checkpoint=trained)
    halving = lambda factor: functools.partial(torch.optim.lr_scheduler.StepLR, step_size=5, gamma=factor)
    scheduled = lambda factor: fl.Train(torch.optim.SGD, schedule=halving(factor), lr=0.1)
    fl.solve(quadratic(), scheduled(0.5), fl.Budget(steps=3), checkpoint=tmp_path / "scheduled")
    with pytest.raises(CheckpointError, match=r"schedule is 'StepLR.*gamma: 0\.5.*gamma: 0\.9"):
        fl.solve(quadratic(), scheduled(0.9), fl.Budget(steps=5), checkpoint=tmp_path / "scheduled")
    assert fl.solve(quadratic(), scheduled(0.5), fl.Budget(steps=5), checkpoint=tmp_path / "scheduled").nit == 5
    made = lambda optimizer, lr: fl.Train(lambda parameters: optimizer(parameters, lr=lr))
    fl.solve(quadratic(), made(torch.optim.SGD, 0.1), fl.Budget(steps=3), checkpoint=tmp_path / "made")
    for other in (made(torch.optim.Adam, 0.1), made(torch.optim.SGD, 0.2)):
        with pytest.raises(CheckpointError, match=r"optimizer is 'SGD of .*lr: 0\.1"):
            fl.solve(quadratic(), other, fl.Budget(steps=5), checkpoint=tmp_path / "made")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=r"cannot read.*run\.safetensors.*delete it"):
        fl.solve(noisy(), Descent(), fl.Budget(steps=5), checkpoint=path)


def test_a_failed_write_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    fl.solve(noisy(), Descent(), fl.Budget(steps=3), checkpoint=path)
    before = path.read_bytes()

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        fl.solve(noisy(), Descent(), fl.Budget(steps=6), checkpoint=path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_an_inner_run_shares_the_counts_and_the_budget():
    class Outer(Descent):
        def step(self, problem, state):
            inner = fl.solve(quadratic(), Descent(), fl.Budget(steps=10), within=problem)
            return {**state, "t": state["t"] + 1, "x": inner.x}

    result = fl.solve(quadratic(), Outer(), fl.Budget(gradients=25))
    assert result.counts == {"gradients": 25} and result.nit == 3


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match="Smooth"):
        fl.solve(lambda x: x, Descent())
    with pytest.raises(TypeError, match="Train"):
        fl.solve(quadratic(), torch.optim.SGD)
    with pytest.raises(ValueError, match="every"):
        fl.solve(quadratic(), Descent(), every=0)
    with pytest.raises(WrongProblem, match="bilevel"):
        fl.solve(quadratic(), fl.bilevel.F2SA())
    for options, message in (({"observe_every": 0}, "observe_every must be a whole number of at least 1, got 0"),
                             ({"budget": 100}, r"budget must be a Budget, got 100; Budget\(steps=100\)"),
                             ({"budget": {"steps": 3}}, "budget must be a Budget"), ({"within": 3}, "within must be the Problem"),
                             ({"tol": "a"}, "tol must be a number"), ({"callback": 3}, "callback must be a function")):
        with pytest.raises((TypeError, ValueError), match=message):
            fl.solve(quadratic(), Descent(), **options)


def test_a_tolerance_that_cannot_act_is_warned_of():
    with pytest.warns(UserWarning, match=r"tol=0.001 has no effect: Train\(SGD, lr=0.1\) reports no gap"):
        fl.solve(quadratic(), fl.Train(torch.optim.SGD, lr=0.1), fl.Budget(steps=3), tol=1e-3)


def test_results_show_and_plot_themselves():
    result = fl.solve(quadratic(), Descent(), fl.Budget(steps=30))
    assert "budget" in repr(result) and "30 gradients" in repr(result)
    figure = result.plot()
    assert figure.layout.yaxis.type == "log" and len(figure.data[0].x) == 30
    assert list(result.to_frame()["step"]) == list(range(31))
    with pytest.raises(ValueError, match="colour"):
        result.plot(y="colour")


def test_minimize_has_scipys_names():
    result = fl.minimize(lambda x: ((x - 3) ** 2).sum(), [1.0, 2.0] and torch.tensor([1, 2]), tol=1e-9)
    assert result.success and result.nit > 0 and result.nfev > 0 and result.nhev > 0
    torch.testing.assert_close(result.x, torch.full((2,), 3.0, dtype=torch.float64))
    assert fl.minimize(lambda x: (x**2).sum(), torch.ones(2), "consensus-hopping", maxiter=3).nit == 3


def test_fitted_is_a_problem_a_method_and_a_wrapper():
    mean = Fitted(lambda data: fl.Smooth(lambda x: ((x - data) ** 2).mean(), torch.zeros(())), Descent(0.5),
                  wrap=lambda result: round(float(result.x), 3))
    assert mean.fit(torch.tensor([1.0, 3.0]), budget=fl.Budget(steps=60)) == 2.0


class Uneven(Descent):
    """Ends on rank 1 only, in one of several ways."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def step(self, problem, state):
        if self.how == "raises" and state["t"] == 4:
            raise NonFiniteError("the gradient is NaN")
        if self.how == "interrupted" and state["t"] == 4:
            raise KeyboardInterrupt
        return super().step(problem, state)

    def report(self, problem, state):
        report = super().report(problem, state)
        return fl.Report(report.solution, gap=0.0 if self.how == "converges" and state["t"] >= 4 else 1.0)


def presses(moment):
    if moment.step == 4:
        raise KeyboardInterrupt


CALLBACKS = {"callback": lambda moment: moment.step == 4, "pressed in a callback": presses}
WAYS = {"small budget": "budget", "callback": "stopped", "converges": "converged", "raises": "nonfinite", "runs on": "budget",
        "interrupted": "interrupted", "pressed in a callback": "interrupted"}


def together(rank, how, folder):
    """Two processes, of which the second has a reason to stop at step 4 (or fails in step 5)."""
    mine = how if rank == 1 else "runs on"
    budget = fl.Budget(steps=4 if mine == "small budget" else 9)
    path = os.path.join(folder, how)
    result = fl.solve(quadratic(), Uneven(mine), budget, tol=1e-3, callback=CALLBACKS.get(mine), checkpoint=path,
                      every=3 if how == "small budget" else 1, group=torch.distributed.group.WORLD)
    return {"status": result.status, "steps": result.nit, "message": result.message, "last": float(result.trace[-1]["step"]),
            "kept": os.path.exists(f"{path}.rank{rank}")}


def every_way(rank, folder):
    return {how: together(rank, how, folder) for how in WAYS}


def test_processes_agree_on_when_to_stop(tmp_path):
    first, second = run_gloo(every_way, 2, str(tmp_path))
    for how, status in WAYS.items():
        inside = how in ("raises", "interrupted")
        one, two = first[how], second[how]
        assert one["status"] == two["status"] == status
        assert two["steps"] == (9 if how == "runs on" else 4)
        # The process that failed did so inside its fifth step; the other one had taken it.
        assert one["steps"] == two["steps"] + inside
        assert one["kept"] == two["kept"] == (not inside)
        assert inside or one["last"] == two["last"] == one["steps"]
    assert "another process" in first["raises"]["message"] and "NaN" in second["raises"]["message"]
