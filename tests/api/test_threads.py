"""Work in threads: not for calls that are over, and undone where it was under way."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from helpers.api_server import RunningServer, spec
from helpers.fake_engine import PATIENCE_S, FakeEngine
from helpers.waiting import wait_until
from pahq.v1 import discovery_pb2 as pb

from pahq_server.api.calls import Call, ExpiredError, current_call, set_call
from pahq_server.api.threads import Threads
from pahq_server.core.caller import Caller
from pahq_server.core.context import about, current
from pahq_server.core.engine import Measurement, Prepared
from pahq_server.core.observer import Observer
from pahq_server.jobs.job import JobState


@pytest.fixture
def threads() -> Threads:
    return Threads(workers=1)


def test_threads_know_whose_call_they_work_on(threads: Threads) -> None:
    async def ask() -> tuple[Caller, str]:
        set_call(Call(Caller("ada")))
        with about(request_id="7"):
            return await threads.run(lambda: (current_call().caller, current().request_id))

    assert asyncio.run(ask()) == (Caller("ada"), "7")
    threads.close()


def test_nothing_is_done_for_a_call_whose_time_is_up(threads: Threads) -> None:
    async def ask() -> None:
        set_call(Call(deadline=time.monotonic()))
        await threads.run(lambda: pytest.fail("was done"))

    with pytest.raises(ExpiredError):
        asyncio.run(ask())
    threads.close()


def test_users_take_turns_however_much_one_of_them_has_waiting(threads: Threads) -> None:
    began, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def work(name: str) -> None:
        began.set()
        assert go_on.wait(PATIENCE_S)
        done.append(name)

    async def ask(user: str, number: int) -> None:
        set_call(Call(Caller(user)))
        await threads.run(lambda: work(f"{user} {number}"))

    async def crowd() -> None:
        calls = [asyncio.create_task(ask("ada", number)) for number in range(6)]
        await asyncio.to_thread(began.wait, PATIENCE_S)
        calls += [asyncio.create_task(ask("bob", number)) for number in range(2)]
        await asyncio.sleep(0)
        calls[2].cancel()
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(crowd())
    # The first was under way before bob came.
    assert done == ["ada 0", "ada 1", "bob 0", "bob 1", "ada 3", "ada 4", "ada 5"]
    threads.close()


def test_what_waits_is_dropped_and_what_runs_is_undone(threads: Threads) -> None:
    began, go_on, undone = threading.Event(), threading.Event(), threading.Event()
    done: list[str] = []

    def first() -> str:
        began.set()
        assert go_on.wait(PATIENCE_S)
        done.append("first")
        return "result"

    async def ask() -> None:
        running = asyncio.create_task(threads.run(first, lambda result: (done.append(result), undone.set())))
        waiting = asyncio.create_task(
            threads.run(lambda: done.append("second"), lambda _: done.append("never"))
        )
        await asyncio.to_thread(began.wait, PATIENCE_S)
        running.cancel()
        waiting.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        go_on.set()

    asyncio.run(ask())
    assert undone.wait(PATIENCE_S)
    threads.close()
    assert done == ["first", "result"]


def test_failures_are_not_undone(threads: Threads) -> None:
    began, go_on = threading.Event(), threading.Event()
    undone: list[object] = []

    def fail() -> None:
        began.set()
        assert go_on.wait(PATIENCE_S)
        raise ValueError

    async def ask() -> None:
        running = asyncio.create_task(threads.run(fail, undone.append))
        await asyncio.to_thread(began.wait, PATIENCE_S)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        go_on.set()
        await threads.run(lambda: None)  # after it

    asyncio.run(ask())
    threads.close()
    assert undone == []


class SlowToPrepare(FakeEngine):
    """Prepares when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.preparing, self.go_on = threading.Event(), threading.Event()

    def prepare(self, measurement: Measurement) -> Prepared:
        self.preparing.set()
        assert self.go_on.wait(PATIENCE_S)
        return super().prepare(measurement)


class Over(Observer):
    """Tells when a call is over."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        self.event.set()


@pytest.mark.parametrize("request_id", ["", "mine"])
def test_a_client_that_leaves_while_its_job_is_created(request_id: str) -> None:
    """With a request id it can ask again, and finds it; without one, nobody would ever."""
    engine, over = SlowToPrepare(), Over()
    with RunningServer(engine, api={"observer": over}) as server:
        engine.hold()
        request = pb.CreateDiscoveryRequest(spec=spec(), request_id=request_id)
        call = server.discovery.CreateDiscovery.future(request)
        assert engine.preparing.wait(PATIENCE_S)
        call.cancel()
        assert over.event.wait(PATIENCE_S)
        engine.go_on.set()
        while not (jobs := server.jobs.page(None, 10)[0]):
            time.sleep(0.001)
        (job,) = jobs
        if request_id:
            again = server.discovery.CreateDiscovery(request).discovery
            assert (again.name, job.snapshot.state.final) == (job.name, False)
        else:
            wait_until(job, lambda now: now.state in (JobState.CANCELLING, JobState.CANCELLED))
        engine.release()
