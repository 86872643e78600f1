"""Searches for a number of edges or a faithfulness: what they end with, what they share, how they go on."""

from __future__ import annotations

import math
from typing import Any

import pytest
from helpers.fake_engine import GRAPH, OBJECTIVE
from helpers.scores import BasedScore, SumScore, answer
from helpers.specs import acdc, found, run_method
from hypothesis import given, settings
from hypothesis import strategies as st

from pahq_server.core.artifact import unpack
from pahq_server.core.circuit import Circuit, PatchedPass
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.graph import Graph
from pahq_server.core.task import TokenTask
from pahq_server.jobs.spec import JobSpec
from pahq_server.methods import registry
from pahq_server.methods.acdc.method import AcdcParameters
from pahq_server.methods.acdc.order import GROUPINGS
from pahq_server.methods.acdc.search import AcdcSearch, TestedBranch
from pahq_server.methods.acdc.targets import MOST_RUNS, Target, TargetSearch, ThresholdChoice
from pahq_server.methods.base import MethodContext
from pahq_server.methods.verdicts import VERDICT_BYTES, is_measured_record, unpack_verdicts

LARGE = Graph(2, 4, 4)


class Worth(SumScore):
    """What edges are worth varies, so that every threshold has a circuit of its own."""

    WORTH = tuple(round(4 * (rank / 1009) ** 6, 12) for rank in range(1009))


def aim(grouping: str = "none", **target: Any) -> JobSpec:
    return JobSpec(OBJECTIVE, "acdc", AcdcParameters(grouping=grouping, **target))


def faithfulness(artifact: Any) -> float:
    result = found(artifact)
    return (result.metric_value - result.metric_empty) / (result.metric_full - result.metric_empty)


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("edges", [1, 7, 40])
def test_a_number_of_edges_is_not_exceeded_and_nearly_reached(grouping: str, edges: int) -> None:
    score = Worth(LARGE, 3)
    artifact, context = run_method(aim(grouping, edges=edges), score, LARGE, window=7)
    result = found(artifact)
    assert edges * 0.7 - 1 < result.circuit.num_kept <= edges
    assert artifact.warnings == () or "No threshold" not in artifact.warnings[0]
    # The circuit is the one that this threshold leads to, to the last bit.
    assert result.threshold == artifact.figures["threshold"] > 0
    direct, _ = run_method(acdc(result.threshold, grouping), score, LARGE)
    again = found(direct)
    assert (again.verdicts, again.circuit.key) == (result.verdicts, result.circuit.key)
    assert unpack(direct.data)[0].get("threshold") is None
    assert context.progress.done == LARGE.num_edges * MOST_RUNS


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("least", [0.3, 0.9, 1.0])
def test_a_faithfulness_is_reached(grouping: str, least: float) -> None:
    artifact, _ = run_method(aim(grouping, faithfulness=least), Worth(LARGE, 4), LARGE, window=3)
    assert least <= faithfulness(artifact) < least + 0.2
    assert artifact.warnings == () or "No threshold" not in artifact.warnings[0]


def test_more_edges_than_there_are_keep_all_that_do_no_harm() -> None:
    artifact, _ = run_method(aim(edges=10**6), Worth(GRAPH, 1))
    assert found(artifact).threshold == 0


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_runs_share_what_was_tested_after_the_same_verdicts(grouping: str) -> None:
    """No circuit is asked for twice under the same base circuits, and it shows."""
    score = BasedScore(LARGE, 5, Worth)
    asked = 0

    def counted(patched: PatchedPass) -> float:
        nonlocal asked
        asked += 1
        return score(patched)

    start, runs = Circuit.full(LARGE), []

    def search(threshold: float, recorded: Any, tested: TestedBranch) -> AcdcSearch:
        runs.append(threshold)
        return AcdcSearch(LARGE, threshold, grouping, 1, recorded, start=start, tested=tested)  # type: ignore[arg-type]

    answer(TargetSearch(Target(edges=30), start, search).run(), counted)
    together, asked = asked, 0
    for threshold in runs:
        answer(AcdcSearch(LARGE, threshold, grouping).run(), counted)  # type: ignore[arg-type]
    assert 1 < len(runs) <= MOST_RUNS
    assert together < asked
    assert len(set(runs)) == len(runs)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(GROUPINGS),
    st.sampled_from([{"edges": 6}, {"faithfulness": 0.7}]),
    st.integers(0, 99),
    st.sampled_from([1, 2, 7, 64]),
    st.floats(0, 1),
)
def test_goes_on_from_anywhere_with_the_same_bytes(
    grouping: str, target: dict[str, Any], seed: int, window: int, share: float
) -> None:
    spec, score = aim(grouping, **target), BasedScore(GRAPH, seed, Worth)
    whole, context = run_method(spec, score)
    records = context.take_records()
    data, count = records.data, records.count
    cut = int(share * count) * VERDICT_BYTES
    resumed, rest = run_method(spec, score, window=window, journal=(data[:cut],))
    assert resumed == whole
    assert rest.take_records().data == data[cut:]


