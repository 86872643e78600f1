"""What only an asynchronous client can: many calls at a time, and tasks that are cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pahq.v1 import jobs_pb2 as pb

from pahq_client import AsyncClient, Event, InvalidRequest, JobCancelled, JobState, NotFound
from pahq_client.retries import Backoff

from .fake_server import Code, FakeServer, Fault


def run(server: FakeServer, body: Callable[[AsyncClient], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with AsyncClient(server.address, backoff=Backoff(attempts=3, first_s=0.01)) as client:
            return await asyncio.wait_for(body(client), 60)

    return asyncio.run(main())


def test_many_calls_at_a_time(server: FakeServer) -> None:
    """Each gets its own answer, whatever else is under way on the same connection."""

    async def one(client: AsyncClient, number: int) -> tuple[str, float, list[int]]:
        job = await client.submit("demo", "ioi", threshold=float(number))
        events = [event.sequence async for event in job.watch()]
        circuit = await job.result()
        assert len(circuit.edges) == 2
        return job.name, (await job.info).threshold or 0.0, events

    async def body(client: AsyncClient) -> list[tuple[str, float, list[int]]]:
        return await asyncio.gather(*(one(client, number) for number in range(60)))

    answers = run(server, body)
    assert len({name for name, _, _ in answers}) == 60
    assert [threshold for _, threshold, _ in answers] == [float(number) for number in range(60)]
    assert all(events == [1, 2, 3, 4] for _, _, events in answers)


def test_tasks_of_a_session_take_turns(server: FakeServer) -> None:
    async def body(client: AsyncClient) -> None:
        async with await client.session("demo", "ioi") as session:
            edges = session.edges
            scores, _, more = await asyncio.gather(
                session.score([edges] * 40), session.commit(edges=edges), session.score([edges[:3]] * 7)
            )
            assert (scores, more) == ([11.0] * 40, [3.0] * 7)

    run(server, body)
    names = [name for name, _, _ in server.calls if name in ("ScoreCircuits", "CommitCircuit")]
    assert names == ["ScoreCircuits"] * 8 + ["CommitCircuit"] + ["ScoreCircuits"] * 2


async def _reached(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 30)


def test_a_cancelled_task_ends_its_call(server: FakeServer) -> None:
    server.held = threading.Event()

    async def body(client: AsyncClient) -> None:
        task = asyncio.create_task(client.evaluate("demo", "ioi", []))
        await _reached(server.holding)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await _reached(server.abandoned)
        assert (await client.models())[0].name == "demo"  # the connection is none the worse

    try:
        run(server, body)
    finally:
        server.held.set()


def test_a_cancelled_discover_cancels_its_job(server: FakeServer) -> None:
    server.outcome = None

    async def body(client: AsyncClient) -> None:
        task = asyncio.create_task(client.discover("demo", "ioi"))
        await _reached(server.watching)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(server, body)
    assert [job.state for job in server.jobs.values()] == [pb.JOB_STATE_CANCELLED]


def test_a_discover_cancelled_before_its_name_is_known_cancels_its_job(server: FakeServer) -> None:
    server.outcome, server.held, server.hold = None, threading.Event(), "CreateJob"

    async def body(client: AsyncClient) -> None:
        task = asyncio.create_task(client.discover("demo", "ioi"))
        await _reached(server.holding)
        server.hold = ""
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    try:
        run(server, body)
    finally:
        server.held.set()
    assert [job.state for job in server.jobs.values()] == [pb.JOB_STATE_CANCELLED]


def test_a_cancelled_result_leaves_the_job_alone(server: FakeServer) -> None:
    server.outcome = None

    async def body(client: AsyncClient) -> None:
        job = await client.submit("demo", "ioi")
        task = asyncio.create_task(job.result())
        await _reached(server.watching)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await job.state == "RUNNING"
        assert await job.cancel() is JobState.CANCELLED
        with pytest.raises(JobCancelled):
            await job.result()

    run(server, body)


def test_a_timeout_around_discover_cancels_its_job(server: FakeServer) -> None:
    server.outcome = None

    async def body(client: AsyncClient) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.discover("demo", "ioi")

    run(server, body)
    assert [job.state for job in server.jobs.values()] == [pb.JOB_STATE_CANCELLED]


def test_one_of_many_that_fails_leaves_the_others_alone(server: FakeServer) -> None:
    server.faults["EvaluateCircuits"] = [Fault(Code.NOT_FOUND, "no model", "NOT_FOUND", {"name": "x"})]

    async def body(client: AsyncClient) -> list[Any]:
        calls = (client.evaluate("demo", "ioi", []) for _ in range(20))
        return await asyncio.gather(*calls, return_exceptions=True)

    answers = run(server, body)
    assert sum(isinstance(answer, NotFound) for answer in answers) == 1
    assert sum(getattr(answer, "value", None) == 1.0 for answer in answers) == 19


def test_a_watch_that_is_left_early(server: FakeServer) -> None:
    server.outcome = None

    async def body(client: AsyncClient) -> None:
        job = await client.submit("demo", "ioi")
        seen: list[Event] = []
        async for event in job.watch():
            seen.append(event)
            if len(seen) == 2:
                break
        assert [event.sequence for event in seen] == [1, 2]
        assert await job.state is JobState.RUNNING

    run(server, body)


def test_a_closed_client_says_so(server: FakeServer) -> None:
    server.outcome = None

    async def main() -> None:
        client = AsyncClient(server.address)
        job = await client.submit("demo", "ioi")
        waiting = asyncio.create_task(job.result())
        await _reached(server.watching)
        await client.close()
        with pytest.raises(RuntimeError, match="closed"):
            await waiting
        assert not waiting.cancelled()
        with pytest.raises(RuntimeError, match="closed"):
            await client.models()
        await client.close()

    asyncio.run(main())


def test_a_client_belongs_to_one_loop(server: FakeServer) -> None:
    client = AsyncClient(server.address)  # made outside of any
    with asyncio.Runner() as runner:
        assert runner.run(client.models())[0].name == "demo"
        with asyncio.Runner() as other, pytest.raises(RuntimeError, match="event loop"):
            other.run(client.models())
        runner.run(client.close())


def test_arguments_are_checked_at_once() -> None:
    with pytest.raises(InvalidRequest, match="in the clear"):
        AsyncClient("gpu-box:7300", token="t")
