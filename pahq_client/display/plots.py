"""Small plots as SVG, for notebooks: lines and points over two axes, without any other package."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from pahq_client.formatting import one_line

_WIDTH, _HEIGHT = 420, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 42
_TICKS = 5
# The line above a plot that says which series is which: its height, and the width of a character.
_LEGEND, _CHARACTER = 20, 6.2
_LONGEST_LABEL = 30


@dataclass(frozen=True)
class Series:
    """What is drawn with one style.

    Args:
        points: (x, y) of each point; those that are not finite are left out.
        label: what it shows, for its tooltip and the legend.
        color: of the line or the points.
        line: whether points are joined by a line.
        dots: whether points are marked.
        dashed: whether the line is.
    """

    points: Sequence[tuple[float, float]]
    label: str
    color: str = "#1f6fb4"
    line: bool = True
    dots: bool = True
    dashed: bool = False


def plot(
    series: Sequence[Series], x_label: str, y_label: str, *, log_x: bool = False, legend: bool = False
) -> str:
    """Draws series over common axes, as an SVG element.

    Args:
        series: what to draw, the first one lowest.
        x_label, y_label: what the axes show.
        log_x: whether x is drawn by its logarithm; points with x ≤ 0 are then left out.
        legend: whether a line above says which series is which.
    """
    shown = [[p for p in one.points if _drawable(p, log_x)] for one in series]
    xs, ys = [x for points in shown for x, _ in points], [y for points in shown for _, y in points]
    x_at = _scale(xs, _LEFT, _WIDTH - _RIGHT, log_x)
    y_at = _scale(ys, _HEIGHT - _BOTTOM, _TOP, False)
    parts = [*_axis_x(xs, x_at, x_label, log_x), *_axis_y(ys, y_at, y_label)]
    for one, points in zip(series, shown, strict=True):
        parts += _drawn(one, [(x_at(x), y_at(y)) for x, y in points])
    above = _LEGEND if legend else 0
    parts += _legend(series) if legend else []
    size = f'width="{_WIDTH}" height="{_HEIGHT + above}" viewBox="0 {-above} {_WIDTH} {_HEIGHT + above}"'
    style = 'font-family="sans-serif" font-size="11" fill="currentColor"'
    label = _text(f"{y_label} by {x_label}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style} role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def _drawable(point: tuple[float, float], log_x: bool) -> bool:
    x, y = point
    return math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x)


def _bounds(values: Sequence[float], log: bool) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    if log:
        return (low, high) if low < high else (low / 10, high * 10)
    room = (high - low) * 0.04 or abs(high) or 1.0
    return low - room, high + room


def _scale(values: Sequence[float], start: float, end: float, log: bool) -> Callable[[float], float]:
    low, high = _bounds(values, log)

    def place(value: float) -> float:
        if log:
            return start + (end - start) * math.log(value / low) / math.log(high / low)
        # Halved, since the difference of two large numbers may be infinite.
        return start + (end - start) * (value / 2 - low / 2) / (high / 2 - low / 2)

    return place


def _ticks(values: Sequence[float], log: bool) -> list[float]:
    """Round numbers within the bounds of the values."""
    low, high = _bounds(values, log)
    if log:
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        powers = range(first, last + 1)
        return [10.0**power for power in powers[:: max(1, len(powers) // _TICKS)]]
    rough = (high / 2 - low / 2) / _TICKS * 2
    if not math.isfinite(rough) or rough <= 0:
        return [low, high]
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next(factor for factor in (1, 2, 5, 10) if factor * unit >= rough * (1 - 1e-9))
    ticks = [math.ceil(low / step) * step + i * step for i in range(2 * _TICKS + 1)]
    return [tick for tick in ticks if low <= tick <= high]


def _axis_x(values: Sequence[float], at: Callable[[float], float], label: str, log: bool) -> list[str]:
    bottom = _HEIGHT - _BOTTOM
    parts = [_line(_LEFT, bottom, _WIDTH - _RIGHT, bottom)]
    for tick in _ticks(values, log):
        x = at(tick)
        parts += [_line(x, bottom, x, bottom + 4), _label(x, bottom + 16, f"{tick:.4g}", "middle")]
    return [*parts, _label((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, label, "middle")]


def _axis_y(values: Sequence[float], at: Callable[[float], float], label: str) -> list[str]:
    parts = [_line(_LEFT, _TOP, _LEFT, _HEIGHT - _BOTTOM)]
    for tick in _ticks(values, False):
        y = at(tick)
        parts += [_line(_LEFT - 4, y, _LEFT, y), _label(_LEFT - 6, y + 4, f"{tick + 0.0:.4g}", "end")]
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return [*parts, f'<g transform="rotate(-90 12 {middle:.1f})">{_label(12, middle, label, "middle")}</g>']


def _legend(series: Sequence[Series]) -> list[str]:
    """A sample of each series with its label, from left to right above the plot, the last one first.

    Of several with one label one is shown.
    """
    parts, x, y = [], float(_LEFT), -_LEGEND / 2
    for one in {one.label: one for one in reversed(series)}.values():
        label = one_line(one.label)
        label = label if len(label) <= _LONGEST_LABEL else f"{label[:_LONGEST_LABEL]}…"
        dashes = ' stroke-dasharray="4 3"' if one.dashed else ""
        style = f'stroke="{_text(one.color)}" stroke-width="1.6"{dashes}'
        parts += [f'<path d="M{x:.1f} {y:.1f}h20" {style}/>', _label(x + 26, y + 4, label, "start")]
        x += 26 + _CHARACTER * len(label) + 16
    return parts


def _drawn(series: Series, points: Sequence[tuple[float, float]]) -> list[str]:
    color, title = _text(series.color), f"<title>{_text(series.label)}</title>"
    parts = []
    if series.line:
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashes = ' stroke-dasharray="4 3"' if series.dashed else ""
        style = f'fill="none" stroke="{color}" stroke-width="1.6"{dashes}'
        parts.append(f'<polyline points="{joined}" {style}>{title}</polyline>')
    if series.dots:
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>' for x, y in points)
        parts.append(f'<g fill="{color}" fill-opacity="0.75">{title}{dots}</g>')
    return parts


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="currentColor" stroke-opacity="0.6"/>'


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_text(text)}</text>'


def _text(text: str) -> str:
    return escape(one_line(text))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of texts, which are escaped here."""
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in plain text, columns set to the right."""
    cells = [[one_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(lines)