def test_progress_never_goes_back() -> None:
    seen: list[int] = []
    score, spec = Worth(GRAPH, 2), aim(edges=5)

    resolved = ResolvedObjective(spec.objective, TokenTask(((1, 2),), ((1, 3),)), GRAPH, "r")
    context: MethodContext[Any] = MethodContext(resolved, spec.parameters, window=5)
    steps = registry.find("acdc").run(context)
    operation: Any = next(steps)
    try:
        while True:
            seen.append(context.progress.done)
            operation = steps.send([score(patched) for patched in operation.passes])
    except StopIteration:
        seen.append(context.progress.done)
    assert seen == sorted(seen)
    assert seen[-1] == registry.find("acdc").total(spec.parameters, resolved) == GRAPH.num_edges * MOST_RUNS


def test_what_an_interrupted_search_had_found() -> None:
    spec, score = aim(edges=5), Worth(GRAPH, 2)
    whole, context = run_method(spec, score)
    records = context.take_records()
    data, count = records.data, records.count
    resolved = ResolvedObjective(spec.objective, TokenTask(((1, 2),)), GRAPH, "r")

    def partial(records: int) -> Any:
        journal = (data[: records * VERDICT_BYTES],)
        return registry.find("acdc").partial(MethodContext(resolved, spec.parameters, journal, records))

    assert partial(0) is None
    assert partial(3) is None  # the endpoints alone
    for records in (4, 20, count // 2, count):
        header, _ = unpack(partial(records).data)
        assert header["threshold"] > 0
        assert found(partial(records)).verdicts
    assert found(partial(count)).circuit.key == found(whole).circuit.key


def test_a_faithfulness_without_a_way_to_go() -> None:
    with pytest.raises(InvalidRequestError, match="measure the same, 1"):
        run_method(aim(faithfulness=0.5), lambda patched: 1.0)
    artifact, _ = run_method(aim(edges=5), lambda patched: 1.0)
    assert found(artifact).circuit.num_kept <= 5


def test_what_cannot_be_reached_is_told() -> None:
    def score(patched: PatchedPass) -> float:
        kept = patched.circuit.num_kept
        return 0.0 if kept == GRAPH.num_edges else 1.0 if kept == 0 else 0.9

    within = Circuit.full(GRAPH).without(range(0, GRAPH.num_edges, 2))
    start = Circuit(GRAPH, within.kept)

    def search(threshold: float, recorded: Any, tested: TestedBranch) -> AcdcSearch:
        return AcdcSearch(GRAPH, threshold, "none", 4, recorded, start=start, tested=tested)

    result = answer(TargetSearch(Target(faithfulness=0.8), start, search).run(), score)
    assert result.metric_start == 0.9
    (told,) = result.warnings
    assert "No threshold that was tried leads to a faithfulness of 0.8: that of this circuit is 0.1" in told


def test_a_journal_of_another_search_is_refused() -> None:
    _, context = run_method(acdc(1.0), Worth(GRAPH, 2))
    with pytest.raises(ValueError, match="the journal has a verdict where"):
        run_method(aim(edges=5), Worth(GRAPH, 2), journal=(context.take_records().data,))
    _, context = run_method(aim(edges=5), Worth(GRAPH, 2))
    journal = context.take_records().data
    with pytest.raises(ValueError, match="a verdict is on -1"):
        run_method(acdc(1.0), Worth(GRAPH, 2), journal=(journal,))


@settings(max_examples=200)
@given(st.floats(1e-2, 1e2), st.floats(0.2, 3), st.floats(1e-2, 1e2), st.booleans())
def test_a_choice_ends_near_the_right_threshold(
    right: float, slope: float, first: float, steps: bool
) -> None:
    """For surpluses that fall with the logarithm of the threshold, evenly or in steps."""
    choice, tried = ThresholdChoice(first, first), []
    while (threshold := choice.next) is not None:
        tried.append(threshold)
        surplus = slope * (math.log(right) - math.log(max(threshold, 1e-300)))
        choice.tried(round(surplus) or math.copysign(0.1, surplus) if steps else surplus)
    assert len(tried) <= MOST_RUNS
    assert min(abs(math.log(max(each, 1e-300) / right)) for each in tried) < 0.2


def test_measured_metrics_are_told_from_verdicts() -> None:
    _, context = run_method(aim(edges=5), Worth(GRAPH, 2))
    records = context.take_records()
    data, count = records.data, records.count
    records = unpack_verdicts(data)
    assert len(records) == count
    assert all(map(is_measured_record, records[:3]))
    assert not is_measured_record(records[3])
