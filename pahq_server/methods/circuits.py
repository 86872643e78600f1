"""Searches for circuits: how one runs as a method, and the artifact of kind ``circuit`` that it returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import asdict
from typing import Any, Protocol, TypeAlias

from pahq_server.core.artifact import Artifact, Progress, pack
from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.core.operations import ScorePasses
from pahq_server.methods import warnings
from pahq_server.methods.base import MethodContext, Steps
from pahq_server.methods.verdicts import SearchResult, Verdict, pack_verdicts, verdict_table

KIND, VERSION = "circuit", 1

# Yields passes, receives their scores in the same order, returns the result.
SearchSteps: TypeAlias = Generator[Sequence[PatchedPass], Sequence[float], SearchResult]


class Search(Protocol):
    """A search over the edges of one graph that decides them by verdicts.

    Attributes:
        counts: how many ``batches`` and ``passes`` were asked for, and how many passes were ``wasted``.
    """

    counts: Counter[str]

    @property
    def records(self) -> list[Verdict]:
        """What its journal holds, in order: the verdicts, and what else was measured.

        That of earlier processes is included.
        """
        ...

    def run(self) -> SearchSteps:
        """Starts the search, or continues it after ``records``."""
        ...

    def progress(self) -> Progress:
        """Returns how many edges are decided, with the figures of `search_progress`."""
        ...


def new_counts() -> Counter[str]:
    """Returns the counts of a search that has not begun."""
    return Counter(batches=0, passes=0, wasted=0)


def search_progress(decided: int, kept: int, metric: float, evaluations: int) -> Progress:
    """Returns the progress of a search.

    Args:
        decided: edges that are kept or removed for good.
        kept: how many of these are kept.
        metric: the metric of the current circuit.
        evaluations: number of verdicts so far.
    """
    return Progress(decided, figures={"kept": kept, "metric": metric, "evaluations": evaluations})


def endpoints(graph: Graph, circuit: Circuit) -> tuple[PatchedPass, PatchedPass, PatchedPass]:
    """Returns passes that measure a circuit, the full model and the empty circuit, each from scratch."""
    return from_scratch(circuit), *full_and_empty(graph)


def full_and_empty(graph: Graph) -> tuple[PatchedPass, PatchedPass]:
    """Returns passes that measure the full model and the empty circuit, each from scratch."""
    return from_scratch(Circuit.full(graph)), from_scratch(Circuit.empty(graph))


def from_scratch(circuit: Circuit) -> PatchedPass:
    """Returns a pass that measures a circuit from scratch."""
    return PatchedPass(BaseCircuit(circuit))


def run_search(context: MethodContext[Any], search: Search) -> Steps:
    """Runs a search as a method: its records go to the journal, its result becomes a circuit artifact.

    Args:
        context: context of the job.
        search: not begun, or continued from the records of the journal.
    """
    context.counts = search.counts
    steps, recorded = search.run(), len(search.records)
    scores: Sequence[float] | None = None
    found: SearchResult | None = None
    while True:
        try:
            passes = steps.send(scores)  # type: ignore[arg-type]
        except StopIteration as stop:
            found = stop.value
        new = search.records[recorded:]
        recorded += len(new)
        if new:
            context.record(pack_verdicts(new), len(new))
        context.tell(search.progress())
        if found is not None:
            break
        scores = yield ScorePasses(passes)
    told = (*found.warnings, *warnings.of_search(context.resolved, found))
    figures = {
        "metric": found.metric_value,
        "metric_full": found.metric_full,
        "metric_empty": found.metric_empty,
    }
    chosen = found.threshold if found.chose_threshold else None
    if chosen is not None:
        figures["threshold"] = chosen
    data = circuit_bytes(
        context.resolved.objective.metric,
        found.circuit,
        found.verdicts,
        (found.metric_value, found.metric_full, found.metric_empty),
        chosen,
    )
    return Artifact(KIND, VERSION, data, figures, told)


def partial_circuit(
    context: MethodContext[Any],
    verdicts: Sequence[Verdict],
    circuit: Circuit,
    threshold: float | None = None,
) -> Artifact | None:
    """Returns what an interrupted search had decided as a circuit artifact; None if it had no verdicts.

    Args:
        context: context of the job.
        verdicts: in order of decision.
        circuit: all edges except those that the search had removed.
        threshold: which the search has chosen; None if it chooses none.
    """
    if not verdicts:
        return None
    metric, unknown = context.resolved.objective.metric, (None, None, None)
    data = circuit_bytes(metric, circuit, verdicts, unknown, threshold)
    told = (
        f"The job did not come to its end: it had reached {len(verdicts)} verdicts, edges without a verdict "
        "count as kept, and the circuit was not measured. Run the job again for the whole circuit.",
    )
    return Artifact(KIND, VERSION, data, warnings=told)


def circuit_bytes(
    metric: str,
    circuit: Circuit,
    verdicts: Sequence[Verdict],
    values: tuple[float | None, float | None, float | None],
    threshold: float | None = None,
) -> bytes:
    """Packs a circuit as an artifact of kind ``circuit``.

    Args:
        metric: its name.
        circuit: the kept edges.
        verdicts: in order of decision.
        values: the metric of the circuit, the full model and the empty circuit; None where unknown.
        threshold: which the search has chosen; None if it chooses none.
    """
    value, full, empty = values
    header: dict[str, Any] = {
        "kind": KIND,
        "version": VERSION,
        "graph": asdict(circuit.graph),
        "metric": {"name": metric, "value": value, "full": full, "empty": empty},
    }
    if threshold is not None:
        header["threshold"] = threshold
    table = verdict_table(verdicts)
    names = ["gate", "index", "score", "delta", "kept"]
    if not all(verdict.gate or verdict.of_one_edge for verdict in verdicts):
        names += ["last", "size"]
    columns = {f"verdict_{name}": table[name] for name in names}
    return pack(header, {"kept": circuit.kept, **columns})
