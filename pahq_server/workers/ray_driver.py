"""Ray's driver, in a process of its own: the only module that imports Ray.

Ray ends a driver's process when the head of its cluster is lost, which the server must survive. `ray_cluster`
starts this process, and starts it again. It starts a cluster on this machine or joins one, keeps an actor per
worker, and passes calls and answers on, whose bytes it does not look into.

Each time that an actor's process is given up, or has ended, the worker's incarnation is counted up. Answers
of earlier incarnations are dropped here.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any

import psutil
import ray
from ray.exceptions import ActorDiedError

from pahq_server.side_process import end_session
from pahq_server.workers.ray_actor import RayActor
from pahq_server.workers.ray_link import ALIVE_S, FAILED, LOADED, REFUSED, WATCH_S, Link

# Seconds between two tries to load a worker's models, which double with each.
FIRST_WAIT_S, MOST_WAIT_S = 0.1, 10.0
# How often an idle worker is asked for a sign of life. A busy one is not asked again before it has answered.
PING_S = 1.0
# After so long without a loaded worker the operator is told what may be missing.
PATIENCE_S = 60.0
# Memory for messages under way, in /dev/shm; what does not fit goes to the disk. Ray's own default is 30 % of
# the machine's memory.
STORE_BYTES = 256 << 20
# Processes of a cluster on this machine without which nothing works.
NEEDED = ("gcs_server", "raylet")
# How often files are removed that Ray's threads may make anew.
TRIES = 100

_ENDING = threading.Lock()


def main() -> None:
    """Serves until there are no more calls.

    Arguments: a socket's number, the id of the parent process, and a directory for Ray's files, which goes
    when this process ends; empty to join a cluster.
    """
    number, parent, directory = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    os.set_inheritable(number, False)
    # Ctrl-C goes to all processes of a terminal, and it is the parent that ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent, directory), daemon=True).start()
    link = Link(Connection(number))
    code = 0
    try:
        header, options = link.receive()
        _Relay(link, _Workers(**header), options, directory).run()
        ray.shutdown()
    except Exception as error:  # noqa: BLE001 - whatever it is, it ends this process, and the server is told
        traceback.print_exc()
        with suppress(OSError):  # the parent may be what has ended
            link.send({"is": "ending", "reason": _one_line(error)})
        code = 1
    sys.stderr.flush()
    _end(directory, code)


def _end_with(parent: int, directory: str) -> None:
    """Ends this process, and those that it has started, soon after the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(WATCH_S)
    _end(directory, 1)


def _end(directory: str, code: int) -> None:
    """Ends this process at once, whatever its threads do, and all that it has started, with their files."""
    with _ENDING:  # for good: only one thread gets past this
        end_session(os.getsid(0))
        for _ in range(TRIES):
            if directory:
                shutil.rmtree(directory, ignore_errors=True)
            if not os.path.exists(directory):
                break
            time.sleep(0.01)  # Ray's threads still write their log
        os._exit(code)


@dataclass(frozen=True)
class _Workers:
    """What the server says when it starts this process.

    Args:
        size: how many workers there are to be.
        address: of the cluster to join, as `ray.init` takes it; None to start one on this machine.
        cpus, gpus: what Ray sets aside for each worker.
        factory: see `RayActor`.
    """

    size: int
    address: str | None
    cpus: float
    gpus: float
    factory: str


@dataclass
class _Slot:
    """A worker, whatever process it has at the moment.

    Args:
        number: from 0.
        actor: Ray's handle; None before there is one, and after Ray has given it up.
        incarnation: counts the processes that it has had.
        loaded: whether it takes calls.
        load_at, ping_at: when models are to be loaded, and when it is to be pinged; None for not at all.
        wait: seconds until the next try after one that fails.
        patient_until: when the operator is told that it takes long; None once that is done.
    """

    number: int
    actor: Any = None
    incarnation: int = 0
    loaded: bool = False
    load_at: float | None = 0.0
    ping_at: float | None = None
    wait: float = FIRST_WAIT_S
    patient_until: float | None = None


@dataclass(frozen=True)
class _Done:
    """A call of Ray's that has ended: ``load``, ``run`` or ``ping`` of an incarnation of a worker."""

    method: str
    worker: int
    incarnation: int
    number: int
    result: Future[Any]


