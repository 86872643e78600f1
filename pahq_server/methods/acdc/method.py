"""ACDC as a method of jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pahq_server.core.artifact import Artifact
from pahq_server.core.engine import ResolvedObjective
from pahq_server.methods.acdc.search import AcdcSearch
from pahq_server.methods.base import Method, MethodContext, Steps, finite_number, truth_value
from pahq_server.methods.circuits import partial_circuit, run_search
from pahq_server.methods.verdicts import Verdict, unpack_verdicts


@dataclass(frozen=True)
class AcdcParameters:
    """Parameters of ACDC.

    Args:
        threshold: tau; an edge is removed if its removal worsens the metric by less.
        gates: whether all incoming edges of a q, k or v receiver are tested at once before each of them is.
    """

    threshold: float
    gates: bool = False

    def __post_init__(self) -> None:
        finite_number("threshold", self.threshold)
        truth_value("gates", self.gates)


class Acdc(Method[AcdcParameters]):
    """Finds a circuit with ACDC. Its journal records are verdicts (`methods.verdicts`)."""

    name, parameters, unit = "acdc", AcdcParameters, "edges"

    def total(self, parameters: AcdcParameters, resolved: ResolvedObjective) -> int:
        return resolved.graph.num_edges

    def run(self, context: MethodContext[AcdcParameters]) -> Steps:
        verdicts = unpack_verdicts(b"".join(context.journal))
        return run_search(context, _search(context, verdicts), context.parameters.threshold)

    def partial(self, context: MethodContext[AcdcParameters]) -> Artifact | None:
        verdicts = unpack_verdicts(b"".join(context.journal))
        return partial_circuit(context, verdicts, _search(context, verdicts).circuit)


def _search(context: MethodContext[AcdcParameters], verdicts: Sequence[Verdict]) -> AcdcSearch:
    return AcdcSearch(
        context.resolved.graph,
        context.parameters.threshold,
        context.parameters.gates,
        context.window,
        verdicts,
        clock=context.clock,
        baseline_depends_on_promotion=context.resolved.baseline_depends_on_promotion,
    )
