"""What tells inputs apart: two trials share an id exactly if they are the same run."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sides import PROBLEM, SGD, Notes

import fallline as fl
from fallline.core import registry
from fallline.core.method import Train
from fallline.core.space import LogUniform
from fallline.core.terms import L1
from fallline.study import Contender, Memory, runs
from fallline.study.identity import fingerprint, problem_identity
from fallline.study.sources import problem_spec

SPACE = {"lr": LogUniform(1e-3, 1e-1)}
DATA = torch.arange(20.0).reshape(10, 2), torch.arange(10.0).reshape(10, 1)


def training(inputs: torch.Tensor = DATA[0], targets: torch.Tensor = DATA[1], batch_size: int = 2, seed: int = 0) -> fl.Training:
    torch.manual_seed(seed)
    held_out, loss = (torch.ones(5, 2), torch.ones(5, 1)), torch.nn.functional.mse_loss
    return fl.Training(torch.nn.Linear(2, 1), loss, (inputs, targets), validation=held_out, batch_size=batch_size)


def finite_sum(data: torch.Tensor = DATA[0], batch_size: int = 2, power: int = 2) -> fl.Problem:
    observer = lambda problem, x: {"loss": float(x.sum())}
    return fl.FiniteSum(lambda x, a: ((x - a) ** power).mean(), data, torch.ones(2), batch_size=batch_size, name="p", observer=observer)


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (training, {"inputs": 100 * DATA[0]}),
        (training, {"targets": DATA[1].flip(0)}),
        (training, {"batch_size": 5}),
        (training, {"seed": 1}),
        (finite_sum, {"data": DATA[0].flip(0)}),
        (finite_sum, {"batch_size": 5}),
        (finite_sum, {"power": 4}),
    ],
)
def test_problems_that_differ_anywhere_are_told_apart(make: Callable[..., fl.Problem], changes: dict[str, Any]) -> None:
    assert problem_identity(make()) == problem_identity(make())
    assert problem_identity(make()) != problem_identity(make(**changes))
    assert problem_spec(make()).identity != problem_spec(make(**changes)).identity


def test_asking_for_an_identity_counts_nothing_and_draws_nothing() -> None:
    problem = finite_sum()
    before = torch.get_rng_state()
    problem_identity(problem)
    assert not problem.counts and torch.equal(before, torch.get_rng_state())


def bilevel() -> fl.Problem:
    start = torch.ones(2), torch.zeros(2)
    return fl.Bilevel(lambda x, y: (y**2).sum() + (x**2).sum(), lambda x, y: ((y - x) ** 2).sum(), *start)


def composite() -> fl.Problem:
    return fl.Composite(finite_sum(), L1(0.1))


CHILDREN = [(bilevel, ["upper", "lower"]), (composite, ["smooth"]), (finite_sum, []), (training, [])]


@pytest.mark.parametrize(("make", "children"), CHILDREN)
def test_evaluating_a_problem_or_its_children_does_not_change_what_it_is(
    make: Callable[[], fl.Problem], children: list[str]
) -> None:
    problem = make()
    before = problem_identity(problem)
    for part in [getattr(problem, child) for child in children] or [problem]:
        part.gradient(part.x0)
    assert problem_identity(problem) == before


def test_functions_of_the_seed_are_told_apart_by_what_they_hold() -> None:
    made = [problem_spec(functools.partial(at_seed, scale=scale)).identity for scale in (1.0, 2.0, 1.0)]
    assert made[0] == made[2] != made[1]


def at_seed(seed: int, scale: float) -> fl.Problem:
    return fl.Smooth(lambda x: scale * seed * (x**2).sum(), torch.ones(2), name="q")


def test_factories_that_share_a_name_do_not_share_trials() -> None:
    plain = Contender("plain", factory=lambda **k: Train(torch.optim.SGD, **k), space=SPACE)
    adam = Contender("adam!", factory=lambda **k: Train(torch.optim.Adam, **k), space=SPACE)
    both = runs(PROBLEM, [plain, adam], tune=2, seeds=2)
    assert both["plain"].values != both["adam!"].values
    assert both["adam!"].values == runs(PROBLEM, [adam], tune=2, seeds=2)["adam!"].values


def test_a_new_factory_under_an_old_label_runs_anew_and_so_does_a_new_label() -> None:
    storage, old, new, renamed = Memory(), Notes(), Notes(), Notes()
    for factory, label, notes in ((torch.optim.SGD, "a", old), (torch.optim.Adam, "a", new), (torch.optim.SGD, "b", renamed)):
        side = Contender("side", factory=lambda made=factory, **k: Train(made, **k), space=SPACE, label=label)
        runs(PROBLEM, [side], tune=1, seeds=1, storage=storage, watcher=notes)
    assert len(old.run) == len(new.run) == len(renamed.run) == 2


def test_fixed_hyperparameters_are_told_apart_by_their_content() -> None:
    def ids(**fixed: Any) -> set[str]:
        side = Contender("held", factory=holding, fixed={"lr": 0.01, **fixed}, space={})
        return {record.id for record in runs(PROBLEM, [side], tune=0, seeds=1).records}

    long = torch.zeros(2_000)
    changed = long.clone()
    changed[1_000] = 1.0
    assert ids(held=long) == ids(held=long.clone()) != ids(held=changed)
    assert ids(held=lambda t: 1.0) == ids(held=lambda t: 1.0) != ids(held=lambda t: 2.0)
    assert ids(held=replace(SGD)) == ids(held=SGD)


def holding(lr: float, held: Any) -> Train:
    return Train(torch.optim.SGD, lr=lr)


THINGS = """
import torch
from fallline.study.identity import fingerprint
class Held:
    def __init__(self): self.names = {"a", "b", "c"}
