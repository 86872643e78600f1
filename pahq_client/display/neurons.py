"""Shows neuron sets: in notebooks, and as a page that needs no script."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from pahq_client.display.document import document
from pahq_client.display.plots import table
from pahq_client.formatting import one_line, printable

if TYPE_CHECKING:
    from pahq_client.neuron_set import Neuron, NeuronContext, NeuronSet

# Neurons of each side that a page and a notebook show, and tokens around the active one.
_ON_PAGE, _IN_NOTEBOOK = 100, 10
_BEFORE, _AFTER = 10, 5
# Characters of a text without known tokens.
_EXCERPT = 100
_COLUMNS = ("neuron", "delta", "positive", "negative", "mean", "q95")
_STYLE = """
.contexts td { vertical-align: top; }
.contexts td:last-child, .contexts th:last-child { text-align: left; white-space: normal; }
.contexts p { margin: 0; }
mark { background: none; color: var(--accent); font-weight: 600; }
"""


def notebook_html(found: NeuronSet) -> str:
    """Shows a set in a notebook: a summary, warnings, the first neurons, and how many each layer has."""
    warnings = "".join(f"<p><b>Warning</b>: {escape(one_line(text))}</p>" for text in found.warnings)
    head = f"<p><b>Neurons</b>: {escape(found.summary())}</p>"
    tables = [
        f"<p>{title}</p>{table(_COLUMNS, list(map(_cells, neurons[:_IN_NOTEBOOK])))}"
        for title, neurons in _sides(found)
    ]
    layers = f"<details><summary>Neurons of each layer</summary>{_layers(found)}</details>"
    return f"{head}{warnings}{''.join(tables)}{layers}"


def page(found: NeuronSet) -> str:
    """The page of a set: how many neurons each layer has, and each with the tokens that make it active."""
    title = one_line(", ".join(filter(None, ["Neurons", found.model])))
    body = ["<h2>Layers</h2>", _layers(found)]
    for name, neurons in _sides(found):
        body.append(f"<h2>{escape(name)}</h2>")
        body.append(_with_contexts(found, neurons[:_ON_PAGE]))
        if len(neurons) > _ON_PAGE:
            body.append(f'<p class="muted">… and {len(neurons) - _ON_PAGE} more</p>')
    return document(title, _facts(found), found.warnings, body, _STYLE)


def _sides(found: NeuronSet) -> tuple[tuple[str, Sequence[Neuron]], tuple[str, Sequence[Neuron]]]:
    return (
        (f"Raised: {len(found.raised)}, more often active in positive texts", found.raised),
        (f"Lowered: {len(found.lowered)}, more often active in negative texts", found.lowered),
    )


def _facts(found: NeuronSet) -> Iterator[str]:
    if found.partial:
        yield "partial: the job did not come to its end"
    if found.control is not None:
        yield f"random control {found.control}, with the figures of the neurons that it stands for"
    for name, texts, tokens in zip(("positive", "negative"), found.texts, found.tokens, strict=True):
        yield f"{texts} {name} texts with {tokens} tokens that count"
    yield f"delta at least {found.min_delta:g}, at most {found.top_k} of a side"
    if found.model_revision:
        yield f"revision {one_line(found.model_revision[:12])}"


def _layers(found: NeuronSet) -> str:
    rows = [[str(layer), str(a), str(b)] for layer, (a, b) in enumerate(found.per_layer)]
    return table(["layer", "raised", "lowered"], rows)


def _cells(neuron: Neuron) -> list[str]:
    shares = (f"{neuron.positive_share:.1%}", f"{neuron.negative_share:.1%}")
    return [neuron.name, f"{neuron.delta:+.3f}", *shares, f"{neuron.mean:.3g}", f"{neuron.q95:.3g}"]


def _with_contexts(found: NeuronSet, neurons: Iterable[Neuron]) -> str:
    head = "".join(f"<th>{name}</th>" for name in (*_COLUMNS, "most active at"))
    rows = []
    for neuron in neurons:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in _cells(neuron))
        contexts = "".join(f"<p>{_context(context)}</p>" for context in found.contexts_of(neuron))
        rows.append(f"<tr>{cells}<td>{contexts}</td></tr>")
    return f'<div class="picture"><table class="contexts"><tr>{head}</tr>{"".join(rows)}</table></div>'


def _context(context: NeuronContext) -> str:
    """One token with those around it, marked, or where it is."""
    where = f"{context.value:.3g} in text {context.text}, token {context.position}"
    if context.token:
        before = words(context.before[-_BEFORE:])
        after = words(context.after[:_AFTER])
        cut = "…" if len(context.before) > _BEFORE else ""
        more = "…" if len(context.after) > _AFTER else ""
        shown = f"{escape(cut + before)}<mark>{escape(words([context.token]))}</mark>{escape(after + more)}"
        return f'{shown} <span class="muted">{escape(where)}</span>'
    said = context.prompt if isinstance(context.prompt, str) else ""
    excerpt = said[:_EXCERPT] + ("…" if len(said) > _EXCERPT else "")
    return f'{escape(one_line(excerpt))} <span class="muted">{escape(where)}</span>'


def words(tokens: Iterable[str]) -> str:
    """Joins tokens as vocabularies write them, with their marks of spaces and line breaks as spaces."""
    joined = "".join(tokens)
    for mark in ("Ġ", "▁", "Ċ", "\n", "\t"):
        joined = joined.replace(mark, " ")
    return printable(joined)
