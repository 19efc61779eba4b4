"""Small SVG charts: no colours of their own (style.css has them), every text escaped.

Points carry their tooltip in `data-t`; page.js shows it on hover and, in a focused chart, on the arrow keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from report.quantities import number

LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 38
MOST_POINTS = 160  # of a curve; more would only cost bytes


@dataclass(frozen=True)
class Point:
    """One mark; `low` and `high` draw its interval, `tag` is written beside it, `tip` is its tooltip."""

    x: float
    y: float
    tip: str = ""
    low: float | None = None
    high: float | None = None
    tag: str = ""


@dataclass(frozen=True)
class Series:
    """Marks of one kind. `look` is a class of style.css: accent, ink, muted, or step-0 .. step-8 (a ramp)."""

    name: str
    points: Sequence[Point]
    look: str = "accent"
    line: bool = True
    marks: bool = True
    dashed: bool = False


@dataclass(frozen=True)
class Size:
    """Width and height of a chart in pixels at which its texts have their size."""

    width: float = 360
    height: float = 220


SMALL = Size(250, 165)


@dataclass(frozen=True)
class Axis:
    """`ticks` are (value, text) pairs where the values are not numbers to be divided evenly; `room` pads the range."""

    label: str
    ticks: Sequence[tuple[float, str]] = ()
    low: float | None = None
    high: float | None = None
    room: float = 0.04


@dataclass(frozen=True)
class Figure:
    """A chart with what a reader needs around it: a title, a legend, a caption with units, and its numbers as a table."""

    title: str
    svg: Markup
    caption: str = ""
    legend: Sequence[tuple[str, str, bool]] = ()  # name, look, dashed
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default_factory=tuple)


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels: pixel = offset + factor * value."""

    low: float
    high: float
    offset: float
    factor: float

    def __call__(self, value: float) -> float:
        return self.offset + self.factor * value


def figure(
    title: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    caption: str = "",
    limits: Sequence[tuple[float, str]] = (),
    size: Size = Size(),
) -> Figure:
    """A chart of lines and marks, and its numbers. `limits` are horizontal lines with a name."""
    svg = plot(series, x, y, limits=limits, title=title, size=size)
    legend = [(one.name, one.look, one.dashed) for one in series] if len(series) > 1 else []
    head, rows = _numbers(series, x)
    return Figure(title, svg, caption, legend, head, rows)


def plot(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    title: str,
    limits: Sequence[tuple[float, str]] = (),
    size: Size = Size(),
) -> Markup:
    """The SVG alone. Values that are not finite are left out."""
    xs = [point.x for one in series for point in one.points if _good(point)] + [tick for tick, _ in x.ticks]
    ys = [v for one in series for p in one.points if _good(p) for v in (p.y, p.low, p.high) if v is not None]
    if not xs or not ys:
        return Markup('<p class="absent">No values to draw.</p>')
    ys += [limit for limit, _ in limits]
    across = scale(xs, x, LEFT, size.width - RIGHT)
    down = scale(ys, y, size.height - BOTTOM, TOP)
    parts = [_frame(across, down, x, y, size)]
    parts += [_limit(down(value), text, size) for value, text in limits if down.low <= value <= down.high]
    parts += [_series(one, across, down) for one in series]
    parts.append(_tags(series, across, down, size))
    readable = f"{across.offset:.6g} {across.factor:.6g} {down.offset:.6g} {down.factor:.6g}"
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" tabindex="0" aria-label="{}" data-scale="{}" data-x="{}">{}</svg>'
    ).format(
        size.width, size.height, f"{title}. Arrow keys read the points.", readable, x.label, Markup("").join(parts)
    )


