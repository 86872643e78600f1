"""Edge attribution patching (Syed et al. 2023, arXiv:2310.10348) as a method of jobs.

The score of an edge estimates, from the metric's gradient at the clean run, what the metric does when only
this edge is ablated, with the same sign and in the same unit.
"""

from __future__ import annotations

from dataclasses import dataclass

from pahq_server.core.artifact import Artifact, Progress
from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.operations import GRADIENT_PASSES, EdgeGradients, ScorePasses, prompt_parts
from pahq_server.methods import warnings
from pahq_server.methods.attribution.scores import (
    KIND,
    VERSION,
    PartialScores,
    edge_scores_bytes,
    parts_per_record,
)
from pahq_server.methods.base import Method, MethodContext, Steps
from pahq_server.methods.circuits import endpoints

# Metrics that compare a circuit with the full model have their minimum at the clean run: a gradient of zero.
FLAT_AT_CLEAN_RUN = frozenset({"kl_divergence", "l2"})
PRECISION = "fp32"


@dataclass(frozen=True)
class EapParameters:
    """Parameters of edge attribution patching: it has none."""


class Eap(Method[EapParameters]):
    """Scores every edge by gradients, summed over parts of the prompts. The artifact is edge scores."""

    name, parameters, unit = "eap", EapParameters, "prompts"

    def check(self, parameters: EapParameters, resolved: ResolvedObjective) -> None:
        objective = resolved.objective
        if objective.metric in FLAT_AT_CLEAN_RUN:
            raise InvalidRequestError(
                "metric",
                f"method 'eap' takes the gradient at the clean run, where that of {objective.metric!r} is "
                "zero: every score would be 0. Use metric 'logit_difference'. Method 'eap_ig' would take "
                "this metric, but this server does not offer it yet.",
            )
        if objective.precision != PRECISION:
            raise InvalidRequestError(
                "precision",
                f"method 'eap' computes gradients in full precision only, got {objective.precision!r}. Use "
                f"precision {PRECISION!r}.",
            )

    def total(self, parameters: EapParameters, resolved: ResolvedObjective) -> int:
        return len(resolved.task.clean)

    def weight(self, parameters: EapParameters, resolved: ResolvedObjective) -> float:
        return GRADIENT_PASSES + 2  # and the passes of the full model and the empty circuit

    def run(self, context: MethodContext[EapParameters]) -> Steps:
        resolved = context.resolved
        graph, prompts = resolved.graph, len(resolved.task.clean)
        parts = prompt_parts(resolved.task)
        found, every = PartialScores.from_journal(context.journal, graph), parts_per_record(len(parts), graph)
        if found.prompts not in {0, *(last for _, last in parts)}:
            raise ValueError(f"no part of the prompts ends after {found.prompts} of {prompts}")
        context.tell(Progress(found.prompts, "gradients"))
        for number, (first, last) in enumerate(parts, 1):
            if last <= found.prompts:
                continue
            scores = yield EdgeGradients(first, last, prompts, graph.num_edges)
            found = PartialScores(last, found.scores + scores)
            context.count(gradients=last - first)
            if number % every == 0 or number == len(parts):
                context.record(found.record())
            context.tell(Progress(last, "gradients"))
        _, *ends = endpoints(graph, Circuit.full(graph))
        full, empty = yield ScorePasses(ends)
        context.count(passes=len(ends))
        metric = resolved.objective.metric
        return Artifact(
            KIND,
            VERSION,
            edge_scores_bytes(self.name, metric, graph, found.scores, full, empty),
            {"metric_full": full, "metric_empty": empty},
            warnings.of_baseline(warnings.Endpoints(metric, full, empty), resolved.clean_run),
        )

    def partial(self, context: MethodContext[EapParameters]) -> Artifact | None:
        resolved = context.resolved
        found = PartialScores.from_journal(context.journal, resolved.graph)
        if not found.prompts:
            return None
        data = edge_scores_bytes(self.name, resolved.objective.metric, resolved.graph, found.scores)
        told = (
            "The job did not come to its end: the scores are sums over the first "
            f"{found.prompts} of {len(resolved.task.clean)} prompts, so they rank edges by these alone and "
            "are smaller than those of the whole task. Run the job again for those.",
        )
        return Artifact(KIND, VERSION, data, warnings=told)
