"""A server is killed and started again while two clients wait for a discovery: it is a pause to them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pahq_client import AsyncClient, Client, Event, EventKind, JobState
from pahq_client.retries import Backoff

from .process import ServerProcess

# A server needs seconds to start.
PATIENCE = Backoff(attempts=400, first_s=0.05, most_s=0.25)
THRESHOLD = 0.05


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


async def _watch(address: str, name: str, seen: list[Event]) -> None:
    async with AsyncClient(address, backoff=PATIENCE) as client:
        async for event in client.job(name).watch():
            seen.append(event)


def test_both_kinds_of_clients_outlive_a_killed_server(tmp_path: Path, servers: ExitStack) -> None:
    options = ("--data-dir", str(tmp_path), "--no-result-cache")
    first = servers.enter_context(ServerProcess(None, *options))
    restarted: list[ServerProcess] = []

    def restart(event: Event) -> None:
        if event.kind is EventKind.PROGRESS and not restarted:
            first.process.kill()
            first.process.wait()
            again = ServerProcess(None, *options, "--listen", first.address)
            restarted.append(servers.enter_context(again))

    with Client(first.address, backoff=PATIENCE) as client:
        job = client.submit("demo", "ioi", THRESHOLD, grouping="none")
        seen: list[Event] = []
        watcher = threading.Thread(target=lambda: asyncio.run(_watch(first.address, job.name, seen)))
        watcher.start()
        circuit = job.result(progress=restart)
        watcher.join()
        assert restarted, "the discovery was over before the server could be killed"
        assert seen[-1].state is JobState.SUCCEEDED
        numbers = [event.sequence for event in seen]
        assert numbers == sorted(numbers)
        undisturbed = client.discover("demo", "ioi", THRESHOLD, grouping="none")
        assert circuit.canonical_bytes() == undisturbed.canonical_bytes()
        assert job.name in [each.name for each in client.jobs()]
    with Client(restarted[0].address) as other:
        assert other.job(job.name).result(timeout=0).edges == circuit.edges
