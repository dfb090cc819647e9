"""Which settings are tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pytest

from fallline.core.space import Choice, Integers, LogUniform, Range, Uniform
from fallline.study.tuning import Setting, planned, rounds

SPACE: dict[str, Range] = {
    "lr": LogUniform(1e-4, 1.0),
    "momentum": Uniform(0.0, 0.99),
    "history": Integers(2, 9),
    "period": Integers(1, 100, log=True),
    "kind": Choice("l1", None, (1, 2)),
}


def drive(space: Mapping[str, Range], tune: int, seed: int, score: Callable[[Setting], float]) -> list[list[Setting]]:
    asking, asked = rounds(space, tune, seed), []
    scores: Sequence[float] | None = None
    while True:
        try:
            batch = next(asking) if scores is None else asking.send(scores)
        except StopIteration:
            return asked
        asked.append(batch)
        scores = [score(setting) for setting in batch]


def distance(setting: Setting) -> float:
    return abs(math.log10(setting["lr"]) + 2)


@pytest.mark.parametrize("tune", [1, 2, 3, 8, 21])
def test_as_many_settings_as_planned_all_within_the_space(tune: int) -> None:
    asked = [setting for batch in drive(SPACE, tune, 0, distance) for setting in batch]
    assert len(asked) == planned(SPACE, tune) == tune
    for setting in asked:
        assert 1e-4 <= setting["lr"] <= 1 and 0 <= setting["momentum"] <= 0.99
        assert setting["history"] in range(2, 10) and setting["period"] in range(1, 101)
        assert setting["kind"] in ("l1", None, (1, 2))


def test_the_same_scores_give_the_same_questions() -> None:
    assert drive(SPACE, 14, 3, distance) == drive(SPACE, 14, 3, distance)
    assert drive(SPACE, 14, 3, distance) != drive(SPACE, 14, 4, distance)


def test_later_rounds_follow_the_scores() -> None:
    near = drive({"lr": SPACE["lr"]}, 40, 0, distance)
    late = [distance(setting) for batch in near[5:] for setting in batch]
    even = [distance(setting) for setting in near[0]]
    assert sum(late) / len(late) < 0.6 * sum(even) / len(even)


def test_divergent_settings_do_not_stop_the_search() -> None:
    assert sum(map(len, drive(SPACE, 12, 0, lambda setting: math.inf))) == 12


def test_few_choices_are_all_tried_once() -> None:
    space = {"lr": Choice(0.1, 0.3, 1.0), "nesterov": Choice(False, True)}
    asked = drive(space, 8, 0, lambda setting: 0.0)
    assert len(asked) == 1 and len(asked[0]) == planned(space, 8) == 6
    assert len({tuple(setting.items()) for setting in asked[0]}) == 6


def test_an_empty_space_has_one_setting() -> None:
    assert drive({}, 8, 0, lambda setting: 0.0) == [[{}]]


def test_choices_do_not_repeat_while_others_are_left() -> None:
    space = {"lr": Choice(*(10.0**-k for k in range(10)))}
    asked = [setting["lr"] for batch in drive(space, 8, 0, lambda setting: setting["lr"]) for setting in batch]
    assert len(set(asked)) == len(asked) == 8


def test_options_may_be_equal_or_not_comparable() -> None:
    import torch

    starts = Choice(torch.zeros(2), torch.ones(2))
    space: dict[str, Range] = {"flag": Choice(1, True, 1.0), "start": starts, "lr": LogUniform(1e-3, 1.0)}
    asked = [setting for batch in drive(space, 20, 0, lambda setting: setting["lr"]) for setting in batch]
    assert {type(setting["flag"]) for setting in asked} == {int, bool, float}
    assert {float(setting["start"][0]) for setting in asked} == {0.0, 1.0}


def test_whole_numbers_do_not_repeat_either() -> None:
    few = [s["k"] for batch in drive({"k": Integers(1, 3)}, 8, 0, lambda s: s["k"]) for s in batch]
    assert sorted(few) == [1, 2, 3] and planned({"k": Integers(1, 3)}, 8) == 3
    many = [s["k"] for batch in drive({"k": Integers(1, 10)}, 8, 0, lambda s: s["k"]) for s in batch]
    assert len(set(many)) == 8
