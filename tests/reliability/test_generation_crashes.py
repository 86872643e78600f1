"""``kill -9`` of a server that samples text: what has ended is kept, and all is the same as undisturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
from pahq.v1 import generation_pb2, methods_pb2, task_pb2

from pahq_client import Client, JobHandle, Samples

from .conftest import Figures
from .crashing import CrashingServer, wait_for
from .secured import SecuredServer

PROMPTS = ["The dog was", "When Mary and John went to the store, John gave a drink to"]
ASKED: dict[str, Any] = {"n": 60, "max_tokens": 40, "seed": 4, "logprobs": True, "temperature": 1.2}


def done(job: JobHandle) -> int:
    return job.info.progress.done


def result(job: JobHandle) -> Samples:
    found = job.result()
    assert isinstance(found, Samples)
    return found


def test_samples_that_have_ended_outlive_the_server(tmp_path: Path, figures: Figures) -> None:
    seen = 0
    name = ""
    for _ in range(3):
        with CrashingServer(tmp_path / "data") as server, Client(server.address) as client:
            if not name:
                name = client.submit_generate("demo", PROMPTS, slots=2, policy="fifo", **ASKED).name
            job, before = client.job(name), seen
            wait_for(lambda: done(job) >= before + 4 or job.state.is_final, "samples")  # noqa: B023
            seen = done(job)
            assert seen < 120, "the job is too short for this test"
            server.kill()
    with CrashingServer(tmp_path / "data") as server, Client(server.address) as client:
        job = client.job(name)
        assert done(job) >= seen
        disturbed = result(job)
        undisturbed = client.generate("demo", PROMPTS, slots=16, policy="longest_first", **ASKED)
        assert disturbed.items == undisturbed.items
        assert len(disturbed) == 120
        assert disturbed.figures["replayed"] >= seen
        assert disturbed.figures["steps"] >= undisturbed.figures["steps"]
    figures(kills=3, replayed=int(disturbed.figures["replayed"]), samples=len(disturbed))


def test_steered_samples_that_have_ended_outlive_the_server(tmp_path: Path) -> None:
    options: dict[str, Any] = {**ASKED, "max_tokens": 30}
    with CrashingServer(tmp_path / "data") as server, Client(server.address) as client:
        neurons = client.locate_neurons("demo", PROMPTS[:1], PROMPTS[1:], top_k=30)
        steer = (neurons, 3.0)
        job = client.submit_generate("demo", PROMPTS, slots=2, policy="fifo", steer=steer, **options)
        wait_for(lambda: done(job) >= 6 or job.state.is_final, "samples")
        seen, name = done(job), job.name
        assert seen < 120, "the job is too short for this test"
        server.kill()
    with CrashingServer(tmp_path / "data") as server, Client(server.address) as client:
        disturbed = result(client.job(name))
        assert disturbed.figures["replayed"] >= seen
        # An equal job would only be given the same artifact.
        both = [client.stream_samples("demo", PROMPTS, steer=each, **options) for each in (steer, None)]
        steered, plain = (sorted(each, key=lambda s: (s.prompt_number, s.index)) for each in both)
        assert list(disturbed) == steered
        assert all(one.logprobs != other.logprobs for one, other in zip(steered, plain, strict=True))


def test_a_cancelled_job_keeps_what_it_had_and_frees_its_slots(tmp_path: Path) -> None:
    with CrashingServer(tmp_path / "data") as server, Client(server.address) as client:
        job = client.submit_generate("demo", PROMPTS, slots=2, **{**ASKED, "n": 2000})
        wait_for(lambda: done(job) >= 4, "samples")
        job.cancel()
        wait_for(lambda: job.state.is_final, "the end of the job")
        found = job.artifact()
        assert isinstance(found, Samples)
        assert found.partial
        assert 4 <= len(found) < 4000
        assert "did not come to its end" in found.warnings[0]
        whole = client.generate("demo", PROMPTS, slots=16, **ASKED)
        places = {(each.prompt_number, each.index): each for each in whole}
        kept = [each for each in found if (each.prompt_number, each.index) in places]
        assert kept == [places[each.prompt_number, each.index] for each in kept]


def test_a_client_that_goes_ends_its_stream(secured: SecuredServer) -> None:
    request = generation_pb2.GenerateSamplesRequest(
        model="demo",
        prompts=[task_pb2.Prompt(text="The dog was")],
        parameters=methods_pb2.GenerateParameters(n=4096, max_tokens=60, slots=2),
    )
    with secured.as_user("ada") as ada:
        stream = ada.ask(ada.generation.GenerateSamples, request)
        next(stream)
        assert next(stream).HasField("sample")
        stream.cancel()
        assert stream.code() is grpc.StatusCode.CANCELLED
    secured.assert_alive()
