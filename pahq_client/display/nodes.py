"""Shows circuits of nodes: in notebooks, and as a page that needs no script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from html import escape
from typing import TYPE_CHECKING

from pahq_client import formatting
from pahq_client.display import palette
from pahq_client.display.plots import table
from pahq_client.formatting import one_line, printable

if TYPE_CHECKING:
    from pahq_client.node_circuit import NodeCircuit, NodeFigures

# The border of a head grows with the share of its neurons that is kept, in so many steps.
_SHADES = 4
_STYLE = """
body { margin: 0 auto; padding: 20px; max-width: 1200px; background: var(--ground); color: var(--ink);
  font: 14px/1.45 "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums; }
h1 { margin: 0; font-size: 18px; font-weight: 600; overflow-wrap: anywhere; }
h2 { margin: 24px 0 6px; font-size: 15px; font-weight: 600; }
p { margin: 4px 0; overflow-wrap: anywhere; }
.muted, th { color: var(--muted); font-weight: normal; text-align: left; }
table { border-collapse: collapse; }
th, td { padding: 4px 12px 4px 0; vertical-align: top; }
.wide { overflow-x: auto; }
.wide tr:nth-child(even) { background: var(--band); }
.heads { display: flex; flex-wrap: wrap; align-items: center; gap: 3px; max-width: 620px; }
.head { min-width: 26px; padding: 1px 4px; border: 1px solid var(--rule); border-radius: 6px;
  background: var(--node); color: var(--muted); text-align: center; font-size: 11px; }
.head.kept { border-color: var(--accent); color: var(--ink); font-weight: 600; }
.head.s1 { border-width: 1px; } .head.s2 { border-width: 2px; }
.head.s3 { border-width: 3px; } .head.s4 { border-width: 4px; }
meter { width: 90px; vertical-align: middle; }
.gone { opacity: .45; }
.warning { border-left: 3px solid var(--negative); padding-left: 8px; }
"""


def notebook_html(circuit: NodeCircuit) -> str:
    """Shows a circuit in a notebook: a summary, warnings, and how many nodes each layer keeps."""
    warnings = "".join(f"<p><b>Warning</b>: {escape(one_line(text))}</p>" for text in circuit.warnings)
    kinds = list(circuit.counts)
    rows = [
        [str(layer), *(str(counts[kind]) for kind in kinds)]
        for layer, counts in enumerate(circuit.nodes_per_layer())
    ]
    shown = table(["layer", *(kind.replace("_", " ") for kind in kinds)], rows)
    return f"<p><b>NodeCircuit</b>: {escape(circuit.summary())}</p>{warnings}{shown}"


def page(circuit: NodeCircuit) -> str:
    """The page of a circuit: figures, and for each layer the kept heads and shares of the MLP."""
    title = printable(", ".join(filter(None, [formatting.task(circuit.run.get("task")), circuit.model])))
    title = one_line(title) or "Circuit of nodes"
    style = palette.as_css() + _STYLE
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{style}</style></head><body>",
        f"<header><h1>{escape(title)}</h1>",
        f'<p class="muted">{escape(" · ".join(_facts(circuit)))}</p></header><main>',
        *(f'<p class="warning">{escape(one_line(text))}</p>' for text in circuit.warnings),
        "<h2>Figures</h2>",
        table(["", "KL", "exact match", "accuracy", "logit difference", "weights"], list(_figures(circuit))),
        "<h2>Kept nodes</h2>",
        table(["kind", "kept", "of", "trained", "pruned"], list(_kinds(circuit))),
        "<h2>Layers, the last one on top</h2>",
        '<p class="muted">The more neurons of a head are kept, the thicker its border.</p>',
        '<div class="wide"><table><tr><th>layer</th><th>heads</th><th>attention neurons</th>',
        "<th>MLP hidden units</th><th>MLP outputs</th></tr>" if circuit.layout.d_mlp else "</tr>",
        *(_layer(circuit, layer) for layer in reversed(range(circuit.layout.layers))),
        "</table></div></main></body></html>",
        "",
    ]
    return "\n".join(parts)


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
        pruned = "yes" if kind in circuit.kinds else "no"
        yield [kind.replace("_", " "), f"{kept:,}", f"{count:,}", f"{trained:,}", pruned]


def _layer(circuit: NodeCircuit, layer: int) -> str:
    kept, layout = circuit.kept, circuit.layout
    neurons = kept["attention_neurons"][layer].reshape(layout.heads, layout.d_head).sum(1).tolist()
    heads = "".join(
        _head(layer, head, neurons[head], layout.d_head) if there else f'<span class="head">{head}</span>'
        for head, there in enumerate(kept["heads"][layer].tolist())
    )
    shares = ["attention_neurons", *(["mlp_hidden", "mlp_outputs"] if layout.d_mlp else [])]
    cells = "".join(
        f"<td>{_share(int(kept[kind][layer].sum()), kept[kind].shape[1])}</td>" for kind in shares
    )
    gone = "" if kept["layers"][layer, 0] else ' class="gone"'
    return f'<tr{gone}><td>{layer}</td><td><div class="heads">{heads}</div></td>{cells}</tr>'


def _head(layer: int, head: int, neurons: int, count: int) -> str:
    shade = max(1, -(-_SHADES * neurons // count))
    title = f"a{layer}.h{head}: {neurons} of {count} neurons"
    return f'<span class="head kept s{shade}" title="{title}">{head}</span>'


def _share(kept: int, count: int) -> str:
    return f'<meter value="{kept}" max="{count}"></meter> {kept:,} of {count:,}'
