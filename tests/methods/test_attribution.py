"""Attribution as methods: sums over parts of the prompts, in one order, wherever they were interrupted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pahq_server.core.artifact import Artifact, Progress, unpack
from pahq_server.core.engine import Objective, ResolvedObjective
from pahq_server.core.errors import InvalidRequestError, NonFiniteMetricError, ServerError
from pahq_server.core.graph import Graph
from pahq_server.core.operations import (
    EXACT,
    PART_TOKENS,
    EdgeGradients,
    Operation,
    ScorePasses,
    prompt_parts,
)
from pahq_server.core.task import PromptTask, TokenTask
from pahq_server.methods.attribution import scores as edge_scores
from pahq_server.methods.attribution.method import POINTS_AT_ONCE, Attribution
from pahq_server.methods.attribution.methods import (
    GRADIENT_INTERACTION,
    MOST_STEPS,
    RELEVANCE,
    CleanCorrupted,
    Eap,
    EapIg,
    EapIgParameters,
    EapParameters,
    Gim,
    Relp,
)
from pahq_server.methods.attribution.scores import parts_per_record
from pahq_server.methods.base import MethodContext
from pahq_server.methods.registry import find

GRAPH = Graph(2, 2, 1)
TASK = TokenTask(clean=tuple((1,) * length for length in (100, 120, 80, 18, 600, 8, 140)))
OBJECTIVE = Objective("m", PromptTask(()), "logit_difference", "zero", "group", "fp32")
RESOLVED = ResolvedObjective(OBJECTIVE, TASK, GRAPH, "revision")
FULL, EMPTY = -3.0, 1.5
EAP = Eap()
AT_CLEAN_RUN, BETWEEN_RUNS = (EAP, Relp(), Gim()), (EapIg(), CleanCorrupted())
METHODS = AT_CLEAN_RUN + BETWEEN_RUNS


def prompt_scores(prompt: int) -> NDArray[np.float64]:
    """Made-up scores of one prompt, whose sum depends on the order of addition."""
    return np.random.default_rng(prompt).standard_normal(GRAPH.num_edges)


def answer(operation: Operation) -> object:
    result: object
    if isinstance(operation, EdgeGradients):
        scores = map(prompt_scores, range(operation.first, operation.last))
        share = sum(point.weight for point in operation.points)
        result = sum(scores, np.zeros(GRAPH.num_edges)) * share
    else:
        assert isinstance(operation, ScorePasses)
        full, empty = operation.passes
        assert full.circuit.num_kept == GRAPH.num_edges
        assert empty.circuit.num_kept == 0
        result = [FULL, EMPTY]
    operation.check(result)
    return result


class Run:
    """Runs the method, until its end or for some operations.

    Args:
        journal: what earlier runs recorded.
        operations: after which the run is killed; None for its end.
        method, parameters: what runs.
    """

    def __init__(
        self,
        journal: Sequence[bytes] = (),
        operations: int | None = None,
        method: Attribution[Any] = EAP,
        parameters: object = EapParameters(),
    ) -> None:
        self.context = MethodContext(RESOLVED, parameters, journal, len(journal))
        self.asked: list[Operation] = []
        self.told: list[Progress] = []
        self.journal = list(journal)
        self.artifact: Artifact | None = None
        steps = method.run(self.context)
        operation = next(steps)
        while operations is None or len(self.asked) < operations:
            self.told.append(self.context.progress)
            self.asked.append(operation)
            try:
                operation = steps.send(answer(operation))
            except StopIteration as stop:
                self.artifact = stop.value
                break
            finally:
                records = self.context.take_records()
                data, count = records.data, records.count
                self.journal += [data] if count else []


def test_parts_are_asked_for_in_order_and_told_in_prompts() -> None:
    run = Run()
    *parts, last = run.asked
    assert isinstance(last, ScorePasses)
    assert [(part.first, part.last) for part in parts if isinstance(part, EdgeGradients)] == prompt_parts(
        TASK
    )
    assert [progress.done for progress in run.told] == [0, 2, 4, 5, 6, 7]
    assert Eap().total(EapParameters(), RESOLVED) == 7
    assert run.context.counts == {"gradients": 7, "passes": 2}


def test_what_the_artifact_holds() -> None:
    artifact = Run().artifact
    assert artifact is not None
    assert (artifact.kind, artifact.version) == ("edge_scores", 1)
    assert artifact.figures == {"metric_full": FULL, "metric_empty": EMPTY}
    assert artifact.warnings == ()
    header, arrays = unpack(artifact.data)
    assert header == {
        "kind": "edge_scores",
        "version": 1,
        "graph": {
            "layers": 2,
            "heads": 2,
            "kv_heads": 1,
            "kv_receivers": "group",
            "parallel": False,
            "mlps": True,
        },
        "metric": {"name": "logit_difference", "full": FULL, "empty": EMPTY},
        "method": "eap",
    }
    assert list(arrays) == ["scores"]
    expected = sum(prompt_scores(prompt) for prompt in range(7))
    np.testing.assert_allclose(arrays["scores"], expected, rtol=1e-12)


@pytest.mark.parametrize("killed", range(6))
def test_a_killed_run_goes_on_with_the_same_bits(killed: int) -> None:
    whole, before = Run(), Run(operations=killed)
    after = Run(before.journal)
    assert len(before.asked) + len(after.asked) == len(whole.asked)
    assert before.artifact is None
    assert after.artifact == whole.artifact
    assert after.told[0].done == whole.told[killed].done


def test_records_are_few_where_they_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_scores, "JOURNAL_BYTES", 2 * 8 * (1 + GRAPH.num_edges))
    whole = Run()
    assert len(whole.journal) == 2  # after three parts of five, and after the last
    assert Run(Run(operations=2).journal).told[0].done == 0
    after = Run(Run(operations=4).journal)
    assert after.told[0].done == 5
    assert after.artifact == whole.artifact


@given(st.integers(1, 5000), st.integers(1, 40), st.integers(1, 40))
def test_the_journal_is_bounded(parts: int, layers: int, heads: int) -> None:
    graph = Graph(layers, heads, heads)
    record, records = 8 * (1 + graph.num_edges), -(-parts // parts_per_record(parts, graph))
    assert 1 <= records <= edge_scores.MOST_RECORDS
    assert records == 1 or records * record <= edge_scores.JOURNAL_BYTES


@given(st.lists(st.integers(1, 3 * PART_TOKENS), min_size=1, max_size=40))
def test_parts_cover_all_prompts_and_are_no_larger_than_they_must(lengths: list[int]) -> None:
    parts = prompt_parts(TokenTask(clean=tuple((0,) * length for length in lengths)))
    assert [prompt for part in parts for prompt in range(*part)] == list(range(len(lengths)))
    for (first, last), following in zip(parts, [*parts[1:], None], strict=True):
        assert last == first + 1 or (last - first) * max(lengths[first:last]) <= PART_TOKENS
        if following is not None:
            assert (last + 1 - first) * max(lengths[first : last + 1]) > PART_TOKENS


def test_what_an_interrupted_job_had_found() -> None:
    context = MethodContext(RESOLVED, EapParameters(), Run(operations=2).journal)
    artifact = Eap().partial(context)
    assert artifact is not None
    header, arrays = unpack(artifact.data)
    assert header["metric"] == {"name": "logit_difference", "full": None, "empty": None}
    np.testing.assert_allclose(
        arrays["scores"], sum(prompt_scores(prompt) for prompt in range(4)), rtol=1e-12
    )
    assert "first 4 of 7 prompts" in artifact.warnings[0]
    assert Eap().partial(MethodContext(RESOLVED, EapParameters())) is None


@pytest.mark.parametrize("journal", [[b"12345678"], [bytes(8 * GRAPH.num_edges)]])
def test_a_journal_of_something_else_is_refused(journal: list[bytes]) -> None:
    with pytest.raises(ValueError, match="a journal of edge scores must consist of records of"):
        Run(journal)


@pytest.mark.parametrize("prompts", [-1, 1, 8])
def test_a_record_between_parts_is_refused(prompts: int) -> None:
    record = prompts.to_bytes(8, "little", signed=True) + bytes(8 * GRAPH.num_edges)
    with pytest.raises(ValueError, match=f"no part of the prompts ends after {prompts} of 7"):
        Run([record])


def test_points_beyond_some_are_operations_of_their_own() -> None:
    parameters = EapIgParameters(2 * POINTS_AT_ONCE + 1)
    whole = Run(method=EapIg(), parameters=parameters)
    *asked, _ = whole.asked
    gradients = [each for each in asked if isinstance(each, EdgeGradients)]
    assert [len(each.points) for each in gradients] == [POINTS_AT_ONCE, POINTS_AT_ONCE, 1] * 5
    assert sum((each.points for each in gradients[:3]), ()) == EapIg().points(parameters)
    assert whole.context.counts == {"gradients": 7 * parameters.steps, "passes": 2}
    for killed in range(16):
        before = Run(operations=killed, method=EapIg(), parameters=parameters)
        after = Run(before.journal, method=EapIg(), parameters=parameters)
        assert after.artifact == whole.artifact
        # What was done of a part of the prompts is done again.
        assert len(before.asked) - killed % 3 + len(after.asked) == len(whole.asked)


def test_rules_and_points() -> None:
    def points(method: Attribution[Any], parameters: object = None) -> list[tuple[float, float]]:
        parameters = method.parameters() if parameters is None else parameters
        return [(point.clean_share, point.weight) for point in method.points(parameters)]

    for method in AT_CLEAN_RUN:
        assert points(method) == [(1, 1)]
    assert points(EapIg()) == [(0, 0.2), (0.2, 0.2), (0.4, 0.2), (0.6, 0.2), (0.8, 0.2)]
    assert points(EapIg(), EapIgParameters(1)) == [(0, 1)]
    assert points(CleanCorrupted()) == [(1, 0.5), (0, 0.5)]
    assert [method.rule for method in METHODS] == [EXACT, RELEVANCE, GRADIENT_INTERACTION, EXACT, EXACT]
    for method in METHODS:
        (first, *_) = Run(method=method, parameters=method.parameters()).asked
        assert isinstance(first, EdgeGradients)
        assert (first.rule, first.points) == (method.rule, method.points(method.parameters()))


@pytest.mark.parametrize("metric", ["kl_divergence", "l2"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_metric_without_slope_at_the_clean_run_is_refused(method: Attribution[Any], metric: str) -> None:
    asked = replace(RESOLVED, objective=replace(OBJECTIVE, metric=metric, ablation="mean"))
    if method in BETWEEN_RUNS:
        method.check(method.parameters(), asked)
        return
    with pytest.raises(InvalidRequestError) as caught:
        method.check(method.parameters(), asked)
    assert caught.value.field == "metric"
    for part in (repr(method.name), repr(metric), "'logit_difference'", "'eap_ig'"):
        assert part in caught.value.detail


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_an_input_of_zeros_before_norms_is_refused(method: Attribution[Any]) -> None:
    method.check(method.parameters(), replace(RESOLVED, norms=False))
    if method in AT_CLEAN_RUN:
        method.check(method.parameters(), RESOLVED)
        return
    with pytest.raises(InvalidRequestError, match=r"'resample' or 'mean'") as caught:
        method.check(method.parameters(), RESOLVED)
    assert caught.value.field == "ablation"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_rounded_precision_is_refused(method: Attribution[Any]) -> None:
    asked = replace(RESOLVED, norms=False, objective=replace(OBJECTIVE, precision="pahq-int8"))
    with pytest.raises(InvalidRequestError, match="in full precision only, got 'pahq-int8'") as caught:
        method.check(method.parameters(), asked)
    assert caught.value.field == "precision"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_registry_has_them_with_their_parameters(method: Attribution[Any]) -> None:
    assert type(find(method.name)) is type(method)
    assert find(method.name).read({}) == method.parameters()
    with pytest.raises(InvalidRequestError, match="threshold"):
        find(method.name).read({"threshold": 0.1})


@pytest.mark.parametrize("steps", [0, -3, MOST_STEPS + 1, 2.0, True, "5", None])
def test_wrong_steps_are_refused(steps: object) -> None:
    with pytest.raises(InvalidRequestError, match=f"must be an integer from 1 to {MOST_STEPS}") as caught:
        find("eap_ig").read({"steps": steps})
    assert caught.value.field == "steps"


def test_what_an_engine_may_give() -> None:
    asked = EdgeGradients(0, 2, 8, 3, points=EapIg().points(EapIgParameters(4)))
    assert asked.weight == 3
    asked.check(np.zeros(3))
    with pytest.raises(NonFiniteMetricError):
        asked.check(np.array([0, np.nan, 1]))
    for wrong in (np.zeros(4), np.zeros(3, np.float32), [0.0] * 3, None):
        with pytest.raises(ServerError, match="no scores of 3 edges"):
            asked.check(wrong)
