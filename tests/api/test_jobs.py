"""Every call of the job service, as it should go."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.api_server import RunningServer, evaluation, objective, refused, spec, token_ids
from helpers.fake_engine import GRAPH, FakeEngine
from helpers.scores import SetScore, answer
from numpy.typing import NDArray
from pahq.v1 import circuit_pb2, patching_pb2, task_pb2
from pahq.v1 import jobs_pb2 as pb

from pahq_server.api import conversion
from pahq_server.core.circuit import Circuit
from pahq_server.core.errors import NonFiniteMetricError
from pahq_server.core.graph import Graph
from pahq_server.methods.acdc.order import Grouping
from pahq_server.methods.acdc.search import AcdcSearch


def test_create(server: RunningServer, engine: FakeEngine) -> None:
    engine.hold()
    created = server.create(spec())
    assert created.name.startswith("users/local/jobs/")
    assert created.state in (pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING)
    assert (created.progress.total, created.progress.done) == (GRAPH.num_edges, 0)
    assert created.HasField("create_time")
    assert not created.HasField("end_time")
    assert created.error_message == ""


def test_the_spec_comes_back_without_the_prompts(server: RunningServer) -> None:
    asked = spec(grouping="none")
    found = server.create(asked).spec
    assert found.objective.task == task_pb2.Task()
    asked.objective.ClearField("task")
    found.objective.ClearField("task")
    assert found == asked


def test_a_builtin_task_comes_back_whole(server: RunningServer) -> None:
    task = task_pb2.Task(builtin=task_pb2.BuiltinTask(name="ioi", num_prompts=4, seed=7))
    assert server.create(spec(task=task)).spec.objective.task == task


def test_a_sweep_may_have_no_threshold(server: RunningServer) -> None:
    created = server.create(spec(method="single_edge", threshold=None))
    assert not created.spec.single_edge.HasField("threshold")
    created = server.create(spec(method="single_edge", threshold=0.0))
    assert created.spec.single_edge.HasField("threshold")


def test_validate_only_creates_nothing(server: RunningServer) -> None:
    checked = server.create(spec(), validate_only=True)
    assert checked.name == ""
    assert checked.progress.total == GRAPH.num_edges
    assert list(server.job_stub.ListJobs(pb.ListJobsRequest()).jobs) == []


def test_validate_only_estimates(server: RunningServer) -> None:
    request = pb.CreateJobRequest(spec=spec(), validate_only=True)
    estimate = server.job_stub.CreateJob(request).estimate
    assert estimate == pb.Estimate(memory_bytes=1000, least_seconds=0.5, most_seconds=60.0)
    request.validate_only = False
    assert not server.job_stub.CreateJob(request).HasField("estimate")


def test_a_repeated_request_returns_the_first_job(server: RunningServer) -> None:
    first = server.create(spec(), request_id="abc")
    assert server.create(spec(), request_id="abc").name == first.name
    with refused() as refusal:
        server.create(spec(threshold=0.5), request_id="abc")
    assert refusal.info.reason == "ALREADY_EXISTS"


def test_get(server: RunningServer) -> None:
    name = server.finish(spec())
    found = server.job_stub.GetJob(pb.GetJobRequest(name=name)).job
    assert (found.name, found.state) == (name, pb.JOB_STATE_SUCCEEDED)
    assert found.progress.done == found.progress.total == GRAPH.num_edges
    assert found.create_time.ToNanoseconds() <= found.start_time.ToNanoseconds()
    assert found.start_time.ToNanoseconds() <= found.end_time.ToNanoseconds()
    assert not found.progress.HasField("eta_seconds")


def test_cancel(server: RunningServer, engine: FakeEngine) -> None:
    engine.hold()
    name = server.create(spec()).name
    engine.wait_for_call()
    answered = server.job_stub.CancelJob(pb.CancelJobRequest(name=name)).job
    assert (answered.name, answered.state) == (name, pb.JOB_STATE_CANCELLING)
    engine.release()
    assert server.events(name)[-1].state == pb.JOB_STATE_CANCELLED
    again = server.job_stub.CancelJob(pb.CancelJobRequest(name=name)).job
    assert again.state == pb.JOB_STATE_CANCELLED


def test_delete(server: RunningServer) -> None:
    name = server.finish(spec())
    server.job_stub.DeleteJob(pb.DeleteJobRequest(name=name))
    with refused() as refusal:
        server.job_stub.GetJob(pb.GetJobRequest(name=name))
    assert refusal.info.reason == "NOT_FOUND"


def edge_set(kept: NDArray[Any], graph: Graph = GRAPH, revision: str = "c0ffee") -> circuit_pb2.EdgeSet:
    bits = np.packbits(kept.astype(bool), bitorder="little").tobytes()
    return circuit_pb2.EdgeSet(graph=conversion.graph(graph), model_revision=revision, bits=bits)


def within(edges: circuit_pb2.EdgeSet, **changes: Any) -> pb.JobSpec:
    asked = spec(**changes)
    asked.acdc.within.CopyFrom(edges)
    return asked


@pytest.mark.parametrize("grouping", ["none", "gates", "bisect"])
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("revision", ["c0ffee", ""])
def test_a_job_that_starts_within_a_circuit(
    server: RunningServer, grouping: Grouping, share: float, revision: str
) -> None:
    kept = np.random.default_rng(3).random(GRAPH.num_edges) < share
    name = server.finish(within(edge_set(kept, revision=revision), threshold=0.0, grouping=grouping))
    fetched = server.artifact(name)
    search = AcdcSearch(GRAPH, 0.0, grouping, start=Circuit(GRAPH, kept))
    found = answer(search.run(), SetScore(GRAPH, 1))
    assert np.array_equal(fetched.arrays["kept"], found.circuit.kept)
    assert fetched.arrays["verdict_delta"].tolist() == [v.delta for v in found.verdicts]
    assert not (fetched.arrays["kept"] & ~kept).any()
    # Which edges is told by their hash, wherever jobs are listed.
    told = server.job_stub.GetJob(pb.GetJobRequest(name=name)).job.spec.acdc
    assert (told.grouping, told.within.bits, told.within.model_revision) == (grouping, b"", revision)
    parameters = json.loads(fetched.header.provenance_request_json)["parameters"]
    assert parameters["within"] == {"sha256": hashlib.sha256(edge_set(kept).bits).hexdigest()}


FULL = np.ones(GRAPH.num_edges, dtype=bool)
OTHER = replace(GRAPH, layers=3)


@pytest.mark.parametrize(
    ("edges", "reason", "field", "words"),
    [
        (edge_set(np.ones(OTHER.num_edges), OTHER), "OTHER_MODEL", "within", ("3 layers", "2 layers")),
        (edge_set(FULL, revision="decaf"), "OTHER_MODEL", "within", ("revision decaf", "revision c0ffee")),
        (edge_set(FULL[:-8]), "INVALID_REQUEST", "within.bits", ("must be 6 bytes", "got 5")),
        (edge_set(np.ones(48)), "INVALID_REQUEST", "within.bits", ("must be 0 after the last of 46",)),
        (circuit_pb2.EdgeSet(bits=b"x"), "INVALID_REQUEST", "acdc.within.graph", ("is missing",)),
    ],
)
def test_a_circuit_that_does_not_fit_is_refused(
    server: RunningServer, edges: circuit_pb2.EdgeSet, reason: str, field: str, words: tuple[str, ...]
) -> None:
    with refused() as refusal:
        server.create(within(edges))
    assert (refusal.info.reason, refusal.violation[0]) == (reason, field)
    for word in words:
        assert word in refusal.violation[1]


def test_a_circuit_with_other_receivers_of_keys_is_refused(server: RunningServer) -> None:
    server.engine.graph = Graph(2, 4, 2, "group")
    there = replace(server.engine.graph, kv_receivers="query")
    with refused() as refusal:
        server.create(within(edge_set(np.ones(there.num_edges), there)))
    assert refusal.violation[0] == "kv_receivers"
    assert "'query'" in refusal.violation[1]
    assert "'group'" in refusal.violation[1]


def test_a_job_that_searches_for_a_threshold_tells_it(server: RunningServer) -> None:
    asked = spec(threshold=None, grouping="bisect")
    asked.acdc.edges = 5
    name = server.finish(asked)
    ended, fetched = server.job_stub.GetJob(pb.GetJobRequest(name=name)).job, server.artifact(name)
    assert fetched.content["threshold"] == ended.artifact.figures["threshold"] >= 0
    assert ended.progress.done == ended.progress.total > GRAPH.num_edges
    assert ended.progress.stage.startswith("run ")
    asked.acdc.faithfulness = 0.5
    with refused() as refusal:
        server.create(asked)
    assert refusal.violation[0] == "acdc.edges"


def test_a_faithfulness_that_has_no_meaning_fails_its_job(server: RunningServer) -> None:
    asked = spec(threshold=None)
    asked.acdc.faithfulness = 0.5  # the fake engine's full model and empty circuit measure the same
    job = server.job_stub.GetJob(pb.GetJobRequest(name=server.finish(asked))).job
    assert job.state == pb.JOB_STATE_FAILED
    assert "faithfulness: has no meaning here" in job.error_message


def test_the_artifact_of_a_circuit(server: RunningServer) -> None:
    fetched = server.artifact(server.finish(spec()))
    header, content, arrays = fetched.header, fetched.content, fetched.arrays
    assert (header.kind, header.version, header.partial) == ("circuit", 1, False)
    found = answer(AcdcSearch(GRAPH, 2.0, grouping="gates").run(), SetScore(GRAPH, 1))
    assert fetched.kept_edges() == [(v.index, v.delta) for v in found.verdicts if v.kept and not v.gate]
    columns = [arrays[f"verdict_{name}"].tolist() for name in ("index", "delta", "kept", "gate")]
    verdicts = list(zip(*columns, strict=True))
    assert verdicts == [(v.index, v.delta, v.kept, v.gate) for v in found.verdicts]
    assert any(kept and gate for _, _, kept, gate in verdicts)
    assert len(arrays["kept"]) == GRAPH.num_edges
    assert set(arrays["kept"].nonzero()[0]) == {index for index, _ in fetched.kept_edges()}
    assert content["metric"] == {
        "name": "kl_divergence",
        "value": found.metric_value,
        "full": found.metric_full,
        "empty": found.metric_empty,
    }
    graph = {"layers": 2, "heads": 2, "kv_heads": 2, "kv_receivers": "group", "parallel": False, "mlps": True}
    assert content["graph"] == graph


@pytest.mark.parametrize("state", ["CANCELLED", "FAILED"])
def test_what_a_stopped_job_had_found_is_given_as_partial(
    state: str, server: RunningServer, engine: FakeEngine
) -> None:
    engine.hold()
    name = server.create(spec(model="bad")).name
    for _ in range(8):
        engine.wait_for_call()
        engine.let()
    engine.wait_for_call()
    if state == "FAILED":
        engine.failures["bad"].run = NonFiniteMetricError("the metric is nan")
    else:
        server.job_stub.CancelJob(pb.CancelJobRequest(name=name))
    engine.release()
    assert server.events(name)[-1].state == pb.JobState.Value(f"JOB_STATE_{state}")
    fetched, whole = server.artifact(name), server.artifact(server.finish(spec()))
    assert (fetched.header.kind, fetched.header.version, fetched.header.partial) == ("circuit", 1, True)
    assert fetched.content["metric"]["value"] is None
    count = len(fetched.arrays["verdict_index"])
    assert 0 < count < len(whole.arrays["verdict_index"])
    for column in ("index", "delta", "kept", "gate"):
        ours, theirs = (each.arrays[f"verdict_{column}"].tolist() for each in (fetched, whole))
        assert ours == theirs[:count]


def test_equal_jobs_have_equal_provenance_of_the_request(server: RunningServer) -> None:
    one, other = (server.artifact(server.finish(spec())).header for _ in range(2))
    assert one.provenance_request_json == other.provenance_request_json
    request = json.loads(one.provenance_request_json)
    assert request["model_revision"] == "c0ffee"
    assert request["parameters"]["threshold"] == 2.0
    assert json.loads(one.provenance_run_json)["device"] == "abacus"


def test_an_artifact_comes_in_chunks_that_any_client_accepts() -> None:
    graph = Graph(12, 12, 12)
    engine = FakeEngine(graph, score=lambda patched: 0.25)
    with RunningServer(engine, window=2000) as server:
        name = server.finish(spec(method="single_edge", threshold=None))
        chunks = list(server.job_stub.GetArtifact(pb.GetArtifactRequest(name=name)))
        # The header alone, then as few chunks as may be.
        assert not chunks[0].data
        assert len(chunks) == 1 + -(-chunks[0].header.size_bytes // conversion.CHUNK) > 1
        assert max(chunk.ByteSize() for chunk in chunks) < 1 << 20
        fetched = server.artifact(name)
    assert [index for index, _ in fetched.kept_edges()] == list(range(graph.num_edges))
    assert len(fetched.arrays["verdict_index"]) == graph.num_edges == 32_491


# Listing


def listed(server: RunningServer, size: int = 0, token: str = "") -> tuple[list[str], str]:
    request = pb.ListJobsRequest(page_size=size, page_token=token)
    response = server.job_stub.ListJobs(request)
    return [job.name for job in response.jobs], response.next_page_token


def test_list_is_newest_first(server: RunningServer) -> None:
    assert listed(server) == ([], "")
    names = [server.create(spec()).name for _ in range(3)]
    assert listed(server) == (names[::-1], "")


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 1000])
def test_pages_together_are_the_list(size: int, server: RunningServer) -> None:
    names = [server.create(spec()).name for _ in range(6)]
    found, token = listed(server, size)
    pages = 1
    while token:
        page, token = listed(server, size, token)
        assert 0 < len(page) <= size
        found, pages = found + page, pages + 1
    assert found == names[::-1]
    assert pages == -(-6 // size)


def test_new_jobs_do_not_shift_pages(server: RunningServer) -> None:
    names = [server.create(spec()).name for _ in range(4)]
    first, token = listed(server, 2)
    server.create(spec())
    second, token = listed(server, 2, token)
    assert first + second == names[::-1]
    assert token == ""


def test_the_default_page_holds_fifty(server: RunningServer, engine: FakeEngine) -> None:
    engine.hold()
    for _ in range(51):
        server.create(spec())
    page, token = listed(server)
    assert len(page) == 50
    assert len(listed(server, token=token)[0]) == 1


def test_token_ids_reach_the_engine_as_sent(server: RunningServer, engine: FakeEngine) -> None:
    prompts = task_pb2.PromptTask(
        clean=[*token_ids((5, 6, 7)), task_pb2.Prompt(text="caf\u00e9 …")],
        corrupted=token_ids((5, 6, 8), (1,)),
        answers=token_ids((3,)),
        wrong_answers=[task_pb2.Prompt(text=" Tom")],
        positions=task_pb2.Positions(indices=[2, 0]),
    )
    server.finish(spec(task=task_pb2.Task(prompts=prompts)))
    (resolved,) = engine.opened
    found = resolved.objective.task
    assert found.clean == ((5, 6, 7), "café …")
    assert found.corrupted == ((5, 6, 8), (1,))
    assert (found.answers, found.wrong_answers, found.positions) == (((3,),), (" Tom",), (2, 0))


def test_a_job_tells_figures_of_its_artifact_and_the_number_of_prompts(server: RunningServer) -> None:
    server.engine.hold()  # else it may have ended when the answer is made
    created = server.create(spec())
    server.engine.release()
    assert created.num_prompts == 1
    assert not created.HasField("artifact")
    assert list(server.events(created.name))[-1].kind == pb.EVENT_KIND_END
    fetched = server.artifact(created.name)
    header, metric = fetched.header, fetched.content["metric"]
    found = server.job_stub.GetJob(pb.GetJobRequest(name=created.name)).job
    (listed,) = server.job_stub.ListJobs(pb.ListJobsRequest()).jobs
    for each in (found, listed):
        assert each.artifact.kind == "circuit"
        assert dict(each.artifact.figures) == {
            "metric": metric["value"],
            "metric_full": metric["full"],
            "metric_empty": metric["empty"],
        }
        assert list(each.warnings) == list(header.warnings)
        assert each.num_prompts == 1
    assert "warnings" not in json.loads(header.provenance_run_json)
    assert json.loads(header.provenance_run_json)["task"] == {"num_prompts": 1}


def test_progress_has_a_unit_and_named_figures(server: RunningServer) -> None:
    name = server.finish(spec())
    progress = server.job_stub.GetJob(pb.GetJobRequest(name=name)).job.progress
    assert (progress.unit, progress.done) == ("edges", progress.total)
    fetched = server.artifact(name)
    assert dict(progress.figures) == {
        "kept": len(fetched.kept_edges()),
        "metric": fetched.content["metric"]["value"],
        "evaluations": len(fetched.arrays["verdict_index"]),
    }


def test_every_answer_carries_its_warnings(server: RunningServer, engine: FakeEngine) -> None:
    engine.request_warnings = ("Look at the tokens.",)
    request = pb.CreateJobRequest(spec=spec(threshold=1e6), validate_only=True)
    assert list(server.job_stub.CreateJob(request).estimate.warnings) == ["Look at the tokens."]
    created = server.create(request.spec)
    assert created.warnings[0] == "Look at the tokens."
    server.events(created.name)
    found = list(server.artifact(created.name).header.warnings)
    assert found[0] == "Look at the tokens."
    assert any("No edge is kept" in text for text in found)
    asked = evaluation(["m1->logits"])
    evaluated = server.patching.EvaluateCircuits(asked).warnings
    assert evaluated[0] == "Look at the tokens."
    assert any("not on a path" in text for text in evaluated)
    opened = server.patching.OpenSession(patching_pb2.OpenSessionRequest(objective=objective())).session
    assert opened.warnings[0] == "Look at the tokens."
    assert opened.model_revision == "c0ffee"


def test_prompts_come_in_chunks(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "CHUNK", 10)
    for include in (True, False):
        asked = spec()
        asked.include_prompts = include
        name = server.finish(asked)
        assert server.job_stub.GetJob(pb.GetJobRequest(name=name)).job.spec.include_prompts is include
        chunks = list(server.job_stub.GetArtifact(pb.GetArtifactRequest(name=name)))
        assert all(len(chunk.data) <= 10 for chunk in chunks)
        parts = [chunk.prompts_json for chunk in chunks]
        assert all(len(part) <= 10 for part in parts)
        assert (json.loads("".join(parts))["clean"] == [[1, 2]]) if include else not any(parts)
