"""Shows circuits of nodes: in notebooks, and as a page that needs no script."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from html import escape
from typing import TYPE_CHECKING

from pahq_client import formatting
from pahq_client.display import node_picture
from pahq_client.display.document import document
from pahq_client.display.plots import table
from pahq_client.errors import InvalidRequest
from pahq_client.formatting import one_line, printable
from pahq_client.node_layout import KIND_NAMES

if TYPE_CHECKING:
    from pahq_client.node_circuit import NodeCircuit, NodeFigures

# A picture in a notebook is no wider than this.
_WIDTH = "min(100%, 900px)"


def notebook_html(circuit: NodeCircuit) -> str:
    """Shows a circuit in a notebook: a summary, warnings, and how many nodes each layer keeps."""
    warnings = "".join(f"<p><b>Warning</b>: {escape(one_line(text))}</p>" for text in circuit.warnings)
    kinds = list(circuit.counts)
    rows = [
        [str(layer), *(str(counts[kind]) for kind in kinds)]
        for layer, counts in enumerate(circuit.nodes_per_layer())
    ]
    shown = table(["layer", *(KIND_NAMES[kind] for kind in kinds)], rows)
    head = f"<p><b>Circuit of nodes</b>: {escape(circuit.summary())}</p>"
    tables = f"<details><summary>Kept nodes of each layer</summary>{shown}</details>"
    return f"{head}{warnings}{_image(circuit)}{tables}"


def _image(circuit: NodeCircuit) -> str:
    """The picture as an image of its own, in which no script can run; nothing if it is too large."""
    try:
        picture = node_picture.static(circuit)
    except InvalidRequest:
        return ""
    source = base64.b64encode(picture.encode("utf-8")).decode("ascii")
    return f'<img alt="Kept nodes" style="width: {_WIDTH}" src="data:image/svg+xml;base64,{source}">'


def page(circuit: NodeCircuit) -> str:
    """The page of a circuit: figures, kept nodes of each kind, and the picture of all layers."""
    title = printable(", ".join(filter(None, [formatting.task(circuit.run.get("task")), circuit.model])))
    title = one_line(title) or "Circuit of nodes"
    body = [
        '<div class="tables"><div><h2>Figures</h2>',
        table(["", "KL", "exact match", "accuracy", "logit difference", "weights"], list(_figures(circuit))),
        "</div><div><h2>Nodes</h2>",
        table(["", "kept", "after training", "in all"], list(_kinds(circuit))),
        "</div></div><h2>Layers</h2>",
        f'<div class="picture">{_picture(circuit)}</div>',
    ]
    return document(title, _facts(circuit), circuit.warnings, body)


def _facts(circuit: NodeCircuit) -> Iterator[str]:
    """What is known of the job, for people."""
    if circuit.partial:
        yield "partial: the job did not come to its end, and nothing was measured"
    if circuit.budget is not None:
        yield f"KL within {circuit.budget:g}"
    if circuit.penalty is not None:
        yield f"penalty {circuit.penalty:g}"
    yield f"{circuit.steps} steps"
    if circuit.stochastic_kl is not None:
        yield f"KL of random gates {circuit.stochastic_kl:.4g}"
    if circuit.repaired:
        yield "repaired"
    yield "polished" if circuit.polished else "not polished"
    for name, value in (
        ("ablation", circuit.parameters.get("ablation")),
        ("precision", circuit.request.get("policy")),
        ("seed", circuit.parameters.get("seed")),
        ("revision", circuit.model_revision[:12]),
    ):
        if isinstance(value, str | int) and value != "":
            yield f"{name} {one_line(str(value))}"


def _figures(circuit: NodeCircuit) -> Iterator[list[str]]:
    rows = (
        ("circuit", circuit.figures, "kept"),
        ("after training", circuit.trained_figures, "trained"),
        ("full model", circuit.full, "all"),
    )
    every = max(1, circuit.kept_parameters["all"])
    for name, figures, weights in rows:
        count = circuit.kept_parameters[weights]
        yield [name, *_cells(figures), f"{count:,} ({count / every:.1%})"]


def _cells(figures: NodeFigures | None) -> list[str]:
    if figures is None:
        return ["not measured", "", "", ""]
    optional = (
        "" if figures.accuracy is None else f"{figures.accuracy:.1%}",
        "" if figures.logit_difference is None else f"{figures.logit_difference:.4g}",
    )
    return [f"{figures.kl:.4g}", f"{figures.exact_match:.1%}", *optional]


def _kinds(circuit: NodeCircuit) -> Iterable[list[str]]:
    for kind, (kept, count) in circuit.counts.items():
        trained = int(circuit.trained[kind].sum())
        name = KIND_NAMES[kind] if kind in circuit.kinds else f"{KIND_NAMES[kind]} (not pruned)"
        yield [name, f"{kept:,}", f"{trained:,}", f"{count:,}"]


def _picture(circuit: NodeCircuit) -> str:
    try:
        return node_picture.drawn(circuit, lambda name: f"var(--{name})")
    except InvalidRequest as error:
        return f'<p class="muted">{escape(error.detail)}</p>'
