"""Work in threads: not for calls that are over, and undone where it was under way."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import grpc
import pytest
from helpers.api_server import RunningServer, refused, spec
from helpers.fake_engine import PATIENCE_S, FakeEngine
from helpers.waiting import wait_until
from pahq.v1 import jobs_pb2 as pb
from pahq.v1 import model_pb2

from pahq_server.access.access import Access
from pahq_server.access.identity import Credentials
from pahq_server.access.limits import CallLimits
from pahq_server.api.calls import Call, ExpiredError, FairThreadPool, current_call, set_call
from pahq_server.core.context import Caller, current, log_context
from pahq_server.core.engine import Objective, ResolvedObjective
from pahq_server.core.observer import Observer
from pahq_server.core.task import TokenizedText
from pahq_server.jobs.job import JobState


@pytest.fixture
def threads() -> FairThreadPool:
    return FairThreadPool(workers=1)


def test_threads_know_whose_call_they_work_on(threads: FairThreadPool) -> None:
    async def ask() -> tuple[Caller, str]:
        set_call(Call(Caller("ada")))
        with log_context(request_id="7"):
            return await threads.run(lambda: (current_call().caller, current().request_id))

    assert asyncio.run(ask()) == (Caller("ada"), "7")
    threads.close()


def test_nothing_is_done_for_a_call_whose_time_is_up(threads: FairThreadPool) -> None:
    async def ask() -> None:
        set_call(Call(deadline=time.monotonic()))
        await threads.run(lambda: pytest.fail("was done"))

    with pytest.raises(ExpiredError):
        asyncio.run(ask())
    threads.close()


def test_users_take_turns_however_much_one_of_them_has_waiting(threads: FairThreadPool) -> None:
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


def test_what_waits_is_dropped_and_what_runs_is_undone(threads: FairThreadPool) -> None:
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


def test_failures_are_not_undone(threads: FairThreadPool) -> None:
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


class Crowd:
    """Calls of users whose work waits for the test.

    Args:
        workers: threads that there are.
    """

    def __init__(self, workers: int) -> None:
        self.threads = FairThreadPool(workers)
        self.go_on = threading.Event()
        self.begun: list[str] = []
        self._calls: list[asyncio.Task[None]] = []

    def ask(self, user: str, slow: bool = False, held: bool = True) -> asyncio.Task[None]:
        """A call; ``held`` until the test says so."""

        def work() -> None:
            self.begun.append(user)
            assert not held or self.go_on.wait(PATIENCE_S)

        async def call() -> None:
            set_call(Call(Caller(user)))
            await self.threads.run(work, slow=slow)

        self._calls.append(asyncio.create_task(call()))
        return self._calls[-1]

    async def end(self) -> None:
        self.go_on.set()
        await asyncio.gather(*self._calls)
        self.threads.close()

    async def wait_for(self, count: int) -> None:
        while len(self.begun) < count:
            await asyncio.sleep(0.001)

    async def settle(self) -> None:
        """Waits until whatever may begin has begun."""
        for _ in range(5):
            await asyncio.sleep(0.01)


def test_slow_work_of_one_user_leaves_room_for_others_and_for_the_users_own_quick_calls() -> None:
    async def crowd() -> None:
        calls = Crowd(workers=4)
        for _ in range(20):
            calls.ask("ada", slow=True)
        await calls.wait_for(2)
        await calls.settle()
        assert calls.begun == ["ada"] * 2
        for user in ("ada", "bob"):
            await asyncio.wait_for(calls.ask(user, held=False), PATIENCE_S)
        calls.ask("bob", slow=True)
        await calls.wait_for(5)
        assert calls.begun[4:] == ["bob"]
        await calls.end()
        assert calls.begun.count("ada") == 21

    asyncio.run(crowd())


def test_slow_work_of_many_users_leaves_room_for_what_is_quick() -> None:
    async def crowd() -> None:
        calls = Crowd(workers=4)
        for user in "abcdef":
            calls.ask(user, slow=True)
        await calls.wait_for(3)
        await calls.settle()
        assert len(calls.begun) == 3
        await asyncio.wait_for(calls.ask("late", held=False), PATIENCE_S)
        await calls.end()
        assert sorted(calls.begun) == sorted([*"abcdef", "late"])

    asyncio.run(crowd())


def test_no_user_holds_all_threads_with_quick_calls() -> None:
    async def crowd() -> None:
        calls = Crowd(workers=4)
        for _ in range(20):
            calls.ask("ada")
        await calls.wait_for(3)
        await calls.settle()
        assert calls.begun == ["ada"] * 3
        await asyncio.wait_for(calls.ask("bob", held=False), PATIENCE_S)
        await calls.end()

    asyncio.run(crowd())


def test_a_single_thread_does_slow_work_too() -> None:
    async def crowd() -> None:
        calls = Crowd(workers=1)
        for user in ("ada", "ada", "ada", "bob"):
            calls.ask(user, slow=True)
        await calls.wait_for(1)
        await calls.settle()
        await calls.end()
        assert calls.begun == ["ada", "ada", "bob", "ada"]

    asyncio.run(crowd())


def test_calls_that_are_gone_while_they_wait_take_no_threads() -> None:
    async def crowd() -> None:
        calls = Crowd(workers=2)
        calls.ask("ada", slow=True)
        await calls.wait_for(1)
        gone = [asyncio.create_task(calls.threads.run(lambda: calls.begun.append("gone"), slow=True))]
        await asyncio.sleep(0)
        for call in gone:
            call.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        calls.ask("ada", slow=True)
        await calls.end()
        assert calls.begun == ["ada", "ada"]

    asyncio.run(crowd())


class SlowToPrepare(FakeEngine):
    """Prepares when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.preparing, self.go_on = threading.Event(), threading.Event()

    def resolve(self, objective: Objective, activations: bool = True) -> ResolvedObjective:
        self.preparing.set()
        assert self.go_on.wait(PATIENCE_S)
        return super().resolve(objective)


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
        request = pb.CreateJobRequest(spec=spec(), request_id=request_id)
        call = server.job_stub.CreateJob.future(request)
        assert engine.preparing.wait(PATIENCE_S)
        call.cancel()
        assert over.event.wait(PATIENCE_S)
        engine.go_on.set()
        while not (jobs := server.jobs.page(None, 10)[0]):
            time.sleep(0.001)
        (job,) = jobs
        if request_id:
            again = server.job_stub.CreateJob(request).job
            assert (again.name, job.snapshot.state.final) == (job.name, False)
        else:
            wait_until(job, lambda now: now.state in (JobState.CANCELLING, JobState.CANCELLED))
        engine.release()