def scale(values: Iterable[float], axis: Axis, start: float, end: float) -> Scale:
    """The scale from the values' range (or the axis's own) to pixels."""
    found = list(values)
    low = min(found) if axis.low is None else axis.low
    high = max(found) if axis.high is None else axis.high
    if high - low < 1e-6 * max(abs(low), abs(high), 1e-300):  # nothing but rounding differs
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    room = axis.room * (high - low)
    low = low - room if axis.low is None else low
    high = high + room if axis.high is None else high
    factor = (end - start) / (high - low)
    return Scale(low, high, start - factor * low, factor)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers between `low` and `high`, about so many."""
    rough = (high - low) / about
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def thin(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """Fewer points that show the same band: the lowest and highest of each stretch stay."""
    if len(points) <= most:
        return list(points)
    buckets = most // 2
    kept: list[tuple[float, float]] = []
    for i in range(buckets):
        some = points[i * len(points) // buckets : (i + 1) * len(points) // buckets]
        ends = {min(range(len(some)), key=lambda j: some[j][1]), max(range(len(some)), key=lambda j: some[j][1])}
        kept += [some[j] for j in sorted(ends)]
    return kept


def _good(point: Point) -> bool:
    return math.isfinite(point.x) and math.isfinite(point.y)


def tick_text(value: float, values: Sequence[float]) -> str:
    step = abs(values[1] - values[0]) if len(values) > 1 else abs(value) or 1.0
    if value == 0 and step < 1e-4:
        return "0"
    digits = min(8, max(0, -math.floor(math.log10(step) + 1e-9)))
    if step < 10**-digits * 0.999 or abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
        digits += 1
    if step >= 1e6 or (value and digits > 4):
        return f"{value:.1e}".replace(".0e", "e").replace("e+0", "e").replace("e-0", "e-")
    return f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _frame(across: Scale, down: Scale, x: Axis, y: Axis, size: Size) -> Markup:
    bottom, right = size.height - BOTTOM, size.width - RIGHT
    out = []
    levels = [tick for tick, _ in y.ticks] or ticks(down.low, down.high)
    names = dict(y.ticks) or {level: tick_text(level, levels) for level in levels}
    for level in levels:
        out.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(LEFT, down(level), right))
        out.append(
            Markup('<text class="y" x="{}" y="{:.1f}">{}</text>').format(LEFT - 6, down(level) + 3.5, names[level])
        )
    steps = [tick for tick, _ in x.ticks] or ticks(across.low, across.high, 5 if size.width > 300 else 3)
    texts = dict(x.ticks) or {step: tick_text(step, steps) for step in steps}
    for step in steps:
        out.append(Markup('<text class="x" x="{:.1f}" y="{}">{}</text>').format(across(step), bottom + 15, texts[step]))
    out.append(Markup('<path class="axis" d="M{} {}H{}"/>').format(LEFT, bottom, right))
    out.append(
        Markup('<text class="label" x="{:.1f}" y="{}">{}</text>').format((LEFT + right) / 2, size.height - 6, x.label)
    )
    if y.label:
        middle = (TOP + bottom) / 2
        out.append(
            Markup('<text class="label" transform="translate(9 {:.1f}) rotate(-90)">{}</text>').format(middle, y.label)
        )
    return Markup("").join(out)


def _limit(at: float, text: str, size: Size) -> Markup:
    right = size.width - RIGHT
    return Markup('<path class="limit" d="M{} {:.1f}H{}"/><text class="limit" x="{}" y="{:.1f}">{}</text>').format(
        LEFT, at, right, right - 2, at - 3, text
    )


def _series(one: Series, across: Scale, down: Scale) -> Markup:
    points = [point for point in one.points if _good(point)]
    out = []
    if one.line and len(points) > 1:
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in thin([(p.x, p.y) for p in points]))
        dash = " dashed" if one.dashed else ""
        out.append(Markup('<polyline class="line{}" points="{}"/>').format(dash, path))
    if one.marks:
        out += [_mark(point, across(point.x), down, one.dashed) for point in points]
    return Markup('<g class="{}" data-name="{}">{}</g>').format(one.look, one.name, Markup("").join(out))


def _mark(point: Point, x: float, down: Scale, square: bool) -> Markup:
    y, out = down(point.y), Markup("")
    if point.low is not None and point.high is not None:
        out += Markup('<path class="range" d="M{:.1f} {:.1f}V{:.1f}"/>').format(x, down(point.low), down(point.high))
    if square:
        out += Markup('<rect class="pt" x="{:.1f}" y="{:.1f}" width="6" height="6" data-t="{}"/>').format(
            x - 3, y - 3, point.tip
        )
    else:
        out += Markup('<circle class="pt" cx="{:.1f}" cy="{:.1f}" r="3.4" data-t="{}"/>').format(x, y, point.tip)
    return out


def _tags(series: Sequence[Series], across: Scale, down: Scale, size: Size) -> Markup:
    """Names beside marks, each where it covers no other; one that finds no place is left to its tooltip."""
    taken: list[tuple[float, float, float]] = []  # left, right, baseline
    out = Markup("")
    for one in series:
        for point in one.points:
            if not point.tag or not _good(point):
                continue
            x, y, width = across(point.x), down(point.y), 6.4 * len(point.tag)
            for left, base in ((x + 7, y - 6), (x - 7 - width, y - 6), (x + 7, y + 13), (x - 7 - width, y + 13)):
                inside = left >= LEFT and left + width <= size.width and TOP - 6 <= base <= size.height - BOTTOM
                if inside and all(left > end or left + width < start or abs(base - b) > 11 for start, end, b in taken):
                    taken.append((left, left + width, base))
                    text = Markup('<text class="tag" x="{:.1f}" y="{:.1f}">{}</text>').format(left, base, point.tag)
                    out += Markup('<g class="{}">{}</g>').format(one.look, text)
                    break
    return out


def _numbers(series: Sequence[Series], x: Axis) -> tuple[list[str], list[list[str]]]:
    def place(point: Point) -> float:
        """Where ticks are names, a point stands for the nearest: points are nudged apart there."""
        return min((tick for tick, _ in x.ticks), key=lambda tick: abs(tick - point.x), default=point.x)

    names = dict(x.ticks)
    found = {(one.name, place(point)): point for one in series for point in one.points}
    tags = {place(point): point.tag for point in found.values() if point.tag}

    def cell(point: Point | None) -> str:
        if point is None:
            return ""
        spread = f" ({number(point.low, 3)} to {number(point.high, 3)})" if point.low is not None else ""
        return number(point.y, 3) + spread

    rows = [
        [names.get(at) or tags.get(at) or number(at, 3), *(cell(found.get((one.name, at))) for one in series)]
        for at in sorted({at for _, at in found})
    ]
    return [x.label or "point", *(one.name for one in series)], rows


def look(index: int, count: int) -> str:
    """The ramp's class for number `index` of `count`: older ones are paler."""
    return f"step-{round(8 * index / max(1, count - 1))}"
