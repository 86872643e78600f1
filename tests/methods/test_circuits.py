"""Searches as methods: their journal, their artifact, and what is left of an interrupted one."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from helpers.fake_engine import GRAPH
from helpers.scores import BasedScore, SetScore, answer
from helpers.specs import acdc, found, run_method, single_edge

from pahq_server.core.artifact import Records, unpack
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.task import TokenTask
from pahq_server.jobs.spec import JobSpec
from pahq_server.methods import registry
from pahq_server.methods.acdc.search import AcdcSearch
from pahq_server.methods.base import MethodContext
from pahq_server.methods.verdicts import VERDICT_BYTES, pack_verdicts, unpack_verdicts

SPECS = [
    acdc(2.0),
    acdc(1.0, grouping="gates"),
    acdc(0.0, grouping="bisect"),
    single_edge(),
    single_edge(3.0),
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("window", [1, 7])
def test_the_journal_is_the_verdicts(spec: JobSpec, window: int) -> None:
    artifact, context = run_method(spec, window=window)
    records = context.take_records()
    data, count = records.data, records.count
    verdicts = found(artifact).verdicts
    assert data == pack_verdicts(verdicts)
    assert len(data) == VERDICT_BYTES * count == 26 * len(verdicts)
    assert context.take_records() == Records()
    assert context.progress.done == GRAPH.num_edges
    assert context.progress.figures["evaluations"] == len(verdicts)
    assert context.progress.figures["kept"] == found(artifact).circuit.num_kept
    assert context.counts["passes"] - context.counts["wasted"] >= len(verdicts)


@pytest.mark.parametrize("spec", SPECS)
def test_a_method_goes_on_from_its_journal_with_the_same_bytes(spec: JobSpec) -> None:
    score = BasedScore(GRAPH, 3)
    whole, context = run_method(spec, score)
    records = context.take_records()
    data, count = records.data, records.count
    for replayed in range(0, count + 1, 5):
        cut = replayed * VERDICT_BYTES
        # However it was cut into pieces.
        journal = (data[: cut // 52 * 26], data[cut // 52 * 26 : cut])
        resumed, rest = run_method(spec, score, window=4, journal=journal)
        assert resumed == whole
        assert rest.take_records() == Records(data[cut:], count - replayed)


def test_an_artifact_holds_what_the_search_found() -> None:
    artifact, _ = run_method(acdc(2.0, grouping="gates"))
    header, arrays = unpack(artifact.data)
    result = answer(AcdcSearch(GRAPH, 2.0, grouping="gates").run(), SetScore(GRAPH, 1))
    assert header == {
        "kind": "circuit",
        "version": 1,
        "graph": {
            "layers": 2, "heads": 2, "kv_heads": 2, "kv_receivers": "group", "parallel": False, "mlps": True
        },
        "metric": {
            "name": "kl_divergence",
            "value": result.metric_value,
            "full": result.metric_full,
            "empty": result.metric_empty,
        },
    }  # fmt: skip
    assert json.loads(json.dumps(dict(artifact.figures))) == {
        "metric": result.metric_value,
        "metric_full": result.metric_full,
        "metric_empty": result.metric_empty,
    }
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "kept": "bool",
        "verdict_gate": "bool",
        "verdict_index": "int64",
        "verdict_score": "float64",
        "verdict_delta": "float64",
        "verdict_kept": "bool",
    }
    assert found(artifact).verdicts == result.verdicts
    assert found(artifact).circuit.key == result.circuit.key


@pytest.mark.parametrize("spec", SPECS)
def test_what_an_interrupted_search_had_decided(spec: JobSpec) -> None:
    whole, context = run_method(spec)
    records = context.take_records()
    data, count = records.data, records.count
    resolved = ResolvedObjective(spec.objective, TokenTask(((1, 2),)), GRAPH, "r")
    method = registry.find(spec.method)

    def partial(records: int) -> object:
        journal = (data[: records * VERDICT_BYTES],)
        return method.partial(MethodContext(resolved, spec.parameters, journal, records))

    assert partial(0) is None
    for records in (1, count // 2, count):
        artifact = partial(records)
        result = found(artifact)  # type: ignore[arg-type]
        (told,) = artifact.warnings  # type: ignore[attr-defined]
        assert f"it had reached {records} verdicts" in told
        assert result.verdicts == found(whole).verdicts[:records]
        removed = [v.index for v in result.verdicts if not v.kept and v.of_one_edge]
        assert not result.circuit.kept[removed].any()
        assert result.circuit.kept[np.flatnonzero(found(whole).circuit.kept)].all()
        assert all(map(math.isnan, (result.metric_value, result.metric_full, result.metric_empty)))
    assert result.circuit.key == found(whole).circuit.key


def test_a_journal_that_is_no_journal() -> None:
    with pytest.raises(ValueError, match="buffer size"):
        unpack_verdicts(b"x" * 27)
    with pytest.raises(ValueError, match="buffer size"):
        run_method(acdc(2.0), journal=(b"x" * 27,))
