"""GenerateSamples: the same samples as a job's, as they end; stopped when nobody reads them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from helpers.api_server import RunningServer, objective, refused, token_ids
from helpers.fake_engine import GRAPH, PATIENCE_S, FakeEngine
from helpers.fake_generator import whole
from pahq.v1 import circuit_pb2, jobs_pb2, methods_pb2, task_pb2
from pahq.v1 import generation_pb2 as pb

from pahq_server.api import conversion
from pahq_server.core.errors import ResourceExhaustedError, ServerError
from pahq_server.jobs import generation
from pahq_server.jobs.generation import SampleBuffer
from pahq_server.jobs.quotas import Quotas
from pahq_server.methods.generate.samples import FinishedSample, sample_seed

PROMPTS = ((1, 2), (3, 4, 5))


def asked(model: str = "toy", prompts: Any = PROMPTS, **parameters: Any) -> pb.GenerateSamplesRequest:
    values = {"n": 5, "max_tokens": 20, "seed": 9, "logprobs": True, "slots": 3} | parameters
    if "kv_tokens" in values:
        del values["slots"]
    return pb.GenerateSamplesRequest(
        model=model, prompts=token_ids(*prompts), parameters=methods_pb2.GenerateParameters(**values)
    )


def read(
    server: RunningServer, request: pb.GenerateSamplesRequest
) -> tuple[list[pb.Sample], pb.GenerationSummary]:
    first, *samples, last = server.generation.GenerateSamples(request, timeout=PATIENCE_S)
    assert [tuple(prompt.ids) for prompt in first.prompts.prompts] == list(PROMPTS)
    assert last.HasField("summary")
    return [each.sample for each in samples], last.summary


def wait_for(condition: Any) -> None:
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come about")


def test_samples_are_streamed_as_they_end_and_then_their_figures(server: RunningServer) -> None:
    samples, summary = read(server, asked())
    assert sorted((each.prompt, each.index) for each in samples) == [
        (p, i) for p in range(2) for i in range(5)
    ]
    for each in samples:
        expected = whole(PROMPTS[each.prompt], sample_seed(9, each.index), 20)
        assert tuple(each.ids) == expected.ids
        assert tuple(each.logprobs) == expected.logprobs
        assert each.finish_reason == expected.finish
    assert (summary.backend, list(summary.warnings)) == ("transformers", [])
    assert summary.figures["tokens"] == sum(len(each.ids) for each in samples)
    assert summary.figures["steps"] >= summary.figures["lower_bound"] > 0
    assert summary.figures["slots"] == 3
    assert summary.figures["seconds"] >= 0


def test_a_job_gives_the_same_samples(server: RunningServer) -> None:
    samples, _ = read(server, asked(slots=7))
    request = asked(slots=2)
    task = task_pb2.Task(prompts=task_pb2.PromptTask(clean=request.prompts))
    spec = jobs_pb2.JobSpec(objective=objective(task=task, ablation="zero"), generate=request.parameters)
    artifact = server.artifact(server.finish(spec))
    assert (artifact.header.kind, artifact.header.version) == ("samples", 1)
    bounds = artifact.arrays["offsets"].tolist()
    for each in samples:
        number = 5 * each.prompt + each.index
        assert artifact.arrays["ids"][bounds[number] : bounds[number + 1]].tolist() == list(each.ids)


def test_the_request_of_a_job_is_told_as_it_was_sent(server: RunningServer) -> None:
    parameters = methods_pb2.GenerateParameters(n=2, max_tokens=3, kv_tokens=99)
    task = task_pb2.Task(prompts=task_pb2.PromptTask(clean=token_ids((1, 2))))
    job = server.create(jobs_pb2.JobSpec(objective=objective(task=task), generate=parameters))
    told = job.spec.generate
    assert (told.n, told.max_tokens, told.kv_tokens, told.policy) == (2, 3, 99, "auto")
    assert not told.HasField("slots")
    assert (told.temperature, told.top_p, list(told.stop)) == (1.0, 1.0, [])
    assert (job.progress.total, job.progress.unit) == (2, "samples")


@pytest.mark.parametrize(
    ("request_", "field", "words"),
    [
        (asked(n=4097), "parameters.n", "got 4097"),
        (asked(max_tokens=0), "parameters.max_tokens", "from 1"),
        (asked(max_tokens=63), "parameters.max_tokens", "prompts[1], has 3 tokens"),
        (asked(slots=99), "parameters.slots", "from 1 to"),
        (asked(policy="lifo"), "parameters.policy", "lifo"),
        (asked(stop=["", "a"]), "parameters.stop[0]", "is empty"),
        (asked(stop=["a"]), "parameters.stop", "no tokenizer"),
        (asked(prompts=()), "prompts", "at least one prompt"),
        (pb.GenerateSamplesRequest(model="toy", prompts=token_ids((1,))), "parameters", "is missing"),
        (pb.GenerateSamplesRequest(model="toy", prompts=[task_pb2.Prompt()], parameters=asked().parameters),
         "prompts[0]", "neither text nor token ids"),
    ],
)  # fmt: skip
def test_bad_requests(
    server: RunningServer, request_: pb.GenerateSamplesRequest, field: str, words: str
) -> None:
    with refused() as refusal:
        read(server, request_)
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.violation[0] == field
    assert words in refusal.violation[1]
    server.assert_alive()


EVERY_EDGE = circuit_pb2.EdgeSet(
    graph=conversion.graph(GRAPH),
    bits=np.packbits(np.ones(GRAPH.num_edges, bool), bitorder="little").tobytes(),
)
OTHER_GRAPH = circuit_pb2.EdgeSet(graph=conversion.graph(replace(GRAPH, layers=3)), bits=EVERY_EDGE.bits)
CORRUPTED = ((1, 3), (3, 9, 5))


def under(
    circuit: Any = EVERY_EDGE, ablation: str = "zero", corrupted: Any = ()
) -> pb.GenerateSamplesRequest:
    request = asked(circuit=circuit)
    request.parameters.ClearField("slots")
    request.ablation = ablation
    request.corrupted.extend(token_ids(*corrupted))
    return request


def test_samples_under_a_circuit(server: RunningServer, engine: FakeEngine) -> None:
    engine.offer = None  # it needs no backend
    samples, summary = read(server, under(ablation="resample", corrupted=CORRUPTED))
    for each in samples:
        assert tuple(each.ids) == whole(PROMPTS[each.prompt], sample_seed(9, each.index), 20).ids
    assert (len(samples), summary.backend, summary.figures["slots"]) == (10, "pahq", 1)
    task = task_pb2.Task(
        prompts=task_pb2.PromptTask(clean=token_ids(*PROMPTS), corrupted=token_ids(*CORRUPTED))
    )
    parameters = under().parameters
    job = server.create(jobs_pb2.JobSpec(objective=objective(task=task), generate=parameters))
    told = job.spec.generate.circuit
    assert (told.graph, told.bits) == (EVERY_EDGE.graph, b"")


@pytest.mark.parametrize(
    ("request_", "field", "words"),
    [
        (
            under(ablation="mean"),
            "ablation",
            "must be 'zero' or 'resample' for text under a circuit, got 'mean'",
        ),
        (under(ablation="resample"), "corrupted", "needs corrupted prompts"),
        (under(None), "ablation", "is for text under a circuit"),
        (under(None, "", CORRUPTED), "corrupted", "is for text under a circuit"),
        (under(circuit_pb2.EdgeSet()), "parameters.circuit.graph", "is missing"),
        (under(circuit_pb2.EdgeSet(graph=EVERY_EDGE.graph)), "parameters.circuit.bits", "one bit for each"),
        (under(OTHER_GRAPH), "parameters.circuit", "another model"),
    ],
)
def test_bad_requests_for_circuits(
    server: RunningServer, request_: pb.GenerateSamplesRequest, field: str, words: str
) -> None:
    with refused() as refusal:
        read(server, request_)
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.violation[0] == field
    assert words in refusal.violation[1]


def test_a_model_that_cannot_generate_and_one_that_is_not_there(
    server: RunningServer, engine: FakeEngine
) -> None:
    with refused() as refusal:
        read(server, asked(model="other"))
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    engine.offer = None
    with refused() as refusal:
        read(server, asked())
    assert refusal.violation == ("model", "'toy': the abacus does not speak")


def test_a_client_that_goes_stops_the_run(server: RunningServer, engine: FakeEngine) -> None:
    engine.hold()
    stream = server.generation.GenerateSamples(asked(n=1000, max_tokens=40), timeout=PATIENCE_S)
    engine.wait_for_call()
    stream.cancel()
    steps = len(engine.steps)
    engine.let(3)
    wait_for(lambda: not engine.open_states)
    assert len(engine.steps) <= steps + 2
    engine.release()
    server.assert_alive()


def test_an_error_of_the_engine_ends_the_stream(server: RunningServer, engine: FakeEngine) -> None:
    engine.failures["toy"].run = ServerError("generating text has failed twice")
    with refused() as refusal:
        read(server, asked())
    assert refusal.code is grpc.StatusCode.UNAVAILABLE
    assert "failed twice" in refusal.message


def test_prompts_are_sent_in_as_many_messages_as_they_need(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [tuple(range(1, 2 + number % 9)) for number in range(60)]
    monkeypatch.setattr(conversion, "CHUNK", 40)
    answers = list(server.generation.GenerateSamples(asked(prompts=prompts, n=1), timeout=PATIENCE_S))
    messages = [each.prompts for each in answers if each.HasField("prompts")]
    assert [each.WhichOneof("content") for each in answers[: len(messages)]] == ["prompts"] * len(messages)
    assert [tuple(prompt.ids) for each in messages for prompt in each.prompts] == prompts
    assert len(messages) > 10
    assert max(each.ByteSize() for each in messages) <= 40


@pytest.fixture
def limited() -> Iterator[RunningServer]:
    with RunningServer(FakeEngine(), quotas=Quotas(prompt_tokens=8)) as running:
        yield running


def test_streams_count_towards_quotas(limited: RunningServer) -> None:
    engine = limited.engine
    engine.hold()
    first = limited.generation.GenerateSamples(asked(), timeout=PATIENCE_S)
    engine.wait_for_call()
    with refused() as refusal:
        read(limited, asked())
    assert refusal.info.reason == "QUOTA_EXCEEDED"
    engine.release()
    assert len(list(first)) == 12
    assert len(read(limited, asked())[0]) == 10


def sample(key: int) -> FinishedSample:
    return FinishedSample(key, (1,), (), "stop", "")


def test_a_run_stops_once_many_samples_wait_and_none_is_taken() -> None:
    now, told = 0.0, []
    buffer = SampleBuffer(lambda: told.append(now), lambda: now)
    now = 1000.0  # nothing was there to be taken
    buffer.put([sample(key) for key in range(generation.MOST_WAITING + 3)])
    buffer.check()
    now += generation.PATIENCE_S + 1
    found = buffer.take()
    assert found is not None
    assert found.key == 0
    buffer.check()
    now += generation.PATIENCE_S + 1
    with pytest.raises(ResourceExhaustedError, match="read none for 31 s"):
        buffer.check()
    assert buffer.take() is not None
    assert buffer.take() is not None
    now += generation.PATIENCE_S + 1
    buffer.check()  # few are left
    assert len(told) == 1
    assert SampleBuffer(lambda: None).take() is None


def test_a_client_that_does_not_read_is_told_so(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "MOST_WAITING", 10)
    monkeypatch.setattr(generation, "PATIENCE_S", -1.0)
    monkeypatch.setattr(SampleBuffer, "take", lambda self: None)  # as where no message is read
    with refused() as refusal:
        read(server, asked(n=40, slots=16, max_tokens=1))
    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "run a job, which keeps its samples" in refusal.message
