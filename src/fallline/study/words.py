"""A comparison in sentences: who won or that nobody did, what each side was given, and what limits the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fallline.core.space import Choice, Range
from fallline.study.leaderboard import Row, not_told_apart, winner
from fallline.study.numbers import budget_text, by_factor, joined, p_text, plain, quantity, range_text, short
from fallline.study.significance import FEWEST, LEVEL
from fallline.study.table import RunTable, Side

SAME = 1.05
"""Sides whose spending differs by less than this factor have spent the same: the last step of a run may overshoot."""
EDGE = 0.03
"""A setting within this share of its range from an end lies at the end."""
MANY = 5


def outcome(table: RunTable, rows: Sequence[Row]) -> str:
    """Who won or that nobody did, by how much, against which spread."""
    rows = list(rows)
    leaders, metric, best = not_told_apart(rows), table.terms.metric, rows[0]
    if not leaders:
        return "Every method diverged or failed, so there is nothing to rank."
    if len(rows) == 1:
        return f"{best.method} reached a {metric} of {quantity(best.spread)}; nothing was compared with it."
    lowest = f"{best.method} has the lowest {metric}, {short(best.spread.median)}"
    if table.terms.seeds < FEWEST and best.finished:
        run = "the one seed" if table.terms.seeds == 1 else f"{table.terms.seeds} seeds"
        return f"{lowest}, at {run} run: no winner can be named."
    figures = ", ".join(f"{row.method} {_figure(row)}{_p(row)}" for row in leaders[:4])
    if not best.finished:
        return f"No method finished at more than half of its seeds ({figures}): no winner can be named."
    if len(leaders) > 1:
        return f"No clear winner between {joined(row.method for row in leaders)} ({metric}: {figures})."
    finished = [row for row in rows[1:] if row.reached]
    if not finished and winner(rows) is None:
        return f"{best.method} alone finished, at {_figure(best)}, yet not at every seed: no winner can be named."
    if not finished:
        return f"{best.method} alone finished: {metric} {quantity(best.spread)}; every other method diverged or failed."
    if winner(rows) is None:
        same = joined(row.method for row in rows if row.repeated)
        return f"{lowest}; every seed gave {same} the same run, which is one seed: no winner can be named."
    second = finished[0]
    margin = _margin(best.spread.median, second.spread.median) if second.finished else "ahead of"
    rest = max((row.p for row in finished[1:] if row.p is not None), default=0.0)
    others = f"; against the others at most {p_text(rest)}" if second.p is not None and rest > second.p else ""
    return (
        f"{best.method} wins: {metric} {quantity(best.spread)}, {margin} {second.method} at {_figure(second)} "
        f"(paired test over {best.spread.count} seeds{_p(second)}{others})."
    )


def _figure(row: Row) -> str:
    return quantity(row.spread) if row.finished else f"finished at {row.reached} of {row.spread.count} seeds"


def _p(row: Row) -> str:
    return f", p {_relation(row.p)}" if row.p is not None else ""


def _relation(p: float) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def _margin(best: float, second: float) -> str:
    if 0 < best < second:
        return f"{short(second / best)} times below" if second > 2 * best else f"{100 * (1 - best / second):.2g}% below"
    return f"{short(second - best)} below"


def given(table: RunTable) -> str:
    """What each side was given."""
    terms = table.terms
    runs = f"run at {terms.seeds} fresh seed{'s' * (terms.seeds > 1)} of {budget_text(terms.limits)} each"
    settings = {len(side.tuning) // terms.tuning_seeds for side in table.sides}
    if settings == {0}:
        return f"Each method was {runs}, at its own settings."
    most = max(settings)
    return f"Each method was tuned with {'up to ' * (len(settings) > 1)}{most} setting{'s' * (most > 1)} and then {runs}."


def limits_of_the_answer(table: RunTable, rows: Sequence[Row], unequal: str) -> list[str]:
    """What a reader should know before believing the leaderboard; empty if nothing stands out."""
    terms, finished = table.terms, [row for row in rows if row.finished]
    said = [unequal, _at_the_ends(table, finished), _untuned(table), _mostly_lost(rows)]
    if terms.kind == "bilevel" and terms.metric == "upper":
        said.append("The upper level's value is taken at each method's own answer to the lower level, which may be a loose one.")
    if "seconds" in terms.limits and any(" / " in table.environment.get(name, "") for name in ("machine", "threads")):
        said.append("Trials were timed on different machines or with different numbers of threads; see where they ran.")
    if terms.tuning_seeds == 1 and any(side.tuning for side in table.sides):
        said.append("Settings were chosen at one seed each.")
    if len(finished) > MANY and terms.seeds > 1:
        said.append(f"With {len(finished)} methods, some p at or below {LEVEL} is to be expected by chance.")
    pruned = sum(row.tuning_pruned for row in rows)
    if pruned:
        of = sum(row.tuning_trials for row in rows)
        said.append(f"{pruned} of {of} tuning trials were stopped early by the same rule for all ({terms.prune}).")
    return [sentence for sentence in said if sentence]


def _untuned(table: RunTable) -> str:
    names = [side.title for side in table.sides if not side.tuning]
    if not table.terms.tune or not names or len(names) == len(table.sides):
        return ""
    alone = len(names) == 1
    return f"{joined(names)} {'has' if alone else 'have'} nothing to tune and ran as {'it is' if alone else 'they are'}."


def _mostly_lost(rows: Sequence[Row]) -> str:
    """Sides of whose tuning trials more than half gave nothing."""
    bad = {row: row.tuning_diverged + row.tuning_failed for row in rows}
    lost = [f"{row.method} ({count} of {row.tuning_trials})" for row, count in bad.items() if count > row.tuning_trials / 2]
    return f"Most tuning trials of {joined(lost)} diverged or failed: fewer were left to choose from." if lost else ""


def _at_the_ends(table: RunTable, rows: Sequence[Row]) -> str:
    """Best settings that lie at an end of their range, so that a wider one might do better."""
    found = {row.method: _at_an_end(table[row.method]) for row in rows}
    at_end = [f"{name} ({', '.join(settings)})" for name, settings in found.items() if settings]
    if not at_end:
        return ""
    return f"At the end of the range searched lie the best settings of {joined(at_end)}: a wider range may do better."


def _at_an_end(side: Side) -> list[str]:
    tuned = [(name, range_, side.setting[name]) for name, range_ in side.entrant.space.items() if name in side.setting]
    ranges = [entry for entry in tuned if not isinstance(entry[1], Choice)]
    return [f"{name}={plain(v)} of {range_text(r)}" for name, r, v in ranges if not EDGE <= _share(r, v) <= 1 - EDGE]


def _share(range_: Range, value: float) -> float:
    """How far along its range a value lies, 0 to 1."""
    assert not isinstance(range_, Choice)
    if by_factor(range_):
        return math.log(value / range_.low) / math.log(range_.high / range_.low)
    return (value - range_.low) / (range_.high - range_.low)