def outer(k):
    def inner(x, p={"y", "z"}): return k * helper(x) if x in {"u", "v", "w"} else p
    return inner
def helper(x): return x + 1
print(fingerprint(outer(3)), fingerprint(Held()), fingerprint(torch.optim.SGD), fingerprint([torch.float32, object()]))
"""


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    def printed(code: str, seed: str) -> list[bytes]:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout.split()

    first = printed(THINGS, "1")
    assert first == printed(THINGS, "2")
    assert first[0] != printed(THINGS.replace("x + 1", "x + 2"), "1")[0]


def test_what_refers_to_itself_has_a_fingerprint() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    assert fingerprint(loop) == fingerprint(loop) != fingerprint([1, [1]])


CLASSES = """
import functools, torch
from fallline.core.method import Train
SCALE = 1.0
class Base(torch.optim.SGD):
    momentum = 0.5
    betas = (0.1, 0.2)
    def step(self, closure=None):
        return super().step(closure)
    @classmethod
    def make(cls, p): return cls(p, lr=0.1)
    @staticmethod
    def decay(t): return 1 / t
    @property
    def rate(self): return self.param_groups[0]["lr"] * 3
class Own(Base):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr * SCALE)
class Slow(Train):
    def report(self, problem, state): return super().report(problem, state)
"""
EDITS = [("lr=lr * SCALE", "lr=lr * SCALE * 2"), ("SCALE = 1.0", "SCALE = 2.0"), ("closure)", "None)"),
         ("momentum = 0.5", "momentum = 0.6"), ("(0.1, 0.2)", "(0.1, 0.3)"),
         ("lr=0.1)\n    @", "lr=0.2)\n    @"), ("1 / t", "2 / t"), ("* 3", "* 4")]


def module(folder: Path, text: str) -> Any:
    """The text as a module, always of the same name."""
    file = folder / f"{abs(hash(text))}.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location("edited", file)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize(("old", "new"), EDITS)
def test_a_class_whose_code_or_whose_bases_change_is_another(tmp_path: Path, old: str, new: str) -> None:
    first, again, edited = (module(tmp_path, text).Own for text in (CLASSES, CLASSES, CLASSES.replace(old, new)))
    assert CLASSES.count(old) == 1
    assert fingerprint(first) == fingerprint(again) != fingerprint(edited)
    assert fingerprint(first([torch.ones(1)])) != fingerprint(edited([torch.ones(1)]))


def test_an_edited_method_runs_anew(tmp_path: Path) -> None:
    storage, counts = Memory(), []
    for text in (CLASSES, CLASSES, CLASSES.replace("return super().report", "state = dict(state); return super().report")):
        notes, side = Notes(), Contender("slow", factory=module(tmp_path, text).Slow, fixed={"optimizer": torch.optim.SGD, "lr": 0.01},
                                         space={})
        runs(PROBLEM, [side], seeds=2, storage=storage, watcher=notes)
        counts.append(len(notes.run))
    assert counts == [2, 0, 2]


def test_a_registered_class_is_told_apart_by_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for text in (CLASSES, CLASSES, CLASSES.replace("1 / t", "2 / t")):
        monkeypatch.setitem(registry._classes, "own", module(tmp_path, text).Own)
        found.append(Contender("own").identity)
    assert found[0] == found[1] != found[2]


def test_making_an_optimizer_does_not_change_what_its_class_is(tmp_path: Path) -> None:
    own = module(tmp_path, CLASSES).Own
    base, before = own.__base__, fingerprint(own)
    for made in (own, base):
        made([torch.ones(1, requires_grad=True)])
        assert fingerprint(own) == before