class _Relay:
    """Keeps the actors, and passes calls to them and answers back."""

    def __init__(self, link: Link, workers: _Workers, options: bytes, directory: str) -> None:
        self._link, self._workers, self._options = link, workers, options
        self._directory = directory
        self._slots = [_Slot(number) for number in range(workers.size)]
        # Messages of the server, ends of calls, and None at the end.
        self._events: SimpleQueue[tuple[dict[str, Any], bytes] | _Done | None] = SimpleQueue()
        self._remote: Any = None
        self._needed: list[psutil.Process] = []

    def run(self) -> None:
        """Works until the server says stop or is gone. Raises RuntimeError if the cluster is lost."""
        threading.Thread(target=self._read, daemon=True).start()
        self._connect()
        now = time.monotonic()
        for slot in self._slots:
            if slot.load_at is not None:
                slot.patient_until = now + PATIENCE_S
        alive_at = now
        while True:
            try:
                event = self._events.get(timeout=WATCH_S)
                if event is None:
                    return
                if isinstance(event, _Done):
                    self._ended(event)
                else:
                    self._told(*event)
            except Empty:
                pass
            now = time.monotonic()
            if now >= alive_at:
                alive_at = now + ALIVE_S
                self._link.send({"is": "alive"})
                self._look()
            for slot in self._slots:
                self._go_on(slot, now)

    def _read(self) -> None:
        try:
            while True:
                header, content = self._link.receive()
                if header["do"] == "stop":
                    break
                self._events.put((header, content))
        except (EOFError, OSError):
            pass
        self._events.put(None)

    def _connect(self) -> None:
        workers = self._workers
        if workers.address is None:
            ray.init(
                address="local",
                num_cpus=math.ceil(workers.size * workers.cpus),
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                # Ray opens this directory to all. The one above it is this user's.
                _temp_dir=os.path.join(self._directory, "ray"),
            )
            self._needed = [each for each in psutil.Process().children() if each.name() in NEEDED]
        else:
            ray.init(address=workers.address)
        self._link.send({"is": "started"})
        self._remote = ray.remote(RayActor).options(
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=1,
            scheduling_strategy="SPREAD",
        )
        if workers.address is None and workers.gpus:
            there = int(ray.cluster_resources().get("GPU", 0))
            fit = there * int(1 / workers.gpus) if workers.gpus <= 1 else there // int(workers.gpus)
            for slot in self._slots[fit:]:
                slot.load_at, slot.patient_until = None, None
                reason = (
                    f"this machine has {there} GPUs, enough for {fit} workers with {workers.gpus:g} each: "
                    "start the server with fewer --workers or --gpus-per-worker"
                )
                self._tell("refused", slot, reason=reason)

    def _look(self) -> None:
        """Raises RuntimeError if a process has ended that the cluster needs.

        Ray itself would try for a minute to reach it, then end this process.
        """
        for process in self._needed:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                raise RuntimeError(f"Ray's process {process.pid} on this machine has ended, which it needs")

    def _tell(self, what: str, slot: _Slot, content: bytes = b"", **more: Any) -> None:
        header = {"is": what, "worker": slot.number, "incarnation": slot.incarnation, **more}
        self._link.send(header, content)

    # What the server wants

    def _told(self, header: dict[str, Any], content: bytes) -> None:
        slot = self._slots[header["worker"]]
        if header["do"] == "replace":
            self._lost(slot, header["reason"], kill=True)
        elif slot.loaded and header["incarnation"] == slot.incarnation:
            self._call(slot, "run", content, number=header["number"])

    def _call(self, slot: _Slot, method: str, *arguments: Any, number: int = 0) -> None:
        """Has Ray call a method of an actor. `_Done` follows."""
        incarnation = slot.incarnation
        reference = getattr(slot.actor, method).remote(incarnation, *arguments)
        reference.future().add_done_callback(
            lambda result: self._events.put(_Done(method, slot.number, incarnation, number, result))
        )

    # What the workers do

    def _ended(self, done: _Done) -> None:
        slot = self._slots[done.worker]
        if done.incarnation != slot.incarnation:
            return
        error = done.result.exception()
        if error is not None:
            if isinstance(error, ActorDiedError):
                slot.actor = None  # Ray does not start it again
            self._lost(slot, f"its process has ended or cannot be reached: {_one_line(error)}")
        elif done.method == "load":
            self._load_ended(slot, done.result.result())
        elif done.method == "run":
            self._tell("answer", slot, done.result.result(), number=done.number)
        else:
            slot.ping_at = time.monotonic() + PING_S

    def _load_ended(self, slot: _Slot, answer: bytes) -> None:
        how, content = answer[:1], answer[1:]
        if how == LOADED:
            slot.loaded, slot.wait, slot.ping_at = True, FIRST_WAIT_S, 0.0
            self._tell("loaded", slot, content)
        elif how == REFUSED:
            slot.patient_until = None
            self._tell("refused", slot, content)
            self._kill(slot, no_restart=True)
        else:
            assert how == FAILED
            self._tell("failed", slot, content)
            self._again(slot)
            self._kill(slot)  # with what it has loaded

    def _lost(self, slot: _Slot, reason: str, kill: bool = False) -> None:
        """Gives up a worker's process; another one is on its way, or will be."""
        # Tries to reach a process that is not there yet are no news.
        if slot.loaded or kill:
            self._tell("lost", slot, reason=reason)
        self._again(slot)
        if kill:
            self._kill(slot)

    def _again(self, slot: _Slot) -> None:
        now = time.monotonic()
        if slot.loaded:
            slot.patient_until = now + PATIENCE_S
        slot.incarnation += 1
        slot.loaded, slot.ping_at = False, None
        slot.load_at, slot.wait = now + slot.wait, min(2 * slot.wait, MOST_WAIT_S)

    def _kill(self, slot: _Slot, no_restart: bool = False) -> None:
        if slot.actor is not None:
            ray.kill(slot.actor, no_restart=no_restart)

    def _go_on(self, slot: _Slot, now: float) -> None:
        """Does what is due for a worker."""
        if slot.load_at is not None and now >= slot.load_at:
            slot.load_at = None
            if slot.actor is None:
                slot.actor = self._remote.remote(self._workers.factory, self._options)
            slot.incarnation += 1
            self._call(slot, "load")
        elif slot.ping_at is not None and now >= slot.ping_at:
            slot.ping_at = None
            self._call(slot, "ping")
        if not slot.loaded and slot.patient_until is not None and now >= slot.patient_until:
            slot.patient_until = None
            needs = f"{self._workers.cpus:g} processors and {self._workers.gpus:g} GPUs"
            self._tell("waiting", slot, reason=f"not loaded after {PATIENCE_S:g} s: are {needs} free for it?")


def _one_line(error: BaseException) -> str:
    """Returns what an error says, without Ray's pages of advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}" if lines else type(error).__name__
