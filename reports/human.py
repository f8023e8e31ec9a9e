"""Numbers formatted for people. Every function returns ``–`` for None."""

from __future__ import annotations

import functools
from collections.abc import Callable

NOTHING = "–"


def _or_nothing(write: Callable[[float], str]) -> Callable[[float | None], str]:
    @functools.wraps(write)
    def wrapped(value: float | None) -> str:
        return NOTHING if value is None else write(value)

    return wrapped


def _scaled(value: float, units: tuple[str, ...]) -> str:
    """Four significant digits, in the largest unit (steps of 1000) that leaves at least 1."""
    step = 0
    while step < len(units) - 1 and abs(value) >= (999.95 if step else 999.5):
        value, step = value / 1000, step + 1
    decimals = 0 if step == 0 else max(0, 4 - len(f"{abs(value):.0f}"))
    return f"{value:.{decimals}f} {units[step]}".rstrip()


@_or_nothing
def count(value: float) -> str:
    """20300176 as ``20.30 M``."""
    return _scaled(value, ("", "k", "M", "G", "T"))


@_or_nothing
def size(value: float) -> str:
    """Bytes: 516300 as ``516.3 kB`` (1 kB = 1000 bytes)."""
    return _scaled(value, ("B", "kB", "MB", "GB", "TB"))


@_or_nothing
def exact(value: float) -> str:
    """20406592 as ``20,406,592``, for limits and the costs compared with them; below 10 with four digits."""
    return f"{value:,.3f}".rstrip("0").rstrip(".") if abs(value) >= 10 else f"{value:.4g}"


@_or_nothing
def milliseconds(value: float) -> str:
    """Three significant digits: 0.2831 as ``0.283 ms``."""
    return f"{value:.0f} ms" if value >= 99.95 else f"{value:#.3g} ms"


@_or_nothing
def seconds(value: float) -> str:
    """31.24 as ``31.2 s``, 312 as ``5 min 12 s``, 7500 as ``2 h 05 min``."""
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours} h {minutes:02d} min"


@_or_nothing
def percent(share: float) -> str:
    """0.8854 as ``88.54 %``."""
    return f"{100 * share:.2f} %"


@_or_nothing
def short_percent(share: float) -> str:
    """0.4974 as ``49.7 %``."""
    return f"{100 * share:.1f} %"


@_or_nothing
def points(difference: float) -> str:
    """A difference of two shares in percentage points: -0.0165 as ``-1.65``."""
    text = f"{100 * difference:+.2f}"
    return "0.00" if float(text) == 0 else text


@_or_nothing
def ratio(value: float) -> str:
    """0.49741 as ``0.497``."""
    return f"{value:.3f}"


def quotient(part: float | None, whole: float | None) -> float | None:
    """``part / whole``. None if either is missing or ``whole`` is 0.

    >>> quotient(1, 4), quotient(1, 0)
    (0.25, None)
    """
    return None if part is None or not whole else part / whole


def difference(after: float | None, before: float | None) -> float | None:
    """``after - before``. None if either is missing."""
    return None if after is None or before is None else after - before


FILTERS: dict[str, Callable[..., object]] = {
    f.__name__: f for f in (count, size, exact, milliseconds, seconds, percent, short_percent, points, ratio, quotient)
}
"""Filters for the templates."""
