"""A server that samples text by vLLM: a process is killed, or the server, or nobody reads."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from e2e.process import ServerProcess
from helpers import vllm_models
from helpers.api_server import RunningServer
from helpers.processes import in_group, started_by
from pahq.v1 import generation_pb2, methods_pb2, task_pb2

from pahq_client import Client, JobHandle, Samples
from pahq_server.core.engine import Objective
from pahq_server.core.task import PromptTask
from pahq_server.demo import model_path
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.generation.vllm_backend import VllmBackend, VllmGenerator
from pahq_server.jobs.job import JobState
from pahq_server.jobs.spec import JobSpec
from pahq_server.methods.generate.parameters import GenerateParameters
from pahq_server.models.loading import LoadedModel, load

pytestmark = vllm_models.needs_vllm

PATIENCE_S = 300.0
PROMPTS = ["The dog was", "When Mary and John went to the store, John gave a drink to"]
ASKED: dict[str, Any] = {"n": 40, "max_tokens": 40, "seed": 4, "logprobs": True, "temperature": 1.2}


def _wait(condition: Callable[[], bool], what: str) -> float:
    """Returns how long it took, in seconds."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() < begun + PATIENCE_S, f"waited in vain for {what}"
        time.sleep(0.002)
    return time.monotonic() - begun


def _done(job: JobHandle) -> int:
    return job.info.progress.done


def _samples(job: JobHandle) -> Samples:
    found = job.result()
    assert isinstance(found, Samples)
    return found


def _vllm_processes(server: ServerProcess) -> list[int]:
    return started_by(server.process.pid, "vllm_process")


def test_samples_outlive_vllm_and_the_server(tmp_path: Path) -> None:
    options = ("--generation", "vllm", "--data-dir", str(tmp_path / "data"), "--no-result-cache")
    with ServerProcess({}, *options) as server, Client(server.address) as client:
        job = client.submit_generate("demo", PROMPTS, slots=2, policy="fifo", **ASKED)
        _wait(lambda: _done(job) >= 5, "samples")
        (process,) = _vllm_processes(server)
        os.kill(process, signal.SIGKILL)
        kept = _done(job)
        _wait(lambda: _done(job) >= kept + 5, "samples of another process")
        assert "the generator has failed, and is made again" in server.log()
        seen = _done(job)
        assert seen < 80, "the job is too short for this test"
        (other,) = _vllm_processes(server)
        assert other != process
        server.process.kill()
        server.process.wait()
        _wait(lambda: not in_group(other), "the end of vLLM's process")
    with ServerProcess({}, *options) as server, Client(server.address) as client:
        job = client.job(job.name)
        assert _done(job) >= seen
        disturbed = _samples(job)
        assert len(disturbed) == 80
        assert disturbed.figures["replayed"] >= seen
        undisturbed = client.generate("demo", PROMPTS, slots=16, policy="longest_first", **ASKED)
        assert disturbed.items == undisturbed.items
        (process,) = _vllm_processes(server)
        assert server.stop() == 0
        assert not in_group(process)


class _Recording(VllmBackend):
    """Keeps the generators that it makes."""

    def __init__(self) -> None:
        super().__init__(64 << 20)
        self.made: list[VllmGenerator] = []

    def generator(self, loaded: LoadedModel) -> VllmGenerator:
        self.made.append(super().generator(loaded))
        return self.made[-1]


class _Engine(ModelEngine):
    def release(self) -> None:
        """A `RunningServer` calls it at its end."""


@pytest.fixture(scope="module")
def backend() -> _Recording:
    return _Recording()


@pytest.fixture(scope="module")
def server(backend: _Recording) -> Iterator[RunningServer]:
    engine = _Engine({"demo": load(str(model_path()))}, generation=backend)
    with RunningServer(engine) as running:  # type: ignore[arg-type]
        yield running
    engine.stop()


def _holds_nothing(generator: VllmGenerator) -> bool:
    with suppress(RuntimeError):  # the worker adds samples meanwhile
        return not generator.usage().tokens
    return False


def _assert_free(generator: VllmGenerator, record: Callable[[str, object], None]) -> None:
    """Waits until no sample holds keys and values, and asks vLLM's process itself."""
    record("seconds until nothing is held", _wait(lambda: _holds_nothing(generator), "memory"))
    assert generator.run([], 1) == 0
    assert generator.usage().tokens == {}


def test_a_cancelled_job_frees_its_slots(
    server: RunningServer, backend: _Recording, record_property: Callable[[str, object], None]
) -> None:
    objective = Objective(
        "demo", PromptTask(clean=(PROMPTS[0],)), "kl_divergence", "resample", "group", "fp32"
    )
    job = server.jobs.create(
        JobSpec(objective, "generate", GenerateParameters(n=4000, max_tokens=40, slots=4)), ""
    )
    _wait(lambda: job.snapshot.progress.done >= 4, "samples")
    assert len(backend.made) == 1
    server.jobs.cancel(job.name)
    _wait(lambda: job.snapshot.state.final, "the end of the job")
    _assert_free(backend.made[0], record_property)
    assert job.snapshot.state is JobState.CANCELLED
    found = server.jobs.artifact(job.name)
    assert found is not None
    assert found.partial


def test_a_client_that_goes_frees_its_slots(
    server: RunningServer, backend: _Recording, record_property: Callable[[str, object], None]
) -> None:
    request = generation_pb2.GenerateSamplesRequest(
        model="demo",
        prompts=[task_pb2.Prompt(text=PROMPTS[0])],
        parameters=methods_pb2.GenerateParameters(n=4096, max_tokens=40, slots=4),
    )
    stream = server.generation.GenerateSamples(request)
    next(stream)
    assert next(stream).HasField("sample")
    stream.cancel()
    _assert_free(backend.made[0], record_property)
