"""Prints results as lines, as tables or as JSON, and warnings on stderr.

Parts of what is printed come from servers and from files, so all of it goes through `put` or `print_json`,
which escape what a terminal would obey.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal, TypeAlias

from pahq_client import circuit_file, formatting
from pahq_client.artifacts import AnyArtifact
from pahq_client.assigned_concepts import AssignedConcepts
from pahq_client.circuit import Circuit
from pahq_client.codebook import Codebook
from pahq_client.comparison import ScoreComparison
from pahq_client.concept_ablation import ConceptAblation
from pahq_client.curve import Curve
from pahq_client.display import circuits
from pahq_client.dose_response import ContinuationScores
from pahq_client.errors import PahqWarning
from pahq_client.events import Event, JobInfo
from pahq_client.formatting import local_time, one_line, printable
from pahq_client.neuron_set import NeuronSet
from pahq_client.node_circuit import NodeCircuit
from pahq_client.node_evaluation import NodeEvaluation
from pahq_client.results import Estimate, Evaluation
from pahq_client.samples import Samples
from pahq_client.scores import EdgeScores

Saved: TypeAlias = Samples | NodeCircuit | NeuronSet | Codebook

# Columns of a table outside of a terminal: nothing is broken or cut off.
_WIDE = 1_000_000


def put(*cells: object) -> None:
    """Prints a line of cells, with tabs between them, and with nothing that a terminal would obey."""
    print("\t".join(printable(str(cell)).replace("\n", " ") for cell in cells))


def save_and_print(found: Saved, arguments: Namespace) -> None:
    """Writes what was found to the file of ``--out``, if that is given, and prints it.

    Does both before it raises OSError: a full disk must not lose what was found.
    """
    failed: OSError | None = None
    if arguments.out is not None:
        try:
            found.save(arguments.out)
        except OSError as error:
            failed = error
    print_artifact(found, arguments.json)
    if failed is not None:
        raise failed


def print_artifact(artifact: AnyArtifact, as_json: bool) -> None:
    """Prints what a job gave; a line about an artifact of a kind that is not known."""
    if isinstance(artifact, Circuit):
        print_circuit(artifact, as_json)
    elif isinstance(artifact, EdgeScores):
        _print_scores(artifact, as_json)
    elif isinstance(artifact, Samples):
        _print_samples(artifact, as_json)
    elif isinstance(artifact, NodeCircuit):
        _print_node_circuit(artifact, as_json)
    elif isinstance(artifact, ContinuationScores):
        print_values({"logprobs": artifact.logprobs, "partial": artifact.partial}, as_json)
    elif isinstance(artifact, NeuronSet):
        _print_neuron_set(artifact, as_json)
    elif isinstance(artifact, Codebook):
        _print_codebook(artifact, as_json)
    elif isinstance(artifact, AssignedConcepts):
        _print_assigned(artifact, as_json)
    elif isinstance(artifact, ConceptAblation):
        _print_ablation(artifact, as_json)
    else:
        values = {"kind": artifact.kind, "version": artifact.version, "partial": artifact.partial}
        print_values({**values, "bytes": len(artifact.data)}, as_json)


def _print_codebook(codebook: Codebook, as_json: bool) -> None:
    """Prints a summary, then a concept per line, the largest first, with its most frequent tokens."""
    if as_json:
        figures = ("low", "high", "tokens", "used", "perplexity", "explained", "partial")
        concepts = [dataclasses.asdict(concept) for concept in codebook.by_size]
        print_json({**{name: getattr(codebook, name) for name in figures}, "concepts": concepts})
        return
    put(f"# {codebook.summary()}")
    for concept in codebook.by_size:
        tokens = " ".join(f"{token.text or token.id}({token.count})" for token in concept.tokens[:10])
        put(concept, concept.size, tokens)


def _print_assigned(found: AssignedConcepts, as_json: bool) -> None:
    """Prints a summary, then a line per token: its text, position, name, code and distance."""
    if as_json:
        texts = [
            {
                **{name: getattr(text, name).tolist() for name in ("ids", "codes", "distances")},
                "tokens": text.tokens,
            }
            for text in found
        ]
        print_json({"low": found.low, "codes": found.num_codes, "partial": found.partial, "texts": texts})
        return
    put(f"# {found.summary()}")
    for number, text in enumerate(found):
        for position, code in enumerate(text.codes.tolist()):
            token = text.tokens[position] or text.ids[position]
            told = (f"c{code}", f"{text.distances[position]:.6g}") if code >= 0 else ("", "")
            put(number, position, token, *told)


def _print_ablation(found: ConceptAblation, as_json: bool) -> None:
    """Prints a summary, then the accuracy after each thing was removed, and its distance from chance."""
    plain = {name: getattr(found, name) for name in ("low", "layer", "chance", "partial")}
    if as_json:
        concepts = [dataclasses.asdict(each) for each in found.by_concept]
        measured = {"accuracies": found.accuracies, "from_chance": found.from_chance}
        print_json({**plain, "states": len(found), **measured, "concepts": concepts})
        return
    put(f"# {found.summary()}")
    put("removed", "accuracy", "from_chance")
    for name, accuracy in found.accuracies.items():
        put(name, f"{accuracy:.4f}", f"{found.from_chance[name]:.4f}")


def print_circuit(circuit: Circuit, as_json: bool) -> None:
    """Prints a summary, then an edge per line. Of a partial circuit, only edges that were decided."""
    if as_json:
        print(circuit_file.encode(circuit, "circuit").decode())
        return
    put(f"# {circuits.summary(circuit)}")
    undecided = set(map(str, circuit.undecided))
    for edge in circuit.edges:
        if str(edge) not in undecided:
            put(edge) if edge.score is None else put(edge, f"{edge.score:.6g}")


def _print_scores(scores: EdgeScores, as_json: bool) -> None:
    """Prints a summary, then an edge and its score per line, in the order of the graph."""
    by_name = zip(scores.graph.edge_names(), scores.scores.tolist(), strict=True)
    if as_json:
        values = {name: getattr(scores, name) for name in ("method", "metric", "full", "empty", "partial")}
        graph = circuit_file.graph_object(scores.graph)
        print_json({**values, "graph": graph, "scores": dict(by_name), "provenance": scores.provenance})
        return
    put(f"# {circuits.summarize_scores(scores)}")
    for name, score in by_name:
        put(name, f"{score:.6g}")


def _print_samples(samples: Samples, as_json: bool) -> None:
    """Prints a summary, then each prompt with a line per sample: its number, why it ended, what it says."""
    if as_json:
        found = [{**dataclasses.asdict(sample), "logprob": sample.logprob} for sample in samples]
        values = {"samples": found, "figures": dict(samples.figures), "partial": samples.partial}
        print_json({**values, "provenance": samples.provenance})
        return
    put(f"# {samples.summary()}")
    for prompt, group in zip(samples.prompts, samples.by_prompt, strict=True):
        put(f"## {prompt!r}" if isinstance(prompt, str) else f"## {list(prompt)}")
        for sample in group:
            said = repr(sample.text) if sample.text or not sample.ids else list(sample.ids)
            put(sample.index, sample.finish_reason, said)


def _print_node_circuit(circuit: NodeCircuit, as_json: bool) -> None:
    """Prints a summary, then how many nodes of each kind each layer keeps, and the kept heads and MLPs."""
    if as_json:
        measured = {name: getattr(circuit, name) for name in ("figures", "trained_figures", "full")}
        values: dict[str, Any] = {name: own and dataclasses.asdict(own) for name, own in measured.items()}
        plain = ("stochastic_kl", "budget", "penalty", "steps", "kinds", "polished", "repaired", "partial")
        values |= {name: getattr(circuit, name) for name in plain}
        values["kept_parameters"] = dict(circuit.kept_parameters)
        values["layout"] = dataclasses.asdict(circuit.layout)
        values["kept"] = {kind: circuit.nodes(kind) for kind in circuit.counts}
        print_json({**values, "provenance": circuit.provenance})
        return
    put(f"# {circuit.summary()}")
    kinds = list(circuit.counts)
    put("layer", *kinds)
    for layer, counts in enumerate(circuit.nodes_per_layer()):
        put(layer, *(counts[kind] for kind in kinds))
    for node in (*circuit.heads, *circuit.mlps):
        put(node)


def _print_neuron_set(found: NeuronSet, as_json: bool) -> None:
    """Prints a summary, then a neuron per line: its side, name and figures."""
    if as_json:
        plain = ("layers", "d_mlp", "texts", "tokens", "counted", "top_k", "min_delta", "control", "partial")
        values: dict[str, Any] = {name: getattr(found, name) for name in plain}
        for side in ("raised", "lowered"):
            neurons = getattr(found, side)
            values[side] = [{"name": each.name, **dataclasses.asdict(each)} for each in neurons]
        print_json({**values, "provenance": found.provenance})
        return
    put(f"# {found.summary()}")
    names = ("delta", "positive_share", "negative_share", "mean", "q95")
    put("side", "neuron", *names)
    for side in ("raised", "lowered"):
        for neuron in getattr(found, side):
            put(side, neuron, *(f"{getattr(neuron, name):.6g}" for name in names))


def print_curve(curve: Curve, as_json: bool) -> None:
    """Prints a summary, then a table with a line per point."""
    if as_json:
        values = dataclasses.asdict(curve)
        derived = {"faithfulness": curve.faithfulness, "baseline_faithfulness": curve.baseline_faithfulness}
        print_json({**values, **derived, **curve.areas})
        return
    for line in str(curve).splitlines():
        put(line)


def print_comparison(found: ScoreComparison, as_json: bool) -> None:
    """Prints how well two scores agree: rank correlations, and the overlap of the best edges."""
    names = ("spearman", "spearman_absolute", "kendall", "kendall_absolute")
    correlations = {name: getattr(found, name) for name in names}
    overlaps = {str(k): share for k, share in found.overlaps.items()}
    if as_json:
        print_json({"a": found.name_a, "b": found.name_b, **correlations, "overlaps": overlaps})
        return
    for name, value in correlations.items():
        put(name, "undefined" if value is None else f"{value:.4f}")
    for k, share in overlaps.items():
        put(f"overlap of the best {k}", f"{share:.4f}")


def print_answer(answer: Evaluation | NodeEvaluation | Estimate | JobInfo, as_json: bool) -> None:
    """Prints an answer, a line per value. Warnings are on stderr, and in the JSON if there are any."""
    print_values(fields(answer, as_json), as_json)


def fields(answer: Evaluation | NodeEvaluation | Estimate | JobInfo | Event, as_json: bool) -> dict[str, Any]:
    """Returns the fields of an answer by name, with what is computed from them."""
    values = dataclasses.asdict(answer)
    if isinstance(answer, NodeEvaluation) and not as_json:
        values |= {name: str(getattr(answer, name)) for name in ("figures", "full", "empty")}
    if isinstance(answer, Event | JobInfo):
        values = _with_progress(answer, values, as_json)
    if "warnings" in values and not (as_json and values["warnings"]):
        del values["warnings"]
    if isinstance(answer, Evaluation | NodeEvaluation) or (
        isinstance(answer, JobInfo) and answer.metric_full is not None
    ):
        values["faithfulness"] = answer.faithfulness
        if not as_json:
            values["faithfulness"] = number(answer.faithfulness) or formatting.NO_FAITHFULNESS
    if isinstance(answer, Estimate) and not as_json:
        values["memory_bytes"] = count(answer.memory_bytes)
        values |= {name: number(values[name]) for name in ("least_seconds", "most_seconds")}
    return values


def _with_progress(answer: Event | JobInfo, values: dict[str, Any], as_json: bool) -> dict[str, Any]:
    """Puts progress and figures on one level with the other fields.

    As text, a job that reports no edges is told in its own units and by its own figures.
    """
    progress = values.pop("progress")
    figures = {**progress["figures"], **values.pop("figures", {})}
    if not as_json and progress["unit"] not in ("", "edges") and "kept" not in figures:
        if progress["unit"] == "samples":  # nothing is measured
            for name in ("metric", "threshold", "target"):
                values.pop(name, None)
        done = {progress["unit"]: f"{answer.decided}/{answer.total}", "stage": progress["stage"]}
        return {**values, **done, **figures, "eta_s": answer.eta_s}
    known = {name: getattr(answer, name) for name in ("decided", "total", "kept", "evaluations", "eta_s")}
    known |= {"unit": progress["unit"], "stage": progress["stage"]}
    if isinstance(answer, Event):
        known["metric"] = answer.metric
    else:
        known |= {name: getattr(answer, name) for name in ("metric_value", "metric_full", "metric_empty")}
    return {**values, **known, **({"figures": figures} if as_json else {})}


def print_values(values: dict[str, Any], as_json: bool) -> None:
    """Prints one thing: a line per value."""
    if as_json:
        print_json(values)
        return
    for key, value in values.items():
        put(f"{key}: {_plain(value)}")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[str] = ()) -> None:
    """Prints many things: a line for each under a line of headings, with empty cells for what is unknown.

    In a terminal, a table that is too wide is folded. Elsewhere every row is one line, still aligned.

    Args:
        columns: headings.
        rows: a cell per column; None for none.
        right: headings of the columns that hold numbers.
    """
    # Imported here: commands that print no table need not wait for it.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    numbers = set(right)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        side: Literal["right", "left"] = "right" if column in numbers else "left"
        # The first column names the rows, and may be copied.
        table.add_column(column, justify=side, overflow="fold", no_wrap=index == 0)
    for row in rows:
        # As Text: nothing in a cell is taken for markup.
        table.add_row(*(Text("" if cell is None else one_line(_plain(cell))) for cell in row))
    if sys.stdout.isatty():
        Console(file=sys.stdout, highlight=False, emoji=False).print(table)
        return
    plain = Console(file=sys.stdout, width=_WIDE, highlight=False, emoji=False, color_system=None)
    with plain.capture() as captured:
        plain.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_json(value: object) -> None:
    """Prints one document on one line. Times are as in ISO 8601; a number that JSON does not have is null."""
    print(json.dumps(_finite(value), default=_time, allow_nan=False), flush=True)


@contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Shows a PahqWarning as a line on stderr, without a place in the code, while the body runs."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, PahqWarning):
                print(f"pahq: warning: {one_line(str(message))}", file=sys.stderr)
            else:
                usual(message, category, *place, **more)

        warnings.showwarning = show
        yield


def note(text: str) -> None:
    """Prints a remark on stderr."""
    print(f"pahq: {one_line(text)}", file=sys.stderr)


def number(value: float | None) -> str | None:
    """Writes a number for people."""
    return None if value is None else f"{value:.4g}"


def count(value: int) -> str:
    """Writes a large number for people, such as 1,519."""
    return f"{value:,}"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    if isinstance(value, datetime):
        return local_time(value, "%Y-%m-%d %H:%M:%S")
    if isinstance(value, float):
        return f"{value:.6g}"
    return one_line(", ".join(map(str, value)) if isinstance(value, tuple) else str(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _time(value: object) -> str:
    assert isinstance(value, datetime)
    return value.isoformat()
