"""Charts as SVG text, for a report that opens anywhere: no script, colours from the page's own style.

Every name that comes from outside is escaped here; the result is safe to put into HTML as it is.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

_WIDTH, _HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 24, 44
_FLOOR = _HEIGHT - _BOTTOM
_ROW = 34
_MOST_PLACES = 600  # across 560 pixels more can't be seen
_LABEL_CHARACTERS = 34


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with its 95% interval, if there is one. `group` (0 to 3) gives the colour."""

    name: str
    value: float
    low: float | None
    high: float | None
    group: int = 0


@dataclass(frozen=True, slots=True)
class Series:
    """A line through (x, y); `names` stand beside the places where there are few."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    names: Sequence[str] = ()


def bars(items: Sequence[Bar], title: str) -> Markup:
    """Horizontal bars from 0, the first on top, each with its interval and its value in words."""
    most = max([item.value for item in items] + [item.high for item in items if item.high is not None])
    ticks = _ticks(most)
    left, right, height = 220, 90, _TOP + _ROW * len(items) + _BOTTOM
    scale = (_WIDTH - left - right) / ticks[-1]
    parts = [_grid_x(ticks, left, scale, height), _axis_title(title, left, height)]
    for place, item in enumerate(items):
        y = _TOP + _ROW * place
        end = left + max(0.0, item.value) * scale
        parts.append(_text(left - 8, y + 20, item.name, anchor="end"))
        parts.append(_rect(left, y + 6, end - left, 20, item.group))
        if item.low is not None and item.high is not None:
            start, stop = left + max(0.0, item.low) * scale, left + item.high * scale
            parts.append(_line("whisker", start, y + 16, stop, y + 16))
            parts += [_line("whisker", x, y + 12, x, y + 20) for x in (start, stop)]
            end = max(end, stop)
        parts.append(_text(end + 6, y + 20, number(item.value)))
    return _svg(parts, height, title)


def lines(series: Sequence[Series], x_title: str, y_title: str, *, marks: bool = False) -> Markup:
    """Lines over a common axis that begins at 0."""
    x_ticks = _ticks(max((x for one in series for x in one.xs), default=1))
    y_ticks = _ticks(max((y for one in series for y in one.ys), default=1))
    x_scale, y_scale, parts = _plane(x_ticks, y_ticks, x_title, y_title)
    for place, one in enumerate(series):
        step = max(1, math.ceil(len(one.xs) / _MOST_PLACES))
        places = [
            (_LEFT + x * x_scale, _FLOOR - y * y_scale)
            for x, y in zip(one.xs[::step], one.ys[::step], strict=True)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="line{place % 4}" points="{path}"/>')
        if marks:
            parts += [f'<circle class="fill{place % 4}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in places]
        named = zip(places, one.names, strict=False)
        # to the left of what lies far right, or the name would leave the picture
        parts += [
            _text(x - 6, y - 6, name, anchor="end", style="soft")
            if x > _WIDTH * 0.75
            else _text(x + 6, y - 6, name, style="soft")
            for (x, y), name in named
        ]
    return _svg(parts, _HEIGHT, f"{y_title}, {x_title}") + _legend(series)


def histogram(values: Sequence[float], x_title: str, y_title: str) -> Markup:
    """How often values of each size came. The highest 1% stand in the last bar: no long, empty tail."""
    array = np.asarray(values, dtype=float)
    x_ticks = _ticks(float(np.percentile(array, 99)) * 1.02 or float(array.max()))
    bins = min(40, max(8, round(math.sqrt(len(array)))))
    counts, edges = np.histogram(np.clip(array, 0, x_ticks[-1]), bins=bins, range=(0, x_ticks[-1]))
    x_scale, y_scale, parts = _plane(x_ticks, _ticks(int(counts.max())), x_title, y_title)
    for many, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        tall = many * y_scale
        parts.append(_rect(_LEFT + low * x_scale, _FLOOR - tall, (high - low) * x_scale - 1, tall, 0))
    return _svg(parts, _HEIGHT, f"{y_title}, {x_title}")


def number(value: float) -> str:
    """Three figures: 1,390, 41.2, 0.0312."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 or not value else f"{value:.1e}"


def _svg(parts: Sequence[str], height: int, title: str) -> Markup:
    head = f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img"'
    # every part is made of numbers and escaped text
    return Markup(f'{head} aria-label="{_escaped(title, 200)}">{"".join(parts)}</svg>')


def _plane(
    x_ticks: Sequence[float], y_ticks: Sequence[float], x_title: str, y_title: str
) -> tuple[float, float, list[str]]:
    """(pixels by x, pixels by y, the grid with its titles) of a chart of the usual size."""
    x_scale = (_WIDTH - _LEFT - _RIGHT) / x_ticks[-1]
    y_scale = (_FLOOR - _TOP) / y_ticks[-1]
    parts = [_grid_x(x_ticks, _LEFT, x_scale, _HEIGHT), _axis_title(x_title, _LEFT, _HEIGHT)]
    for tick in y_ticks:
        y = _FLOOR - tick * y_scale
        parts.append(_line("grid", _LEFT, y, _WIDTH - _RIGHT, y))
        parts.append(_text(_LEFT - 6, y + 4, number(tick), anchor="end", style="soft"))
    return x_scale, y_scale, [*parts, _text(4, 10, y_title, style="soft")]


def _grid_x(ticks: Sequence[float], left: float, scale: float, height: float) -> str:
    bottom = height - _BOTTOM
    return "".join(
        _line("grid", left + tick * scale, _TOP, left + tick * scale, bottom)
        + _text(left + tick * scale, bottom + 16, number(tick), anchor="middle", style="soft")
        for tick in ticks
    )


def _axis_title(title: str, left: float, height: float) -> str:
    return _text(left, height - 8, title, style="soft", most=120)


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _rect(x: float, y: float, width: float, height: float, group: int) -> str:
    size = f'width="{max(0.0, width):.1f}" height="{height:.1f}"'
    return f'<rect class="fill{group % 4}" x="{x:.1f}" y="{y:.1f}" {size}/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", style: str = "", most: int = _LABEL_CHARACTERS
) -> str:
    place = f'class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text {place}>{_escaped(text, most)}</text>"


def _legend(series: Sequence[Series]) -> Markup:
    if len(series) < 2:
        return Markup("")
    named = (
        Markup('<span class="key"><i class="back{}"></i>{}</span>').format(place % 4, one.name)
        for place, one in enumerate(series)
    )
    return Markup('<div class="legend">{}</div>').format(Markup("").join(named))


def _ticks(most: float) -> list[float]:
    """Round steps from 0 to at least `most`, about five of them."""
    most = most if most > 0 else 1.0
    size = 10.0 ** math.floor(math.log10(most / 5))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= most / 5 * 0.999)
    return [step * place for place in range(math.ceil(most / step - 1e-9) + 1)]


def _escaped(text: str, most: int) -> str:
    line = " ".join(text.split())
    return html.escape(line if len(line) <= most else f"{line[: most - 1]}…", quote=True)
