"""Draws a circuit as a static SVG: the same text for the same circuit, for papers and notebooks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

from pahq_client.display.layout import PORTS, Box, Layout, number
from pahq_client.display.palette import LIGHT
from pahq_client.display.picture import Picture, PictureEdge
from pahq_client.formatting import printable

FONT = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"
# Widths of the thinnest and the thickest edge, and of one without a score.
THINNEST, THICKEST, UNMEASURED = 0.7, 6.0, 1.1
_LEGEND_HEIGHT = 34.0
_CHARACTER = 5.6


def to_svg(picture: Picture, count: int | None = None, *, titles: bool = True) -> str:
    """Draws a picture with one side.

    Args:
        picture: what to draw.
        count: how many of its edges, the largest first; all of them if None.
        titles: whether edges have their name and score as a title, which viewers show on hovering.
    """
    layout = picture.layout()
    edges = list(zip(picture.edges, picture.paths(layout), strict=True))[:count]
    legend = list(_legend([edge for edge, _ in edges]))
    width = max(layout.width, sum(map(_legend_width, legend)) + 40)
    height = layout.height + _LEGEND_HEIGHT
    side = picture.sides[0]
    description = f"{len(edges)} of {side.graph_edges} edges. Layers from bottom to top."
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {number(width)} {number(height)}" '
        f'width="{number(width)}" height="{number(height)}" role="img" font-family="{escape(FONT)}" '
        f'font-size="11">',
        f"<title>{_text(side.name)}</title>",
        f"<desc>{_text(description)}</desc>",
        f'<rect width="{number(width)}" height="{number(height)}" fill="{LIGHT["ground"]}"/>',
        *_bands(layout, width),
        '<g fill="none" stroke-linecap="round">',
        # The largest are drawn last, over the others.
        *(_edge(edge, path, titles) for edge, path in reversed(edges)),
        "</g>",
        *_nodes(layout, [edge for edge, _ in edges]),
        *_draw_legend(legend, layout.height + _LEGEND_HEIGHT / 2 - 6),
        "</svg>",
        "",
    ]
    return "\n".join(lines)


def stroke_width(edge: PictureEdge) -> float:
    """The width of an edge. By square roots: most scores are far below the largest."""
    if edge.score is None:
        return UNMEASURED
    return THINNEST + (THICKEST - THINNEST) * math.sqrt(edge.share)


def opacity(edge: PictureEdge) -> float:
    """How opaque an edge is: the more edges come before it, the fainter, so that it does not hide them."""
    by_rank = 0.55 * min(1.0, 6.0 / math.sqrt(edge.rank + 1))
    return 0.15 + 0.8 * max(by_rank, math.sqrt(edge.share))


def _colour(edge: PictureEdge) -> str:
    if edge.score is None:
        return "unmeasured"
    return "negative" if edge.score < 0 else edge.kind if edge.kind in PORTS else "other"


def _edge(edge: PictureEdge, path: str, titles: bool) -> str:
    dashes = ' stroke-dasharray="4 3"' if edge.score is None else ""
    style = f'stroke="{LIGHT[_colour(edge)]}" stroke-width="{stroke_width(edge):.2f}"'
    start = f'<path d="{path}" {style} stroke-opacity="{opacity(edge):.2f}"{dashes}'
    if not titles:
        return f"{start}/>"
    score = "not measured" if edge.score is None else f"{edge.score:.6g}"
    return f"{start}><title>{_text(f'{edge.name}  {score}')}</title></path>"


def _bands(layout: Layout, width: float) -> Iterator[str]:
    for index, band in enumerate(layout.bands):
        middle = number((band.top + band.bottom) / 2 + 3.5)
        if index % 2 == 0:
            top, height = number(band.top), number(band.bottom - band.top)
            yield f'<rect y="{top}" width="{number(width)}" height="{height}" fill="{LIGHT["band"]}"/>'
        yield f'<text x="20" y="{middle}" fill="{LIGHT["muted"]}">{_text(band.label)}</text>'


def _nodes(layout: Layout, edges: list[PictureEdge]) -> Iterator[str]:
    used = {name for edge in edges for name in (edge.source, *edge.ends)}
    ports = {(end, edge.kind) for edge in edges for end in edge.ends if edge.kind in PORTS}
    for name, box in layout.boxes.items():
        if name in used:
            yield from _node(name, box)
            for kind in (kind for kind in PORTS if (name, kind) in ports):
                x, y = number(box.x + PORTS[kind] * box.width), number(box.y + box.height / 2)
                yield f'<circle cx="{x}" cy="{y}" r="2.4" fill="{LIGHT[kind]}"/>'


def _node(name: str, box: Box) -> Iterator[str]:
    form = node_form(name)
    fill, line, ink = {
        "end": ("end-node", "end-node", "end-ink"),
        "mlp": ("mlp-node", "outline", "ink"),
        "head": ("node", "outline", "ink"),
    }[form]
    left, top = number(box.x - box.width / 2), number(box.y - box.height / 2)
    radius = {"end": 11, "mlp": 3, "head": 7}[form]
    yield (
        f'<rect x="{left}" y="{top}" width="{number(box.width)}" height="{number(box.height)}" rx="{radius}" '
        f'fill="{LIGHT[fill]}" stroke="{LIGHT[line]}"/>'
    )
    place = f'x="{number(box.x)}" y="{number(box.y + 3.8)}" text-anchor="middle"'
    yield f'<text {place} fill="{LIGHT[ink]}">{_text(name[:16])}</text>'


def node_form(name: str) -> str:
    """How a node is drawn: ``head``, ``mlp`` or ``end`` (the input and the logits)."""
    return "head" if name.startswith("a") else "mlp" if name.startswith("m") else "end"


def _legend(edges: list[PictureEdge]) -> Iterator[tuple[str, str]]:
    """The colours that are in the picture, with what they mean."""
    used = {_colour(edge) for edge in edges}
    words = {
        "q": "query",
        "k": "key",
        "v": "value",
        "other": "into MLP or logits",
        "negative": "negative score",
        "unmeasured": "not measured",
    }
    yield from ((colour, text) for colour, text in words.items() if colour in used)


def _legend_width(item: tuple[str, str]) -> float:
    return 28 + _CHARACTER * len(item[1]) + 18


def _draw_legend(items: list[tuple[str, str]], y: float) -> Iterator[str]:
    x = 20.0
    for colour, text in items:
        dashes = ' stroke-dasharray="4 3"' if colour == "unmeasured" else ""
        line = f'd="M{number(x)},{number(y)}h20" stroke="{LIGHT[colour]}"'
        yield f'<path {line} stroke-width="2.5"{dashes}/>'
        place = f'x="{number(x + 26)}" y="{number(y + 3.8)}"'
        yield f'<text {place} fill="{LIGHT["muted"]}">{_text(text)}</text>'
        x += _legend_width((colour, text))


def _text(text: str) -> str:
    return escape(printable(text))