class SlowToTokenize(FakeEngine):
    """Tokenizes when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizing, self.go_on = threading.Semaphore(0), threading.Event()

    def tokenize(self, model: str, texts: Sequence[str], special: bool, prompt: str) -> list[TokenizedText]:
        self.tokenizing.release()
        assert self.go_on.wait(PATIENCE_S)
        return super().tokenize(model, texts, special, prompt)

    def resolve(self, objective: Objective, activations: bool = True) -> ResolvedObjective:
        if objective.model == "toy" and objective.metric == "l2":
            self.tokenizing.release()
            assert self.go_on.wait(PATIENCE_S)
        return super().resolve(objective)


def _as_user(name: str) -> dict[str, object]:
    return {"metadata": [("authorization", f"Bearer {name}")], "timeout": PATIENCE_S}


class EverybodyByName:
    """Takes the token for the name of the user."""

    def identify(self, credentials: Credentials) -> Caller:
        (shown,) = credentials.authorization
        return Caller(shown.removeprefix("Bearer "))


def test_another_users_get_is_answered_while_slow_texts_are_tokenized() -> None:
    engine = SlowToTokenize()
    access = Access(EverybodyByName(), CallLimits(threads=4))
    with RunningServer(engine, api={"access": access}) as server:
        name = server.job_stub.CreateJob(pb.CreateJobRequest(spec=spec()), **_as_user("bob")).job.name
        tokenize = model_pb2.TokenizeTextsRequest(model="toy", texts=["a"])
        create = pb.CreateJobRequest(spec=spec(metric="l2"), validate_only=True)
        slow = [server.models.TokenizeTexts.future(tokenize, **_as_user("ada")) for _ in range(8)]
        slow += [server.job_stub.CreateJob.future(create, **_as_user("ada")) for _ in range(8)]
        for _ in range(2):
            assert engine.tokenizing.acquire(timeout=PATIENCE_S)
        for user in ("bob", "ada"):
            asked = name if user == "bob" else name.replace("bob", "ada")
            request = pb.GetJobRequest(name=asked)
            if user == "bob":
                found = server.job_stub.GetJob(request, **_as_user(user)).job
                assert found.name == name
            else:
                with refused() as refusal:
                    server.job_stub.GetJob(request, **_as_user(user))
                assert refusal.code is grpc.StatusCode.NOT_FOUND
        assert not any(call.done() for call in slow)
        engine.go_on.set()
        for call in slow:
            call.result(PATIENCE_S)
