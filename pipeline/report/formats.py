"""Numbers as the page shows them; a dash for what is not known."""

from __future__ import annotations

import math


def percent(share: float | None, digits: int = 1) -> str:
    """0.8333 -> 83.3; a dash for what is not known."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}"


def number(value: float | None, digits: int = 0) -> str:
    """12345.6 -> 12,346; a dash for what is not known."""
    return "–" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def mebibytes(value: float) -> str:
    """Memory; a dash where it could not be measured."""
    return "–" if math.isnan(value) else f"{value:,.0f} MiB"


def seconds(value: float) -> str:
    """A duration in the unit that suits it."""
    if math.isnan(value):
        return "–"
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (math.inf, 3600, "h")):
        if value < limit:
            return f"{value / unit:,.1f} {name}"
    return "–"


def points(difference: float | None) -> str:
    """A difference of two percentages, with its sign."""
    return "–" if difference is None else f"{difference:+.1f}".replace("-", "−")
