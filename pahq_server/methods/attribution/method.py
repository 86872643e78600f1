"""What all attribution methods do as jobs: gradients of parts of the prompts, summed.

The score of an edge estimates, from gradients of the metric, what the metric does when only this edge is
ablated, with the same sign and in the same unit (`gim`: the order only).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, TypeVar

import numpy as np

from pahq_server.core.artifact import Artifact, Progress
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.operations import (
    CLEAN_RUN,
    PASSES_PER_POINT,
    BackwardRule,
    EdgeGradients,
    GradientPoint,
    ScorePasses,
    prompt_parts,
)
from pahq_server.methods import warnings
from pahq_server.methods.attribution.scores import (
    KIND,
    VERSION,
    PartialScores,
    edge_scores_bytes,
    parts_per_record,
)
from pahq_server.methods.base import Method, MethodContext, Steps
from pahq_server.methods.circuits import full_and_empty

P = TypeVar("P")

# Metrics that compare a circuit with the full model have their minimum at the clean run: a gradient of zero.
FLAT_AT_CLEAN_RUN = frozenset({"kl_divergence", "l2"})
PRECISION = "fp32"
# Points of one operation: other jobs wait for it.
POINTS_AT_ONCE = 5


class Attribution(Method[P]):
    """Scores every edge by gradients, summed over parts of the prompts. The artifact is edge scores.

    Attributes:
        rule: of the backward pass.
    """

    rule: ClassVar[BackwardRule]
    unit = "prompts"

    @abstractmethod
    def points(self, parameters: P) -> tuple[GradientPoint, ...]:
        """Returns where gradients are taken."""

    def check(self, parameters: P, resolved: ResolvedObjective) -> None:
        objective, clean_only = resolved.objective, self.points(parameters) == CLEAN_RUN
        if clean_only and objective.metric in FLAT_AT_CLEAN_RUN:
            raise InvalidRequestError(
                "metric",
                f"method {self.name!r} takes the gradient at the clean run, where that of "
                f"{objective.metric!r} is zero: every score would be 0. Use metric 'logit_difference', or "
                "method 'eap_ig', which takes every metric.",
            )
        if not clean_only and objective.ablation == "zero" and resolved.norms:
            raise InvalidRequestError(
                "ablation",
                f"method {self.name!r} takes gradients at ablated inputs. The model has norms, whose slope "
                "at an input of zeros is so steep that scores under 'zero' ablation mean nothing. Use "
                "ablation 'resample' or 'mean', or a method that takes the gradient at the clean run: 'eap', "
                "'relp' or 'gim'.",
            )
        if objective.precision != PRECISION:
            raise InvalidRequestError(
                "precision",
                f"method {self.name!r} computes gradients in full precision only, got "
                f"{objective.precision!r}. Use precision {PRECISION!r}.",
            )

    def total(self, parameters: P, resolved: ResolvedObjective) -> int:
        return len(resolved.task.clean)

    def weight(self, parameters: P, resolved: ResolvedObjective) -> float:
        # And the passes of the full model and the empty circuit.
        return PASSES_PER_POINT * len(self.points(parameters)) + 2

    def run(self, context: MethodContext[P]) -> Steps:
        resolved, points = context.resolved, self.points(context.parameters)
        graph, prompts = resolved.graph, len(resolved.task.clean)
        parts = prompt_parts(resolved.task)
        found, every = PartialScores.from_journal(context.journal, graph), parts_per_record(len(parts), graph)
        if found.prompts not in {0, *(last for _, last in parts)}:
            raise ValueError(f"no part of the prompts ends after {found.prompts} of {prompts}")
        context.tell(Progress(found.prompts, "gradients"))
        for number, (first, last) in enumerate(parts, 1):
            if last <= found.prompts:
                continue
            scores = np.zeros(graph.num_edges)
            for start in range(0, len(points), POINTS_AT_ONCE):
                some = points[start : start + POINTS_AT_ONCE]
                scores += yield EdgeGradients(first, last, prompts, graph.num_edges, self.rule, some)
            found = PartialScores(last, found.scores + scores)
            context.count(gradients=(last - first) * len(points))
            if number % every == 0 or number == len(parts):
                context.record(found.record())
            context.tell(Progress(last, "gradients"))
        ends = full_and_empty(graph)
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

    def partial(self, context: MethodContext[P]) -> Artifact | None:
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
