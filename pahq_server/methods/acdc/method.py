"""ACDC as a method of jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pahq_server.core.artifact import Artifact
from pahq_server.core.circuit import Circuit, EdgeSet
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.errors import InvalidRequestError
from pahq_server.methods import warnings
from pahq_server.methods.acdc.order import GROUPINGS, TestOrder
from pahq_server.methods.acdc.search import AcdcSearch, TestedBranch
from pahq_server.methods.acdc.targets import MOST_RUNS, Target, TargetSearch
from pahq_server.methods.base import Method, MethodContext, Steps, finite_number, truth_value
from pahq_server.methods.circuits import partial_circuit, run_search
from pahq_server.methods.verdicts import Verdict, unpack_verdicts

DEFAULT_GROUPING = "gates"


@dataclass(frozen=True)
class AcdcParameters:
    """Parameters of ACDC. Exactly one of threshold, edges and faithfulness is given.

    Args:
        threshold: tau; edges are removed if their removal worsens the metric by less.
        grouping: what is tested at once: ``none``, ``gates`` or ``bisect``, see `order`. Empty for ``gates``.
        within: the circuit to start from; None for the full graph.
        edges: the smallest threshold is looked for that keeps at most so many edges.
        faithfulness: the largest threshold is looked for whose circuit is at least so faithful.
    """

    threshold: float | None = None
    grouping: str = DEFAULT_GROUPING
    within: EdgeSet | None = None
    edges: int | None = None
    faithfulness: float | None = None

    def __post_init__(self) -> None:
        if self.grouping == "":
            object.__setattr__(self, "grouping", DEFAULT_GROUPING)
        if self.grouping not in GROUPINGS:
            raise InvalidRequestError(
                "grouping", f"must be one of {', '.join(map(repr, GROUPINGS))}, got {self.grouping!r}"
            )
        if self.within is not None and not isinstance(self.within, EdgeSet):
            raise InvalidRequestError("within", f"must be edges of a graph, got {self.within!r}")
        given = [each for each in ("threshold", "edges", "faithfulness") if getattr(self, each) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            detail = f"method 'acdc' needs exactly one of threshold, edges and faithfulness, got {got}"
            raise InvalidRequestError(given[0] if given else "threshold", detail)
        if self.threshold is not None:
            finite_number("threshold", self.threshold)
        if self.edges is not None and (type(self.edges) is not int or self.edges < 1):
            raise InvalidRequestError("edges", f"must be an integer >= 1, got {self.edges!r}")
        if self.faithfulness is not None and not 0 < finite_number("faithfulness", self.faithfulness) <= 1:
            detail = f"must be above 0 and at most 1, got {self.faithfulness!r}"
            raise InvalidRequestError("faithfulness", detail)


class Acdc(Method[AcdcParameters]):
    """Finds a circuit with ACDC. Its journal records are verdicts (`methods.verdicts`)."""

    name, parameters, unit = "acdc", AcdcParameters, "edges"

    def stored(self, parameters: AcdcParameters) -> dict[str, Any]:
        within = parameters.within
        fields = {**vars(parameters), "within": None}
        if within is not None:
            fields["within"] = within.stored()
        return {name: value for name, value in fields.items() if value is not None}

    def read_stored(self, fields: Mapping[str, Any]) -> AcdcParameters:
        fields = dict(fields)
        if "gates" in fields:  # of earlier versions, which had these two groupings only
            fields["grouping"] = "gates" if truth_value("gates", fields.pop("gates")) else "none"
        if (within := fields.get("within")) is not None:
            fields["within"] = EdgeSet.of_stored(within)
        return self.read(fields)

    def described(self, parameters: AcdcParameters) -> dict[str, object]:
        fields = self.stored(parameters)
        if parameters.within is not None:
            fields["within"] = parameters.within.described()
        return fields

    def identity(self, parameters: AcdcParameters) -> dict[str, object]:
        fields = self.described(parameters)
        if parameters.grouping != "bisect":
            fields["gates"] = fields.pop("grouping") == "gates"
        return fields

    def check(self, parameters: AcdcParameters, resolved: ResolvedObjective) -> None:
        _start(parameters, resolved)

    def total(self, parameters: AcdcParameters, resolved: ResolvedObjective) -> int:
        runs = 1 if parameters.threshold is not None else MOST_RUNS
        return resolved.graph.num_edges * runs

    def tests(self, parameters: AcdcParameters, resolved: ResolvedObjective) -> tuple[int, int]:
        start, grouping = _start(parameters, resolved), parameters.grouping
        least, most = TestOrder(resolved.graph, grouping, start).bounds()  # type: ignore[arg-type]
        return least, most if parameters.threshold is not None else most * MOST_RUNS

    def warnings(self, parameters: AcdcParameters, resolved: ResolvedObjective) -> tuple[str, ...]:
        bisects = parameters.grouping == "bisect"
        return tuple(warnings.of_signed_groups(resolved.objective.metric)) if bisects else ()

    def run(self, context: MethodContext[AcdcParameters]) -> Steps:
        return run_search(context, _search(context))

    def partial(self, context: MethodContext[AcdcParameters]) -> Artifact | None:
        search = _search(context)
        if isinstance(search, AcdcSearch):
            return partial_circuit(context, search.verdicts, search.circuit)
        next(search.run(), None)  # up to the end of the journal
        found = search.best or search.current
        if found is None:
            return None
        return partial_circuit(context, found.verdicts, found.circuit, found.threshold)


def _start(parameters: AcdcParameters, resolved: ResolvedObjective) -> Circuit:
    """Returns the circuit to start from. Raises InvalidRequestError for one of another graph or model."""
    graph = resolved.graph
    if parameters.within is None:
        return Circuit.full(graph)
    return parameters.within.circuit("within", graph, resolved.revision)


def _search(context: MethodContext[AcdcParameters]) -> AcdcSearch | TargetSearch:
    """Returns the search of a job, at the end of its journal."""
    parameters, resolved = context.parameters, context.resolved
    records = unpack_verdicts(b"".join(context.journal))
    start = _start(parameters, resolved)

    def at(threshold: float, verdicts: Iterable[Verdict], tested: TestedBranch | None = None) -> AcdcSearch:
        return AcdcSearch(
            resolved.graph,
            threshold,
            parameters.grouping,  # type: ignore[arg-type]
            context.window,
            verdicts,
            clock=context.clock,
            workers=context.workers,
            baseline_depends_on_promotion=resolved.baseline_depends_on_promotion,
            start=start,
            tested=tested,
        )

    if parameters.threshold is not None:
        return at(parameters.threshold, records)
    return TargetSearch(Target(parameters.edges, parameters.faithfulness), start, at, records)
