"""A server that generates text by vLLM: jobs whose processes are killed, and samples like transformers'."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from e2e.process import ServerProcess
from helpers import vllm_models
from helpers.processes import started_by, wait_for

from pahq_client import Client, JobCancelled, Samples

pytestmark = vllm_models.needs_vllm

PROMPTS = [
    "The cat saw the dog and the man gave the",
    " Lily and Tom went to the park. Lily gave the ball to",
]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(None, "--generation", "vllm", "--generation-memory", "16MB") as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


def _vllm(server: ServerProcess) -> list[int]:
    return started_by(server.process.pid, "vllm_process")


def _sample(client: Client, n: int) -> Samples:
    return client.generate("demo", PROMPTS, n=n, max_tokens=30, seed=3, slots=8, logprobs=True)


def test_samples_are_those_of_transformers(client: Client) -> None:
    found = _sample(client, 50)
    with ServerProcess() as other, Client(other.address) as theirs:
        expected = _sample(theirs, 50)
    alike = sum(a.ids == b.ids and a.text == b.text for a, b in zip(found, expected, strict=True))
    # The libraries round differently, which may move a token across the edge of a draw, very rarely.
    assert alike >= 99
    for one, other_one in zip(found, expected, strict=True):
        if one.ids == other_one.ids:
            assert one.finish_reason == other_one.finish_reason
            assert one.logprobs == pytest.approx(other_one.logprobs, abs=1e-4)


def test_a_job_goes_on_when_vllm_is_killed(server: ServerProcess, client: Client) -> None:
    expected = _sample(client, 400)
    (before,) = _vllm(server)
    job = client.submit_generate("demo", PROMPTS, n=400, max_tokens=30, seed=3, slots=8, logprobs=True)
    assert wait_for(lambda: job.info.progress.done > 20)
    os.kill(before, signal.SIGKILL)
    assert job.result().items == expected.items
    (after,) = _vllm(server)
    assert after != before


def test_a_cancelled_job_leaves_its_slots(server: ServerProcess, client: Client) -> None:
    before = _vllm(server)
    job = client.submit_generate("demo", PROMPTS, n=4000, max_tokens=40, seed=5, slots=64)
    assert wait_for(lambda: job.info.progress.done > 20)
    job.cancel()
    with pytest.raises(JobCancelled):
        job.result()
    assert len(_sample(client, 2)) == 4
    assert _vllm(server) == before


def test_nothing_is_left_of_a_server_that_stops_or_is_killed() -> None:
    for end in (signal.SIGTERM, signal.SIGKILL):
        with ServerProcess(None, "--generation", "vllm") as server:
            with Client(server.address) as client:
                assert len(_sample(client, 2)) == 4
            (process,) = _vllm(server)
            server.process.send_signal(end)
            server.process.wait(60)
            assert wait_for(lambda process=process: not os.path.exists(f"/proc/{process}"), 20)
