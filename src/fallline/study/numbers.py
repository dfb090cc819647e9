"""Numbers as readers see them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from fallline.core.space import Choice, Integers, LogUniform, Range
from fallline.study.spread import Spread

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def short(value: float) -> str:
    """Three significant digits; ``diverged`` for a value that is not finite."""
    if not math.isfinite(value):
        return "diverged"
    text = f"{value:.3g}"
    if "e" in text:
        digits, exponent = text.split("e")
        return f"{digits}·10{str(int(exponent)).translate(SUPERSCRIPTS)}"
    return text


def interval(found: Spread) -> str:
    """The two ends of a spread: ``0.40 to 0.43``."""
    return "—" if found.count == 1 or math.isinf(found.low) else f"{short(found.low)} to {short(found.high)}"


def quantity(found: Spread) -> str:
    """Median and spread: ``0.41 (0.40 to 0.43)``."""
    return short(found.median) if found.count == 1 else f"{short(found.median)} ({interval(found)})"


def p_text(p: float | None) -> str:
    """A p-value, a dash where there is none."""
    return "—" if p is None else "< 0.001" if p < 0.001 else f"{p:.2g}"


def amount(value: float) -> str:
    """A count or a time: whole numbers with their thousands apart."""
    return f"{value:,.0f}" if value == int(value) else short(value)


def budget_text(limits: Mapping[str, float]) -> str:
    """Limits in words: ``1,000 steps``."""
    return ", ".join(f"{limit:,g} {name}" if limit % 1 else f"{limit:,.0f} {name}" for name, limit in limits.items())


def code_text(value: object) -> str:
    """A hyperparameter as Python reads it, to the last digit."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    if type(value) in (list, tuple):
        parts = ", ".join(map(code_text, value))  # type: ignore[call-overload]
        return f"[{parts}]" if isinstance(value, list) else f"({parts}{',' * (len(value) == 1)})"  # type: ignore[arg-type]
    return repr(value)


def setting_text(setting: object) -> str:
    """Hyperparameters on one line."""
    if not isinstance(setting, dict) or not setting:
        return "its own defaults"
    return ", ".join(f"{name}={plain(value)}" for name, value in setting.items())


def plain(value: object) -> str:
    """A hyperparameter as Python would read it, floats to four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def joined(names: Iterable[str]) -> str:
    """``a, b and c``."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def by_factor(range_: Range) -> bool:
    """Whether every factor of the range is alike, rather than every difference."""
    return isinstance(range_, LogUniform) or (isinstance(range_, Integers) and range_.log)


def range_text(range_: Range) -> str:
    """A range in words."""
    if isinstance(range_, Choice):
        return "one of " + ", ".join(plain(option) for option in range_.options)
    return f"{plain(range_.low)} to {plain(range_.high)}" + (", logarithmic" if by_factor(range_) else "")
