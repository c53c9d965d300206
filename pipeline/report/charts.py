"""Charts as SVG text: drawn by hand so that colours follow the page's theme and the bytes depend on nothing else.

Colours are CSS classes of the page: ``train``, ``test``, ``axis``, ``grid``, ``bar``, ``peak``, ``uniform``; those of
the parts of a whole are named by who draws it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 440, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 34
"""Margins of the plot, in the units of the drawing."""
DOTTED = 15
BINS = 24
"""Bars of a histogram, at most one or two more."""


class Line(NamedTuple):
    """One curve."""

    kind: str
    """A CSS class: ``train`` or ``test``."""
    name: str
    x: Sequence[float]
    y: Sequence[float]
    """NaN where nothing was measured; the curve goes on to the next point."""


def ticks(low: float, high: float, *, most: int = 6, whole: bool = False) -> list[float]:
    """Round numbers in [low, high], 1, 2 or 5 times a power of ten apart, at most ``most``."""
    if not high > low:
        return [low]
    for exponent in range(math.floor(math.log10((high - low) / most)), 400):
        for factor in (1, 2, 5):
            step = factor * 10.0**exponent
            if whole and step < 1:
                continue
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            if last - first < most:
                return [float(f"{i * step:.12g}") for i in range(first, last + 1)]
    raise AssertionError("a step of any size is tried")


def line_chart(
    lines: Sequence[Line], *, title: str, percent: bool = False, y_range: tuple[float, float] | None = None
) -> Markup:
    """Curves over epochs.

    Args:
        lines: drawn in order, later ones on top.
        title: read out where the picture is not seen.
        percent: label the vertical axis in per cent of 1.
        y_range: of the vertical axis; by default from zero to the largest finite value.
    """
    points = [(x, y) for line in lines for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    x_low, x_high = min((x for x, _ in points), default=0.0), max((x for x, _ in points), default=1.0)
    y_low, y_high = y_range or _round_range([y for _, y in points])
    x_span, y_span = (x_high - x_low) or 1.0, (y_high - y_low) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / x_span * (WIDTH - LEFT - RIGHT)
        return across, TOP + (y_high - y) / y_span * (HEIGHT - TOP - BOTTOM)

    parts = [Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, title)]
    for value in ticks(y_low, y_high):
        _, down = place(x_low, value)
        label = f"{100 * value:g}%" if percent else f"{value:g}"
        parts.append(_rule(LEFT, down, WIDTH - RIGHT, down, "grid") + _text(LEFT - 6, down + 4, label, "end"))
    for value in ticks(x_low, x_high, whole=True):
        across, _ = place(value, y_low)
        parts.append(_text(across, HEIGHT - BOTTOM + 16, f"{value:g}", "middle"))
    parts.append(_rule(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "axis"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, "epoch", "middle"))
    for line in lines:
        parts.append(_curve(line, [place(x, y) for x, y in zip(line.x, line.y, strict=True)]))
    return Markup("").join([*parts, Markup("</svg>")])


def _round_range(values: Sequence[float]) -> tuple[float, float]:
    """From zero, or less, to a round number that no value passes."""
    low, high = min(0.0, *values, 0.0), max(0.0, *values, 0.0)
    marks = ticks(low, high)
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    return low, math.ceil(high / step - 1e-9) * step or 1.0


def _curve(line: Line, places: list[tuple[float, float]]) -> Markup:
    """A curve; points few enough to be told apart are dots as well."""
    known = [place for place in places if math.isfinite(place[1])]
    dots = [Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2"/>').format(*place) for place in known if len(known) <= DOTTED]
    path = Markup('<polyline points="{}"/>').format(" ".join(f"{x:.1f},{y:.1f}" for x, y in known))
    shape = path + Markup("").join(dots)
    return Markup('<g class="line {}"><title>{}</title>{}</g>').format(line.kind, line.name, shape)


def histogram(values: Sequence[float], *, title: str, across: str) -> Markup:
    """Bars of equal width: how many values are in [k w, (k + 1) w), for a round w.

    Args:
        values: at least one, none negative.
        title: read out where the picture is not seen.
        across: what the horizontal axis is of.
    """
    marks = ticks(min(values), max(values), most=BINS)
    width = marks[1] - marks[0] if len(marks) > 1 else 1.0
    bins = Counter(math.floor(value / width + 1e-9) for value in values)
    first, last = min(bins), max(bins)
    top = max(_round_range(list(bins.values()))[1], 1.0)
    bar_px = (WIDTH - LEFT - RIGHT) / (last + 1 - first)

    def up(count: float) -> float:
        return TOP + (1 - count / top) * (HEIGHT - TOP - BOTTOM)

    parts = [Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, title)]
    for value in ticks(0, top, whole=True):
        parts.append(_rule(LEFT, up(value), WIDTH - RIGHT, up(value), "grid"))
        parts.append(_text(LEFT - 6, up(value) + 4, f"{value:,.0f}", "end"))
    bar = Markup('<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>')
    for k, count in sorted(bins.items()):
        name = f"{k * width:g} to {(k + 1) * width:g} {across}: {count:,}"
        place = LEFT + (k - first) * bar_px + 0.5, up(count), bar_px - 1, up(0) - up(count)
        parts.append(bar.format(*place, name))
    for value in ticks(first * width, (last + 1) * width):
        parts.append(_text(LEFT + (value / width - first) * bar_px, HEIGHT - BOTTOM + 16, f"{value:g}", "middle"))
    parts.append(_rule(LEFT, up(0), WIDTH - RIGHT, up(0), "axis"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, across, "middle"))
    return Markup("").join([*parts, Markup("</svg>")])


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def share_bar(shares: Mapping[str, float], names: Mapping[str, str], *, title: str) -> Markup:
    """A bar as long as the whole, its parts side by side: 100 wide and 1 high, stretched to the width of its place.

    Args:
        shares: by CSS class, in the order of drawing; their sum is 1. A part of nothing is not drawn.
        names: of the parts, by CSS class, shown with the share when pointed at.
        title: read out where the picture is not seen.
    """
    head = '<svg class="shares" viewBox="0 0 100 1" preserveAspectRatio="none" role="img" aria-label="{}">'
    part = Markup('<rect class="{}" x="{:.2f}" y="0" width="{:.2f}" height="1"><title>{}: {:.1f}%</title></rect>')
    parts, begin = [Markup(head).format(title)], 0.0
    for kind, share in shares.items():
        if share > 0:
            parts.append(part.format(kind, begin, 100 * share, names[kind], 100 * share))
        begin += 100 * share
    return Markup("").join([*parts, Markup("</svg>")])


def interval_bands(found: Sequence[bool], acting: Sequence[bool], *, title: str) -> Markup:
    """Under ``attention_bars``, which snippets lie in the intervals found and, below, which inside the action.

    Args:
        found: of each of ``T`` snippets.
        acting: of each; empty if that is not known.
        title: read out where the picture is not seen.
    """
    head = '<svg class="bands" viewBox="0 0 {} 2" preserveAspectRatio="none" role="img" aria-label="{}">'
    parts = [Markup(head).format(len(found), title)]
    for row, (kind, snippets) in enumerate((("found", found), ("truth", acting))):
        for first, past in _runs(snippets):
            band = Markup('<path class="{}" d="M{} {:.2f}h{}v0.7h-{}z"/>')
            parts.append(band.format(kind, first, row + 0.2, past - first, past - first))
    return Markup("").join([*parts, Markup("</svg>")])


def _runs(chosen: Sequence[bool]) -> list[tuple[int, int]]:
    """First and past the last of each run of what is chosen."""
    edges = [i for i, (was, now) in enumerate(zip([False, *chosen], [*chosen, False], strict=True)) if was != now]
    return list(zip(edges[::2], edges[1::2], strict=True))


def attention_bars(
    weights: Sequence[float], names: Iterable[str], *, title: str, acting: Sequence[bool] = ()
) -> Markup:
    """One bar a snippet, heights in proportion to the weights, and a line at the uniform weight ``1 / T``.

    The drawing is ``T`` wide and 1 high and is stretched to the width of the film strip above it. A negative weight,
    which only fixed segment weights can have, hangs below the zero line.

    Args:
        weights: ``T`` weights.
        names: of the snippets, shown with the weight when pointed at.
        title: read out where the picture is not seen.
        acting: whether each snippet is inside the action, which is then shaded; empty if that is not known.
    """
    uniform, count = 1 / len(weights), len(weights)
    peak, bottom = max(weights), min(*weights, 0.0)
    top = max(peak, uniform)
    head = '<svg class="bars" viewBox="0 0 {} 1" preserveAspectRatio="none" role="img" aria-label="{}">'
    bar = '<rect class="{}" x="{:.2f}" y="{:.4f}" width="0.84" height="{:.4f}"><title>{}: {:.4f}</title></rect>'
    rule = '<line class="uniform" x1="0" x2="{}" y1="{:.4f}" y2="{:.4f}"/></svg>'

    def down(weight: float) -> float:
        return (top - weight) / (top - bottom)

    parts = [Markup(head).format(count, title)]
    for i, acts in enumerate(acting):
        if acts:
            parts.append(Markup('<path class="truth" d="M{} 0h1v1h-1z"/>').format(i))
    for i, (weight, name) in enumerate(zip(weights, names, strict=True)):
        kind = "bar peak" if weight == peak > uniform + 1e-6 else "bar"
        place = down(max(weight, 0)), abs(weight) / (top - bottom)
        parts.append(Markup(bar).format(kind, i + 0.08, *place, name, weight))
    parts.append(Markup(rule).format(count, down(uniform), down(uniform)))
    return Markup("").join(parts)
