"""Numbers as readers see them."""

from __future__ import annotations

import math

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


def setting_text(setting: object) -> str:
    """Hyperparameters on one line."""
    if not isinstance(setting, dict) or not setting:
        return "its own defaults"
    return ", ".join(f"{name}={plain(value)}" for name, value in setting.items())


def plain(value: object) -> str:
    """A hyperparameter as Python would read it, floats to four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else repr(value)
