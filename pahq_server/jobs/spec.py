"""What a discovery is asked to find, and the search that finds it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pahq_server.core.engine import Objective
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.graph import Graph
from pahq_server.core.task import BuiltinTask
from pahq_server.core.verdict import Verdict
from pahq_server.search.acdc_search import AcdcSearch
from pahq_server.search.base import Search
from pahq_server.search.single_edge import SingleEdgeSearch

METHODS = ("acdc", "single_edge")


@dataclass(frozen=True)
class RequestFacts:
    """What was found about a request when it was accepted, and is told of its job ever after.

    Args:
        num_prompts: how many prompts its task has; 0 if unknown, for jobs of older servers.
        warnings: what may mislead whoever made it.
    """

    num_prompts: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class DiscoverySpec:
    """A discovery as requested. See the API's description of the fields.

    ``include_prompts`` has no part in what is found: equal discoveries share their result without it.
    """

    objective: Objective
    method: str
    threshold: float | None
    gates: bool
    include_prompts: bool = False

    def check(self) -> None:
        """Checks what does not depend on a model. Raises InvalidRequestError."""
        if self.method not in METHODS:
            raise InvalidRequestError("method", f"unknown method {self.method!r}; one of {list(METHODS)}")
        if self.threshold is None:
            if self.method == "acdc":
                raise InvalidRequestError("threshold", "method 'acdc' needs a threshold")
        elif not math.isfinite(self.threshold) or self.threshold < 0:
            raise InvalidRequestError("threshold", f"{self.threshold} is not a finite number >= 0")

    def task(self, num_prompts: int) -> dict[str, object]:
        """What the task is, for provenance: name and seed of a built-in one, and how many prompts it has.

        Args:
            num_prompts: where this spec has been read without its prompts; 0 if unknown.
        """
        task = self.objective.task
        if isinstance(task, BuiltinTask):
            return {"name": task.name, "seed": task.seed, "num_prompts": task.num_prompts}
        count = len(task.clean) or num_prompts
        return {"num_prompts": count} if count else {}

    def search(
        self,
        graph: Graph,
        window: int,
        verdicts: Sequence[Verdict] = (),
        clock: Callable[[], float] = time.perf_counter,
        baseline_depends_on_promotion: bool = False,
    ) -> Search:
        """The search, at its start or where an earlier one stopped.

        Args:
            graph: the full graph.
            window: how many evaluations it may ask for at once.
            verdicts: that the earlier one reached.
            clock: seconds; steers how much is asked for at once, never a result.
            own_current: see `ResolvedObjective`.
        """
        if self.method == "single_edge":
            return SingleEdgeSearch(graph, self.threshold, window, verdicts, baseline_depends_on_promotion)
        assert self.threshold is not None
        return AcdcSearch(
            graph,
            self.threshold,
            self.gates,
            window,
            verdicts,
            clock=clock,
            baseline_depends_on_promotion=baseline_depends_on_promotion,
        )

    def parameters(self) -> dict[str, object]:
        """Everything but model, task and precision, for provenance."""
        return {
            "method": self.method,
            "metric": self.objective.metric,
            "ablation": self.objective.ablation,
            "kv_receivers": self.objective.kv_receivers,
            "threshold": self.threshold,
            "gates": self.gates if self.method == "acdc" else None,
        }
