"""How numbers are written for people: few digits, a real minus sign, units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"


def number(value: Any, digits: int = 2) -> str:
    """A number with `digits` decimals; large ones with fewer, what is none as a dash."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return NONE
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if isinstance(value, int) or size >= 10000:
        text = f"{value:,.0f}"
    elif size >= 100:
        text = f"{value:.{max(0, digits - 1)}f}"
    else:
        text = f"{value:.{digits}f}"
    return text.replace("-", MINUS)


def exact(value: Any, digits: int = 4) -> str:
    """A number with so many significant digits, as an exponent where it is very small or large."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return NONE
    return f"{value:.{digits}g}".replace("e+0", "e").replace("e-0", "e-").replace("-", MINUS)


def signed(value: Any, digits: int = 2) -> str:
    """A difference, with its sign."""
    text = number(value, digits)
    return f"+{text}" if isinstance(value, int | float) and value > 0 else text


def percent(share: Any, digits: int = 0) -> str:
    """A share of one as a percentage."""
    if not isinstance(share, int | float) or not math.isfinite(share):
        return NONE
    return f"{100 * share:.{digits}f}%".replace("-", MINUS)


def interval(found: Mapping[str, Any] | None, show: Any = number) -> str:
    """`low to high` of an estimate."""
    return "" if not found else f"{show(found['low'])} to {show(found['high'])}"


def size(count: Any) -> str:
    """Bytes in decimal units."""
    if not isinstance(count, int | float):
        return NONE
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def duration(seconds: Any) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if not isinstance(seconds, int | float):
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{int(minutes)} min {int(seconds % 60):02d} s" if minutes < 60 else f"{minutes / 60:.1f} h"
