"""Job specs for tests, and what their methods find without a service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from helpers.fake_engine import GRAPH, OBJECTIVE
from helpers.scores import SetScore
from pahq_server.core.artifact import Artifact, unpack
from pahq_server.core.circuit import Circuit, PatchedPass
from pahq_server.core.engine import Objective, ResolvedObjective
from pahq_server.core.graph import Graph
from pahq_server.core.operations import ScorePasses
from pahq_server.core.task import TokenTask
from pahq_server.jobs.spec import JobSpec
from pahq_server.methods import registry
from pahq_server.methods.acdc.method import AcdcParameters
from pahq_server.methods.base import MethodContext
from pahq_server.methods.single_edge.method import SingleEdgeParameters
from pahq_server.methods.verdicts import SearchResult, Verdict
from pahq_server.store.records import StoredArtifact


def acdc(threshold: float, grouping: str = "none", objective: Objective = OBJECTIVE) -> JobSpec:
    return JobSpec(objective, "acdc", AcdcParameters(threshold, grouping))


def single_edge(threshold: float | None = None, objective: Objective = OBJECTIVE) -> JobSpec:
    return JobSpec(objective, "single_edge", SingleEdgeParameters(threshold))


def changed(spec: JobSpec, **parameters: Any) -> JobSpec:
    """The spec with other parameters of its method."""
    return replace(spec, parameters=replace(spec.parameters, **parameters))


def found(result: StoredArtifact | Artifact) -> SearchResult:
    """What a circuit artifact holds; metrics that are unknown are NaN."""
    artifact = result.artifact if isinstance(result, StoredArtifact) else result
    assert (artifact.kind, artifact.version) == ("circuit", 1)
    header, arrays = unpack(artifact.data)
    circuit = Circuit(Graph(**header["graph"]), arrays["kept"])
    names = ["gate", "index", "score", "delta", "kept"]
    names += ["last", "size"] if "verdict_last" in arrays else []
    columns = (arrays[f"verdict_{name}"].tolist() for name in names)
    rows = [Verdict(*row) for row in zip(*columns, strict=True)]
    verdicts = tuple(v if v.size > 1 else replace(v, last=None) for v in rows)
    metrics = [header["metric"][name] for name in ("value", "full", "empty")]
    value, full, empty = (float("nan") if metric is None else metric for metric in metrics)
    return SearchResult(circuit, verdicts, value, full, empty, header.get("threshold"))


def run_method(
    spec: JobSpec,
    score: Callable[[PatchedPass], float] | None = None,
    graph: Graph = GRAPH,
    window: int = 1,
    journal: tuple[bytes, ...] = (),
) -> tuple[Artifact, MethodContext[Any]]:
    """Runs a method that needs nothing but scores, and gives its artifact and its context."""
    score = score or SetScore(graph, 1)
    resolved = ResolvedObjective(spec.objective, TokenTask(((1, 2),), ((1, 3),)), graph, "c0ffee")
    context: MethodContext[Any] = MethodContext(resolved, spec.parameters, journal, window=window)
    steps = registry.find(spec.method).run(context)
    scores: list[float] | None = None
    while True:
        try:
            operation = steps.send(scores)
        except StopIteration as stop:  # at once where the journal is complete
            artifact: Artifact = stop.value
            return artifact, context
        assert isinstance(operation, ScorePasses)
        scores = [score(patched) for patched in operation.passes]


def alone(spec: JobSpec) -> SearchResult:
    """What the method of a spec finds without a service, in the fake engine's metric."""
    return found(run_method(spec)[0])
