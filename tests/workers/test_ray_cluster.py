"""Workers in real actors of Ray, and what becomes of them when processes are killed.

The processes of one cluster serve most of the tests, in the order of this file: it takes seconds to start.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

import numpy as np
import psutil
import pytest
from helpers.processes import in_session, wait_for
from helpers.random_passes import random_circuit
from helpers.small_worker import DIES, HANGS, NOT_FOUND, NOTHING, RAISES

from pahq_server.core.circuit import BaseCircuit, PatchedPass
from pahq_server.core.engine import EngineStateId, MemoryUsage
from pahq_server.core.errors import InvalidRequestError, NotFoundError
from pahq_server.core.graph import Graph
from pahq_server.workers.cluster import Answer, Lost, Ready
from pahq_server.workers.messages import Call, CloseState, Ran, RunOperations
from pahq_server.workers.passes import SentBases, SentPasses
from pahq_server.workers.ray_cluster import RayCluster, RayOptions

FACTORY = "helpers.small_worker:load"
TESTS = Path(__file__).parents[1]
SECONDS = 120

E = TypeVar("E", Ready, Lost, Answer)


class Running:
    """A cluster with what it has told."""

    def __init__(self, size: int, options: dict[str, str]) -> None:
        self.events: SimpleQueue[Ready | Lost | Answer] = SimpleQueue()
        self.cluster = RayCluster(size, RayOptions(), FACTORY, json.dumps(options).encode())
        self.numbers = 0

    def next(self, kind: type[E]) -> E:
        """Returns the next event, which must be of this kind."""
        event = self.events.get(timeout=SECONDS)
        assert isinstance(event, kind), event
        return event

    def call(self, worker: int, call: Call) -> int:
        self.numbers += 1
        self.cluster.call(worker, self.numbers, call)
        return self.numbers

    def ask(self, worker: int, call: Call) -> object:
        number = self.call(worker, call)
        answer = self.next(Answer)
        assert (answer.worker, answer.number) == (worker, number)
        return answer.content

    def processes(self) -> list[int]:
        assert self.cluster.driver_id is not None
        return in_session(self.cluster.driver_id)

    def named(self, text: str) -> list[int]:
        return [
            process for process in self.processes() if text in " ".join(psutil.Process(process).cmdline())
        ]


def close(state: int) -> CloseState:
    return CloseState(EngineStateId(state))


def process_of(ready: Ready) -> int:
    return int(ready.info.hardware["process"])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two workers, one of which does not load its models when it is first asked to."""
    marker = tmp_path_factory.mktemp("marker") / "failed"
    running = Running(2, {"fail_once": str(marker)})
    # Modules of the tests are imported by the workers, too.
    before = os.environ["PYTHONPATH"]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), before])
    try:
        running.cluster.start(running.events.put)
        told = [running.events.get(timeout=SECONDS) for _ in range(3)]
        (lost,) = (event for event in told if isinstance(event, Lost))
        assert (lost.reason, lost.refused) == ("RuntimeError: no luck on purpose", False)
        ready = [event for event in told if isinstance(event, Ready)]
        assert {event.worker for event in ready} == {0, 1}
        assert {process_of(event) for event in ready} == set(running.named("ray::RayActor"))
        yield running
    finally:
        running.cluster.stop()
        os.environ["PYTHONPATH"] = before


