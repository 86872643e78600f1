"""Draws a circuit of nodes as SVG: of each layer its heads, and what is kept of its MLP.

Layers lie one above the other, the last one on top. A head is filled as far as its neurons are kept, a bar as
far as the units of an MLP are. What training had kept and polishing removed is told apart: heads are dashed,
bars go on in a lighter tone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from typing import TYPE_CHECKING

from pahq_client.display.layout import number
from pahq_client.display.palette import LIGHT
from pahq_client.display.svg import FONT
from pahq_client.errors import InvalidRequest

if TYPE_CHECKING:
    from pahq_client.node_circuit import NodeCircuit

# More heads would make a page slow.
MOST_HEADS = 20_000
_LEFT, _TOP, _BOTTOM = 72.0, 34.0, 34.0
_CELL, _HEIGHT, _GAP, _PADDING = 24.0, 18.0, 3.0, 5.0
_PER_ROW = 16  # heads side by side
_BAR, _COUNT = 130.0, 92.0  # the width of a bar, and of the numbers beside it
_CHARACTER = 6.0

Colour = Callable[[str], str]


def static(circuit: NodeCircuit) -> str:
    """The picture as a file of its own, in light colours. Raises as `drawn`."""
    element = drawn(circuit, LIGHT.__getitem__)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {element.removeprefix("<svg ")}\n'


def drawn(circuit: NodeCircuit, colour: Colour) -> str:
    """The picture as an SVG element of a page.

    Args:
        circuit: what to draw.
        colour: gives the value of a colour by its name in `palette`.

    Raises:
        InvalidRequest: the model has too many heads to be drawn.
    """
    layout = circuit.layout
    if layout.layers * layout.heads > MOST_HEADS:
        detail = f"has {layout.layers * layout.heads} heads; a picture takes at most {MOST_HEADS}"
        raise InvalidRequest("circuit", f"{detail}: see nodes_per_layer()")
    columns = min(layout.heads, _PER_ROW)
    rows = -(-layout.heads // _PER_ROW)
    bars = _LEFT + max(columns * (_CELL + _GAP), _CHARACTER * len(_HEADS)) + 12
    parts = 3 if layout.d_mlp else 1
    width, row = bars + parts * (_BAR + _COUNT), rows * (_HEIGHT + _GAP) - _GAP + 2 * _PADDING
    height = _TOP + layout.layers * row + _BOTTOM
    size = f'viewBox="0 0 {number(width)} {number(height)}" width="{number(width)}" height="{number(height)}"'
    return "\n".join(
        [
            f'<svg {size} role="img" font-family="{escape(FONT)}" font-size="11">',
            f"<title>{len(circuit.heads)} of {layout.layers * layout.heads} heads</title>",
            f'<rect width="{number(width)}" height="{number(height)}" fill="{colour("ground")}"/>',
            *_headings(circuit, bars, colour),
            *(
                line
                for layer in range(layout.layers)
                for line in _layer(
                    circuit, layer, _TOP + (layout.layers - 1 - layer) * row, width, row, bars, colour
                )
            ),
            *(_legend(height - _BOTTOM / 2, colour) if circuit.polished else ()),
            "</svg>",
        ]
    )


_HEADS = "heads, filled as far as their neurons are kept"
# Bars: the kind, its heading, and its colour.
_BARS = (
    ("attention_neurons", "attention neurons", "q"),
    ("mlp_hidden", "MLP hidden units", "k"),
    ("mlp_outputs", "MLP outputs", "v"),
)


def _headings(circuit: NodeCircuit, bars: float, colour: Colour) -> Iterator[str]:
    yield _label(_LEFT, _TOP - 10, _HEADS, colour("muted"))
    for index, (kind, words, _) in enumerate(_BARS):
        if circuit.kept[kind].size:
            yield _label(bars + index * (_BAR + _COUNT), _TOP - 10, words, colour("muted"))


def _layer(
    circuit: NodeCircuit, layer: int, top: float, width: float, height: float, bars: float, colour: Colour
) -> Iterator[str]:
    layout, middle = circuit.layout, top + height / 2
    if layer % 2 == 0:
        band = f'y="{number(top)}" width="{number(width)}" height="{number(height)}"'
        yield f'<rect {band} fill="{colour("band")}"/>'
    yield _label(16, middle + 3.8, f"layer {layer}", colour("muted"))
    neurons = circuit.kept["attention_neurons"][layer].reshape(layout.heads, layout.d_head).sum(1).tolist()
    trained = circuit.trained["heads"][layer].tolist()
    for head, count in enumerate(neurons):
        x = _LEFT + head % _PER_ROW * (_CELL + _GAP)
        y = top + _PADDING + head // _PER_ROW * (_HEIGHT + _GAP)
        title = f"a{layer}.h{head}: {count} of {layout.d_head} neurons"
        yield from _head(x, y, head, count / layout.d_head, trained[head], title, colour)
    for index, (kind, words, name) in enumerate(_BARS):
        kept, before = circuit.kept[kind][layer], circuit.trained[kind][layer]
        if kept.size:
            x = bars + index * (_BAR + _COUNT)
            shares = int(before.sum()) / kept.size, int(kept.sum()) / kept.size
            title = f"layer {layer}, {words}: training kept {int(before.sum()):,}, now {int(kept.sum()):,}"
            yield from _bar(x, middle - 4.5, *shares, title, colour(name), colour)
            counts = f"{int(kept.sum()):,} / {kept.size:,}"
            ink = colour("ink" if kept.any() else "muted")
            yield _label(x + _BAR + 8, middle + 3.8, counts, ink)


def _head(
    x: float, y: float, head: int, share: float, trained: bool, title: str, colour: Colour
) -> Iterator[str]:
    """A head: empty and faint if it is not kept, dashed if only training kept it."""
    box = f'x="{number(x)}" y="{number(y)}" width="{number(_CELL)}" height="{number(_HEIGHT)}" rx="4"'
    line = colour("q") if share or trained else colour("rule")
    dashes = ' stroke-dasharray="3 2"' if trained and not share else ""
    yield f'<g><title>{escape(title)}</title><rect {box} fill="{colour("node")}" stroke="{line}"{dashes}/>'
    if share:
        inner = share * (_HEIGHT - 2)
        place = f'x="{number(x + 1)}" y="{number(y + _HEIGHT - 1 - inner)}"'
        size = f'width="{number(_CELL - 2)}" height="{number(inner)}" rx="2.5"'
        yield f'<rect {place} {size} fill="{colour("q")}" fill-opacity=".32"/>'
    ink = colour("ink") if share else colour("muted")
    weight = ' font-weight="600"' if share else ' opacity=".75"'
    place = f'x="{number(x + _CELL / 2)}" y="{number(y + _HEIGHT / 2 + 3.6)}" text-anchor="middle"'
    yield f'<text {place} font-size="10"{weight} fill="{ink}">{head}</text></g>'


def _bar(
    x: float, y: float, trained: float, kept: float, title: str, fill: str, colour: Colour
) -> Iterator[str]:
    place = f'x="{number(x)}" y="{number(y)}" height="9" rx="2"'
    yield f"<g><title>{escape(title)}</title>"
    yield f'<rect {place} width="{number(_BAR)}" fill="{colour("node")}" stroke="{colour("rule")}"/>'
    for share, opacity in ((trained, ".28"), (kept, "1")):
        if share:
            yield f'<rect {place} width="{number(share * _BAR)}" fill="{fill}" fill-opacity="{opacity}"/>'
    yield "</g>"


def _legend(y: float, colour: Colour) -> Iterator[str]:
    cell = f'y="{number(y - 7)}" width="20" height="14" rx="4"'
    x, line = _LEFT, f'stroke="{colour("q")}"'
    yield f'<rect x="{number(x)}" {cell} fill="{colour("q")}" fill-opacity=".32" {line}/>'
    yield _label(x + 26, y + 3.8, "kept", colour("muted"))
    x += 68
    yield f'<rect x="{number(x)}" {cell} fill="{colour("node")}" {line} stroke-dasharray="3 2"/>'
    bar = f'y="{number(y - 4.5)}" width="20" height="9" rx="2"'
    yield f'<rect x="{number(x + 26)}" {bar} fill="{colour("k")}" fill-opacity=".28"/>'
    yield _label(x + 54, y + 3.8, "kept by training, then removed by measurement", colour("muted"))


def _label(x: float, y: float, text: str, ink: str) -> str:
    return f'<text x="{number(x)}" y="{number(y)}" fill="{ink}">{escape(text)}</text>'
