"""Places the nodes of a circuit and routes its edges: the geometry that the page and the static SVG share.

Layers lie one above the other, the input below and the logits on top. Heads stand in columns by their
number, with the MLPs, which most edges lead from or to, in a column between them. Columns, rows and layers
that a picture does not use are left out.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pahq_client.graph import Graph

NODE_HEIGHT = 22.0
# Where q, k and v enter the box of a head, as a share of its width from the middle.
PORTS = {"q": -0.28, "k": 0.0, "v": 0.28}

_NODE = re.compile(r"a(\d{1,9})\.([hg])(\d{1,9})|m(\d{1,9})", re.ASCII)
_MARGIN = 28.0
_LABELS = 64.0  # room for the names of layers, at the left
_CHARACTER = 6.4  # width of a character of a node's name
_MLP_GAP = 0.35  # more room beside the column of MLPs, in columns
# Widths and heights that a picture gets if it has room enough for them.
_USUAL_WIDTH, _USUAL_HEIGHT = 760.0, 640.0
# How far the handles of a curve reach from its ends, as shares of its rise: usually both alike, else so that
# it moves across late or early. The third number is its cost, beside which that of a detour is its size.
_LIFTS = ((0.42, 0.42, 0.0), (0.8, 0.12, 0.05), (0.12, 0.8, 0.05), (0.95, 0.3, 0.1), (0.3, 0.95, 0.1))
# How far a curve may swing out beyond its ends to pass between nodes, in columns, nearest first.
_DETOURS = (0.5, -0.5, 1.0, -1.0, 1.5, -1.5)


class Box(NamedTuple):
    """The box of a node: its centre and its size."""

    x: float
    y: float
    width: float
    height: float


class Band(NamedTuple):
    """The strip behind a layer."""

    label: str
    top: float
    bottom: float


@dataclass(frozen=True)
class Layout:
    """Where the nodes are. Coordinates are in pixels, y grows downwards.

    Args:
        width, height: size of the whole picture.
        boxes: the box of every node, in the order in which the model computes them.
        bands: the strips of the layers, the lowest layer first.
        pitch: distance of two columns.
    """

    width: float
    height: float
    boxes: dict[str, Box]
    bands: tuple[Band, ...]
    pitch: float

    def rows(self) -> dict[float, list[Box]]:
        """The boxes at each height."""
        rows: dict[float, list[Box]] = defaultdict(list)
        for box in self.boxes.values():
            rows[box.y].append(box)
        return rows


class _Place(NamedTuple):
    """The row of a node (layer, part of the layer) and its column; None for what stands in the middle."""

    layer: float
    part: int
    column: float | None


def arrange(nodes: Collection[str], graph: Graph) -> Layout:
    """Places nodes.

    Args:
        nodes: names of nodes: senders, ``logits``, and ``a1.g0`` for a group of heads that nothing reads.
        graph: the graph that they belong to.
    """
    places = {name: _place(name, graph) for name in nodes}
    order = sorted(places, key=lambda name: (places[name][:2], places[name].column or 0.0, name))
    width = max((_CHARACTER * len(name) + 12 for name in nodes), default=0.0)
    width = min(max(width, 46.0), 120.0)  # a name of another tool may have any length
    columns = _with_spine({place.column for place in places.values() if place.column is not None})
    pitch = min(max(_USUAL_WIDTH / max(len(columns), 1), width + 16), width + 44)
    across = _columns(columns, _LABELS + _MARGIN + width / 2, pitch)
    right = max(across.values(), default=_LABELS + _MARGIN + 2 * width) + width / 2 + _MARGIN
    rows = sorted({place[:2] for place in places.values()}, reverse=True)
    gap = min(max(_USUAL_HEIGHT / max(len(rows) - 1, 1), 46.0), 84.0)
    heights = {row: _MARGIN + NODE_HEIGHT / 2 + gap * index for index, row in enumerate(rows)}
    middle = across.get(math.inf, (min(across.values()) + max(across.values())) / 2) if across else right / 2
    boxes: dict[str, Box] = {}
    loose: dict[tuple[float, int], int] = defaultdict(int)
    for name in order:
        place, y = places[name], heights[places[name][:2]]
        if place.column is not None:
            boxes[name] = Box(across[place.column], y, width, NODE_HEIGHT)
        else:  # input, logits, and names that no model has: side by side
            boxes[name] = Box(middle + loose[place[:2]] * 2 * pitch, y, width * 1.6, NODE_HEIGHT)
            loose[place[:2]] += 1
    right = max((box.x + box.width / 2 + _MARGIN for box in boxes.values()), default=right)
    height = 2 * _MARGIN + NODE_HEIGHT + gap * max(len(rows) - 1, 0)
    return Layout(max(right, 2 * _LABELS), height, boxes, tuple(_bands(heights, gap)), pitch)


def _place(name: str, graph: Graph) -> _Place:
    match = _NODE.fullmatch(name)
    if match is None:
        return _Place(-1.0 if name == "input" else math.inf, 0, None)
    if match[4]:
        return _Place(int(match[4]), 0 if graph.parallel else 1, math.inf)
    unit = int(match[3])
    # A group stands beside its first head, whose own box may be in the picture because of its query.
    return _Place(int(match[1]), 0, unit if match[2] == "h" else graph.group_heads(unit).start + 0.5)


def _with_spine(columns: set[float]) -> list[float]:
    """The columns from left to right: half of the heads, the MLPs, the other heads."""
    heads = sorted(columns - {math.inf})
    half = (len(heads) + 1) // 2
    return [*heads[:half], *(columns & {math.inf}), *heads[half:]]


def _columns(columns: list[float], left: float, pitch: float) -> dict[float, float]:
    """The x of every column; there is some more room beside the MLPs."""
    across, x = {}, left
    for index, column in enumerate(columns):
        x += pitch * (_MLP_GAP if index and math.inf in columns[index - 1 : index + 1] else 0.0)
        across[column] = x
        x += pitch
    return across


def _bands(heights: dict[tuple[float, int], float], gap: float) -> Iterator[Band]:
    layers: dict[float, list[float]] = defaultdict(list)
    for (layer, _), y in heights.items():
        layers[layer].append(y)
    for layer in sorted(layers):
        if 0 <= layer < math.inf:
            yield Band(f"layer {layer:.0f}", min(layers[layer]) - gap / 2, max(layers[layer]) + gap / 2)


class Router:
    """Draws edges as curves that rise from their sender, and pass between other nodes where they can."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        rows = layout.rows()
        self._heights = sorted(rows)
        self._rows = {y: sorted((box.x, box.width) for box in boxes) for y, boxes in rows.items()}

    def path(self, source: str, ends: Collection[str], kind: str) -> str:
        """The path of an edge in the language of SVG: one curve to each node that the edge feeds."""
        return "".join(self._curve(self._layout.boxes[source], self._layout.boxes[end], kind) for end in ends)

    def _curve(self, source: Box, target: Box, kind: str) -> str:
        start = source.x + _spread(source, target), source.y - source.height / 2
        entry = PORTS[kind] * target.width if kind in PORTS else _spread(target, source)
        end = target.x + entry, target.y + target.height / 2
        best, least = (0.0, 0.0, 0.0), math.inf
        for cost, lifts, aside in self._ways(start, end):
            if cost >= least:
                continue
            passed = self._passed(start, end, lifts)
            cost += 4 * sum(self._hits(row, (t, start[0], end[0], aside)) for t, row in passed)
            if cost < least:
                best, least = (*lifts, aside), cost
        first, second = (start[0] + best[2], start[1] - best[0]), (end[0] + best[2], end[1] + best[1])
        return f"M{_pair(start)}C{_pair(first)} {_pair(second)} {_pair(end)}"

    def _ways(
        self, start: tuple[float, float], end: tuple[float, float]
    ) -> Iterator[tuple[float, tuple[float, float], float]]:
        """Curves to try: what each costs without nodes in the way, how far its handles rise and are aside."""
        rise = start[1] - end[1]
        for first, second, cost in _LIFTS:
            yield cost, (max(first * rise, 12.0), max(second * rise, 12.0)), 0.0
        lift = max(_LIFTS[0][0] * rise, 12.0)
        for detour in _DETOURS:
            aside = detour * self._layout.pitch * 4 / 3  # a cubic curve goes 3/4 of the way to its handles
            outside = 100.0 if self._is_outside(start[0], end[0], aside) else 0.0
            yield abs(detour) + outside, (lift, lift), aside

    def _passed(
        self, start: tuple[float, float], end: tuple[float, float], lifts: tuple[float, float]
    ) -> Iterator[tuple[float, float]]:
        """The points of a curve at which it crosses a row between its ends, as (t, height of the row)."""
        steps = int(max(start[1] - end[1], 0.0) / 9) + 1
        for step in range(1, steps):
            t = step / steps
            y = _bezier(t, start[1], start[1] - lifts[0], end[1] + lifts[1], end[1])
            index = bisect_left(self._heights, y - NODE_HEIGHT / 2 - 2)
            if index < len(self._heights):
                row = self._heights[index]
                if abs(row - y) <= NODE_HEIGHT / 2 + 2 and end[1] < row < start[1]:
                    yield t, row

    def _is_outside(self, start: float, end: float, aside: float) -> bool:
        middle = (start + end) / 2 + 0.75 * aside
        return not _LABELS <= middle <= self._layout.width - _MARGIN / 2

    def _hits(self, row: float, curve: tuple[float, float, float, float]) -> bool:
        """Whether a point of a curve (t, x of its ends, how far its handles are aside) is behind a box."""
        t, start, end, aside = curve
        x = _bezier(t, start, start + aside, end + aside, end)
        boxes = self._rows[row]
        index = bisect_left(boxes, (x,))
        return any(abs(at - x) < width / 2 + 3 for at, width in boxes[max(index - 1, 0) : index + 1])


def _spread(box: Box, other: Box) -> float:
    """How far from the middle of a box a curve meets it: on the side of the other end."""
    most = box.width * 0.38
    return min(max((other.x - box.x) * 0.08, -most), most)


def _bezier(t: float, a: float, b: float, c: float, d: float) -> float:
    s = 1 - t
    return s * s * s * a + 3 * s * s * t * b + 3 * s * t * t * c + t * t * t * d


def _pair(point: tuple[float, float]) -> str:
    return f"{number(point[0])},{number(point[1])}"


def number(value: float) -> str:
    """A coordinate, with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")