def test_calls_are_answered_in_their_order(running: Running) -> None:
    for state in range(1, 6):
        running.call(state % 2, close(RAISES + state))
        running.call(state % 2, NOTHING)
    answers = [running.next(Answer) for _ in range(10)]
    for worker in (0, 1):
        mine = [answer for answer in answers if answer.worker == worker]
        assert [answer.number for answer in mine] == sorted(answer.number for answer in mine)
        assert [type(answer.content) for answer in mine] == [ValueError, Ran] * (len(mine) // 2)


def test_what_a_worker_answers_is_what_it_was_given(running: Running) -> None:
    graph = Graph(12, 12, 12)
    base = BaseCircuit(random_circuit(graph, 0.5, 0))
    passes = SentBases().send([PatchedPass(base, (edge,)) for edge in range(100)])
    ran = running.ask(1, RunOperations(((EngineStateId(0), passes),)))
    assert isinstance(ran, Ran)
    (answer,) = ran.outcomes
    assert isinstance(answer, SentPasses)
    assert answer.passes == passes.passes
    (sent,) = answer.bases
    np.testing.assert_array_equal(sent.circuit.kept, base.circuit.kept)


def test_errors_keep_their_classes_and_attributes(running: Running) -> None:
    error = running.ask(0, close(NOT_FOUND))
    assert isinstance(error, NotFoundError)
    assert (error.name, str(error)) == ("state", "state not found; look elsewhere")


def test_all_ports_are_on_loopback(running: Running) -> None:
    """Whoever reached them and had the token could run code."""
    listening = [
        connection.laddr.ip
        for process in running.processes()
        for connection in psutil.Process(process).net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 5
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def test_only_this_user_reaches_the_files(running: Running) -> None:
    (directory,) = (
        Path(psutil.Process(process).cmdline()[-1]) for process in running.named("workers.ray_driver")
    )
    assert directory.stat().st_mode & 0o777 == 0o700


def test_a_worker_that_is_killed_is_lost_and_comes_back(running: Running) -> None:
    running.call(0, close(DIES))
    running.call(0, NOTHING)
    assert running.ask(1, NOTHING) == Ran([], MemoryUsage(1, 100, 0, 0, 0, 0, 0))
    lost = running.next(Lost)
    assert (lost.worker, lost.refused) == (0, False)
    assert "its process has ended" in lost.reason
    ready = running.next(Ready)
    assert ready.worker == 0
    # The calls to the lost process are not answered, by it or by another.
    assert isinstance(running.ask(0, NOTHING), Ran)


def test_an_idle_worker_that_is_killed_is_noticed(running: Running) -> None:
    process = running.named("ray::RayActor")[0]
    os.kill(process, signal.SIGKILL)
    lost = running.next(Lost)
    ready = running.next(Ready)
    assert ready.worker == lost.worker
    assert process_of(ready) != process


def test_workers_that_hang_are_replaced(running: Running) -> None:
    """One computes for ever; the other's process is stopped, so that it cannot even be told to end."""
    (stopped,) = (
        process for process in running.named("ray::RayActor") if process == running_process(running, 1)
    )
    running.call(0, close(HANGS + 1000))
    os.kill(stopped, signal.SIGSTOP)
    for worker in (0, 1):
        running.cluster.replace(worker, f"no answer of {worker}")
    told = [running.events.get(timeout=SECONDS) for _ in range(4)]
    lost = [event for event in told if isinstance(event, Lost)]
    assert {(event.worker, event.reason) for event in lost} == {(0, "no answer of 0"), (1, "no answer of 1")}
    assert {event.worker for event in told if isinstance(event, Ready)} == {0, 1}
    assert wait_for(lambda: stopped not in running.processes(), SECONDS)


def running_process(running: Running, worker: int) -> int:
    """Asks a worker for the id of its process."""
    found = running.ask(worker, close(NOT_FOUND - 1))
    assert isinstance(found, int)
    return found


@pytest.mark.parametrize("killed", ["workers.ray_driver", "gcs_server"])
def test_a_lost_driver_or_head_is_started_again(running: Running, killed: str) -> None:
    (process,) = running.named(killed)
    before = running.processes()
    running.call(0, close(HANGS + 1000))
    os.kill(process, signal.SIGKILL)
    lost = [running.next(Lost) for _ in range(2)]
    assert {event.worker for event in lost} == {0, 1}
    assert all("Ray's driver has ended" in event.reason for event in lost)
    ready = [running.next(Ready) for _ in range(2)]
    assert {event.worker for event in ready} == {0, 1}
    assert not set(before) & set(running.processes())
    assert isinstance(running.ask(0, NOTHING), Ran)


def test_nothing_is_left_after_the_end(running: Running) -> None:
    leader, processes = running.cluster.driver_id, running.processes()
    assert leader is not None
    assert len(processes) > 5
    directory = Path(psutil.Process(leader).cmdline()[-1])
    running.call(0, close(HANGS + 1000))
    running.cluster.stop()
    assert not in_session(leader)
    assert not directory.exists()
    running.cluster.call(0, 0, NOTHING)
    with pytest.raises(Empty):
        running.events.get_nowait()


# A server of its own, which is killed.
SERVER = f"""if True:
    import sys
    from pahq_server.workers.ray_cluster import RayCluster, RayOptions
    cluster = RayCluster(1, RayOptions(), {FACTORY!r}, b'{{"refuse": "there is no such model"}}')
    def tell(event):
        print(event, cluster.driver_id, "ray" in sys.modules, sep=chr(10), flush=True)
    cluster.start(tell)
    sys.stdin.read()
"""


def test_a_killed_server_leaves_nothing_and_a_refusal_is_told() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ["PYTHONPATH"]])}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        try:
            assert server.stdout is not None
            event, driver, imported = (server.stdout.readline().strip() for _ in range(3))
            assert event == "Lost(worker=0, reason='model: there is no such model', refused=True)"
            assert imported == "False"
            leader = int(driver)
            assert len(in_session(leader)) > 5
            directory = Path(psutil.Process(leader).cmdline()[-1])
        finally:
            server.kill()
    assert wait_for(lambda: not in_session(leader))
    assert wait_for(lambda: not directory.exists())


@pytest.mark.parametrize("gpus", [-1, 1.5, float("nan"), float("inf")])
def test_impossible_numbers_of_gpus_are_refused(gpus: float) -> None:
    with pytest.raises(InvalidRequestError, match="gpus_per_worker"):
        RayOptions(gpus_per_worker=gpus)


@pytest.mark.parametrize("cpus", [0, -1])
def test_impossible_numbers_of_processors_are_refused(cpus: int) -> None:
    with pytest.raises(InvalidRequestError, match="cpus_per_worker"):
        RayOptions(cpus_per_worker=cpus)


def test_no_workers_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="at least 1, got 0"):
        RayCluster(0, RayOptions(), FACTORY, b"{}")


def test_without_ray_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidRequestError, match=r"pip install 'pahq\[ray\]'"):
        RayOptions()
