"""Figures and the verdicts they give."""

from __future__ import annotations

import math

import pytest

from fallline.claims import Evidence, Outcome, Verdict, at_least, at_most, between, exactly, judge, recorded

HOLDS, FAILS = at_most("low", 1.0, 2.0), at_most("high", 3.0, 2.0)
UNDECIDED = at_most("either", [1.0, 3.0], 2.0)


@pytest.mark.parametrize(
    ("figure", "outcome"),
    [
        (at_most("x", [0.9, 1.0], 1.0), Outcome.HOLDS),
        (at_most("x", [0.9, 1.1], 1.0), Outcome.INCONCLUSIVE),
        (at_most("x", [1.1, 1.2], 1.0), Outcome.FAILS),
        (at_least("x", [1.1, 1.2], 1.0), Outcome.HOLDS),
        (at_least("x", [0.8, 0.9], 1.0), Outcome.FAILS),
        (at_most("x", [1.0, 2.0, 3.0], [1.5, 2.5, 3.5]), Outcome.HOLDS),
        (at_most("x", [1.0, 2.0, 3.0], [1.5, 1.5, 3.5]), Outcome.INCONCLUSIVE),
        (at_most("x", 1.0, [1.5, 0.5]), Outcome.INCONCLUSIVE),
        (exactly("x", 0.5, 0.5), Outcome.HOLDS),
        (exactly("x", 0.5, 0.5001), Outcome.FAILS),
        (exactly("x", [0.5, 0.52], 0.51, tolerance=0.02), Outcome.HOLDS),
        (between("x", [2.0, 3.0], 1.0, 4.0), Outcome.HOLDS),
        (between("x", [0.5, 4.5], 1.0, 4.0), Outcome.FAILS),
        (between("x", [0.5, 3.0], 1.0, 4.0), Outcome.INCONCLUSIVE),
        (at_most("x", [0.0, 0.0, 0.0, 0.0, 9.0], 1.0), Outcome.INCONCLUSIVE),
        (at_least("x", [0.0] + 99 * [9.0], 1.0), Outcome.INCONCLUSIVE),
        (at_most("x", 5 * [1.0], 1.0), Outcome.HOLDS),
        (recorded("x", math.nan), Outcome.RECORDED),
    ],
)
def test_outcomes(figure: object, outcome: Outcome) -> None:
    assert figure.outcome is outcome  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_measurement_that_is_not_finite_satisfies_nothing(value: float) -> None:
    figures = [at_most("a", value, 1.0), at_least("b", value, 1.0), exactly("c", value, 1.0), between("d", value, 0.0, 1.0)]
    assert {figure.outcome for figure in figures} == {Outcome.FAILS}


@pytest.mark.parametrize(
    ("figures", "verdict"),
    [
        ([HOLDS], Verdict.HOLDS),
        ([FAILS], Verdict.FAILS),
        ([HOLDS, FAILS], Verdict.IN_PART),
        ([HOLDS, UNDECIDED], Verdict.INCONCLUSIVE),
        ([FAILS, UNDECIDED], Verdict.FAILS),
        ([HOLDS, FAILS, UNDECIDED], Verdict.IN_PART),
        ([HOLDS, recorded("r", 9.0)], Verdict.HOLDS),
    ],
)
def test_verdicts(figures: list[object], verdict: Verdict) -> None:
    assert judge(figures) is Evidence(figures).verdict is verdict  # type: ignore[arg-type]


def test_the_verdict_cannot_be_passed_in() -> None:
    with pytest.raises(TypeError):
        Evidence([FAILS], verdict=Verdict.HOLDS)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Evidence([recorded("only", 1.0)]), "can fail"),
        (lambda: Evidence([]), "can fail"),
        (lambda: Evidence([HOLDS, HOLDS]), "low.*twice"),
        (lambda: Evidence([HOLDS], curves={"c": ([1.0], [1.0, 2.0])}), "c.*1 and 2"),
        (lambda: at_most("x", 1.0, math.inf), "cannot fail"),
        (lambda: at_most("x", [1.0], 2.0), "two seeds"),
        (lambda: at_most("x", [1.0, 2.0], [1.0, 2.0, 3.0]), "3 against 2"),
        (lambda: between("x", 1.0, 2.0, 1.0), "ordered"),
        (lambda: exactly("x", 1.0, 1.0, tolerance=math.inf), "tolerance"),
    ],
)
def test_evidence_that_could_not_fail_or_makes_no_sense_is_refused(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()  # type: ignore[operator]
