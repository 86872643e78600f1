"""What a circuit is made of, without what can be done with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pahq_client.elements import CircuitMetric, Edge, Extra, Graph, Verdict
from pahq_client.paths import edges_on_paths
from pahq_client.task import BuiltinTask, Task, task_of


@dataclass(frozen=True, eq=False, repr=False)
class CircuitContents:
    """The fields of a `Circuit`.

    Args:
        edges: kept edges in order of decision.
        graph: the graph that they belong to.
        metric: of the circuit, the full model and the empty circuit.
        num_evaluations: tested edges plus tested gates.
        num_edges_total: edges of the graph.
        gates_kept: receivers whose gate was tested and kept, in order of decision.
        verdicts: one per evaluation, in order.
        provenance: ``request`` is what determines the result (model revision, task hash, parameters,
            policy, version); ``run`` is what happened this time (model name, task, times, hardware, counts,
            warnings and, on request, prompts).
        extra: unknown keys of the file that the circuit was loaded from.
    """

    edges: tuple[Edge, ...]
    graph: Graph
    metric: CircuitMetric
    num_evaluations: int
    num_edges_total: int
    gates_kept: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    extra: Extra = ()

    @property
    def metric_value(self) -> float:
        """The metric of the circuit. Lower is better."""
        return self.metric.value

    @property
    def faithfulness(self) -> float | None:
        """How much of the way from the empty circuit (0) to the full model (1) the circuit goes.

        None where these two measure the same; see `CircuitMetric.faithfulness`.
        """
        return self.metric.faithfulness

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may mislead about the circuit, as the server that found it said; each tells what to do."""
        found = self._run.get("warnings")
        return tuple(text for text in found if isinstance(text, str)) if isinstance(found, list) else ()

    @cached_property
    def on_paths(self) -> tuple[Edge, ...]:
        """The edges on a path from ``input`` to ``logits``, in order; the others carry nothing to the output.

        A path goes on from a query to its head, and from a key or value of a group to all of its heads.
        """
        return edges_on_paths(self.edges, self.graph)

    @property
    def model_revision(self) -> str:
        """The revision of the model that the circuit was found in; empty if it is not known."""
        request = self.provenance.get("request", {})
        revision = request.get("model_revision") if isinstance(request, Mapping) else None
        return revision if isinstance(revision, str) else ""

    @property
    def task(self) -> Task | BuiltinTask | None:
        """The task that the circuit was found on, to measure it again.

        None unless it is a built-in one, or the discovery was asked to include its prompts.
        """
        return task_of(self._run)

    @property
    def _run(self) -> Mapping[str, Any]:
        run = self.provenance.get("run", {})
        return run if isinstance(run, Mapping) else {}

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What the discovery was asked for (method, threshold, ablation, ...), as far as it is known."""
        parameters = self.provenance.get("request", {}).get("parameters", {})
        return parameters if isinstance(parameters, Mapping) else {}

    @property
    def removed_without_test(self) -> int:
        """How many edges went without an evaluation of their own: cut by a gate, or into a dead node."""
        return self.num_edges_total - sum(not verdict.gate for verdict in self.verdicts)
