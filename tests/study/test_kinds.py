"""Every kind of problem, and the user's own files and methods; what a run counted becomes its cost axes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fallline as fl
from fallline.cli.beginning import kinds
from fallline.study import Contender, StudyError, compare, methods
from fallline.study.curves import axes

TEMPLATES = Path(importlib.util.find_spec("fallline.cli").origin).parent / "templates"  # type: ignore[union-attr, arg-type]
METHODS = {
    "training": ("adamw", "loss", "gradients"),
    "function": ("lazy-cubic-newton", "gap", "hessians"),
    "finite-sum": ("sgd", "value", "samples"),
    "linear-system": ("{file}:Descent", "residual_norm", "matvecs"),
    "fixed-point": ("halpern", "residual_norm", "maps"),
    "bilevel": ("f2sa", "upper", "gradients"),
    "game": ("{file}:Extragradient", "residual_norm", "gradients"),
    "black-box": ("blackbox", "gap", "values"),
}


@pytest.mark.parametrize("kind", kinds())
def test_a_new_problem_of_every_kind_is_compared_as_it_is(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "my_problem.py"
    file.write_text((TEMPLATES / f"{kind}.py").read_text())
    method, metric, counted = METHODS[kind]
    found = compare(file, [method.format(file=file)], tune=2, seeds=2, progress=False)
    assert found.table.terms.metric == metric and counted in axes(found.table)
    assert any(row.finished for row in found.leaderboard) and found.errors == {}
    with_axis = compare(file, [method.format(file=file)], tune=2, seeds=2, axis=counted, progress=False)
    assert with_axis.spending == counted and with_axis.spent(with_axis.leaderboard[0]) > 0
    assert with_axis.report(tmp_path / "report.html").stat().st_size > 10_000


def test_all_and_a_room_are_the_methods_that_fit() -> None:
    def chosen(wanted: object, problem: str) -> list[object]:
        return methods.chosen(wanted, fl.problems.make(problem))  # type: ignore[arg-type]

    assert {"sgd", "lazy-newton", "adamw"} < set(chosen("all", "rosenbrock")) and "f2sa" not in chosen("all", "rosenbrock")
    *room, last, one = chosen(["solvers", "adamw", "sgd"], "rosenbrock")
    assert {"lazy-cubic-newton", "lazy-newton"} <= set(room) and (last, one) == ("adamw", "sgd")
    first = set(chosen("all-first-order", "digits-mlp"))
    assert {"sgd", "lion", "mars", "grad-reg", "xgrad"} < first and not {"sophia", "oasis", "consensus-based", "lazy-newton"} & first
    assert {"shampoo", "lion"} < set(chosen("all", "digits-mlp")) and "lazy-newton" not in chosen("all", "digits-mlp")
    with pytest.raises(StudyError, match="no registered method of 'bilevel' can solve problem 'rosenbrock'"):
        chosen("bilevel", "rosenbrock")


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("no/such.py:Thing", "no/such.py"),
        ("no_such_module:Thing", "no_such_module"),
        ("{file}:Nothing", "defines Extragradient"),
    ],
)
def test_a_wrong_location_says_what_is_there(location: str, said: str) -> None:
    file = TEMPLATES / "game.py"
    with pytest.raises(StudyError, match=said):
        compare(file, [location.format(file=file)], progress=False)


def test_an_own_method_runs_in_workers(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text((TEMPLATES / "game.py").read_text())
    one, two = (compare(file, [f"{file}:Extragradient"], tune=2, seeds=2, workers=n, progress=False) for n in (1, 2))
    assert [r.value for r in one.table.records] == [r.value for r in two.table.records]
    assert one.to_dict()["leaderboard"][0]["method"] == "extragradient"


def test_a_torch_optimizer_that_states_no_space_is_tuned_like_the_others() -> None:
    assert Contender("sgd", factory=torch.optim.SGD).ranges == {"lr": fl.LogUniform(1e-5, 1.0)}
    assert Contender("sgd", factory=torch.optim.SGD, fixed={"lr": 0.1}).ranges == {}
    assert Contender("sgd", factory=torch.optim.SGD, space={}).ranges == {}
    assert Contender("dog").ranges == {} and Contender("lbfgs", factory=torch.optim.LBFGS).ranges != {}


def test_state_is_what_the_method_keeps_and_not_the_networks_buffers() -> None:
    class Masked(torch.nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 2)
            self.register_buffer("mask", torch.ones(50, 50), persistent=False)

    model = torch.nn.Sequential(Masked(), torch.nn.BatchNorm1d(2))
    data = torch.randn(8, 4), torch.randint(2, (8,))
    problem = fl.Training(model, torch.nn.functional.cross_entropy, data, batch_size=4, budget=fl.Budget(steps=3))
    sides = [Contender("plain", factory=torch.optim.SGD, fixed={"lr": 0.1}), Contender("adamw", fixed={"lr": 0.1})]
    found = compare(problem, sides, tune=0, seeds=1, progress=False)
    weights = sum(p.numel() for p in model.parameters())
    assert {row.method: row.state_bytes for row in found.leaderboard} == {"plain": 0, "adamw": 2 * 4 * weights}


class Averaged(fl.Method):
    """Gradient descent over two processes, each with the gradient of its own half, averaged by an all-reduce."""

    processes = 2

    def init(self, problem: fl.Problem, key: fl.Key) -> dict[str, torch.Tensor]:
        return {"x": problem.x0.clone()}

    def step(self, problem: fl.Problem, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        gradient = problem.gradient(state["x"]) * (rank + 1)
        torch.distributed.all_reduce(gradient)
        return {"x": state["x"] - 0.1 * gradient / (world * (world + 1) / 2)}

    def report(self, problem: fl.Problem, state: dict[str, torch.Tensor]) -> fl.Report:
        return fl.Report(state["x"])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_method_of_several_processes_gets_them(workers: int) -> None:
    from sides import PROBLEM

    plain = Contender("plain", factory=torch.optim.SGD, fixed={"lr": 0.1})
    found = compare(PROBLEM, [Contender("averaged", factory=Averaged), plain], fl.Budget(steps=4), tune=0, seeds=1,
                    workers=workers, progress=False)
    assert found.errors == {}
    assert found.table["averaged"].values == pytest.approx(found.table["plain"].values, rel=1e-5)


def test_new_problem_writes_a_file_once(tmp_path: Path) -> None:
    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fallline.cli", "new-problem", *more]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert run().returncode == 0 and "def problem(seed: int)" in (tmp_path / "my_problem.py").read_text()
    assert "exists" in run().stderr and run("--force", "--kind", "game").returncode == 0
    assert "Saddle" in (tmp_path / "my_problem.py").read_text()
    assert "did you mean 'game'" in run("other.py", "--kind", "gme").stderr
    assert run("other.txt").returncode == 2 and run("no/such/folder.py").returncode == 2
