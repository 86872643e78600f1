"""The roster: which workers there are, what each of them is asked, and what has become of them."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pahq_server.core.engine import EngineStateId, MemoryUsage, WorkerState, WorkerStatus
from pahq_server.core.errors import InvalidRequestError, NoWorkerError, WorkerFailedError
from pahq_server.core.observer import Observer
from pahq_server.engine.catalogue import ServedModel
from pahq_server.workers.cluster import Answer, Cluster, ClusterEvent, Delayed, Lost, Ready
from pahq_server.workers.messages import Call, Opened, Ran, WorkerInfo
from pahq_server.workers.passes import SentBases

logger = logging.getLogger(__name__)

# Takes the answer to a call, or the exception with which it failed, and the seconds that it took.
Answered = Callable[[object, float], None]


@dataclass(eq=False)
class Pending:
    """A call that is not answered yet; ``answered`` is called under the lock."""

    number: int
    call: Call
    answered: Answered


@dataclass(eq=False)
class Member:
    """A worker as the pool knows it.

    Args:
        info: what it says of itself; None unless it takes calls.
        told: what it last said of itself, whether it takes calls or not.
        reason: why it takes none; empty if it starts for the first time, or takes calls.
        unfit: whether starting it again is of no use.
        restarts: how often it was lost.
        batches: how often it has run operations.
        calls: those that are not answered yet, in the order in which they are worked on.
        since: when it began the first of these.
        open: the states that are open on it, or will be when its calls are done, with the base circuits that
            it knows of each.
        refused: states for which it had no memory.
        failed: why states could not be opened on it, when that was last tried.
        memory: how full its memory was when it last answered.
    """

    info: WorkerInfo | None = None
    told: WorkerInfo | None = None
    reason: str = ""
    unfit: bool = False
    restarts: int = 0
    batches: int = 0
    calls: deque[Pending] = field(default_factory=deque)
    since: float = 0.0
    open: dict[EngineStateId, SentBases] = field(default_factory=dict)
    refused: set[EngineStateId] = field(default_factory=set)
    failed: dict[EngineStateId, Exception] = field(default_factory=dict)
    memory: MemoryUsage | None = None


class Roster:
    """The workers of a cluster, by number.

    All methods but `start` and `stop` are to be called under the lock, which is released while they wait.

    Args:
        cluster: starts the workers' processes.
        deadline_s: a worker that takes longer for a call is replaced.
        clock: seconds.
        observer: is told of workers.
        lost: is told the number of a worker that was lost, and the call that it worked on (None for none),
            under the lock, before its calls fail.
    """

    def __init__(
        self,
        cluster: Cluster,
        deadline_s: float,
        clock: Callable[[], float],
        observer: Observer,
        lost: Callable[[int, Call | None], None],
    ) -> None:
        self._cluster, self._deadline_s, self._clock, self._tell_lost = cluster, deadline_s, clock, lost
        self.observer = observer
        self._hung: set[int] = set()
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._numbers = itertools.count()
        self.members = [Member() for _ in range(cluster.size)]
        self.first: WorkerInfo | None = None
        self.failure = ""  # why no event of the cluster can be relied on any more; empty if all can

    def start(self) -> WorkerInfo:
        """Starts the workers; returns what the first one that is ready says of itself.

        Raises InvalidRequestError if no worker can load what it is to serve.
        """
        self._cluster.start(self._tell)
        with self.lock:
            self._changed.wait_for(
                lambda: self.first or self.failure or all(member.unfit for member in self.members)
            )
            self._raise_failure()
            if self.first is None:
                raise InvalidRequestError("workers", self.members[0].reason)
            return self.first

    def stop(self) -> None:
        """Ends the workers' processes."""
        self._cluster.stop()

    def usable(self) -> list[int]:
        """Returns the workers that take calls. Raises WorkerFailedError if the pool cannot go on."""
        self._raise_failure()
        return [number for number, member in enumerate(self.members) if member.info is not None]

    def why_none(self) -> str:
        """Says why no worker takes calls."""
        reasons = Counter(member.reason or "it is starting" for member in self.members)
        said = (f"{count} x {reason}" if count > 1 else reason for reason, count in reasons.items())
        return f"no worker is ready: {'; '.join(said)}"

    def statuses(self) -> list[WorkerStatus]:
        """Describes the workers, in the order of their numbers."""
        return [self._status(number, member) for number, member in enumerate(self.members)]

    def _status(self, number: int, member: Member) -> WorkerStatus:
        if member.info is not None:
            state = WorkerState.READY
        elif member.unfit:
            state = WorkerState.REFUSED
        else:
            state = WorkerState.LOST if member.restarts else WorkerState.STARTING
        info = member.told
        return WorkerStatus(
            number,
            state,
            host="" if info is None else info.host,
            device="" if info is None else info.device,
            hardware={} if info is None else info.hardware,
            reason=member.reason,
            restarts=member.restarts,
            batches=member.batches,
        )

    def call(self, number: int, call: Call, answered: Answered) -> None:
        """Calls a worker that takes calls. If it is lost, ``answered`` gets a NoWorkerError."""
        member = self.members[number]
        pending = Pending(next(self._numbers), call, answered)
        if not member.calls:
            member.since = self._clock()
        member.calls.append(pending)
        try:
            self._cluster.call(number, pending.number, call)
        except Exception as error:  # noqa: BLE001 - it was not sent, and concerns whoever asks
            member.calls.remove(pending)
            answered(error, 0.0)

    def ask(self, number: int, call: Call) -> tuple[object, float]:
        """Calls a worker and waits.

        Returns the answer, or the exception that the call failed with, and the seconds that it took when its
        turn had come.
        """
        found: list[tuple[object, float]] = []
        self.call(number, call, lambda answer, seconds: found.append((answer, seconds)))
        self.wait(lambda: bool(found))
        return found[0]

    def replace(self, number: int, reason: str) -> None:
        """Ends a worker's process and starts it again. Its calls fail when it has ended."""
        self._cluster.replace(number, reason)

    def wait(self, done: Callable[[], bool]) -> None:
        """Waits until something is done, and replaces workers that take too long meanwhile.

        Raises WorkerFailedError if the pool cannot go on.
        """
        while not done():
            self._raise_failure()
            now = self._clock()
            busy = [member.since for member in self.members if member.calls]
            self._changed.wait(max(0.0, min(busy, default=now) + self._deadline_s - now))
            for number, member in enumerate(self.members):
                if member.calls and self._clock() - member.since >= self._deadline_s:
                    member.since = self._clock()
                    self._hung.add(number)
                    self.replace(number, f"it did not answer for {self._deadline_s:g} s")

    # Events of the cluster

    def _tell(self, event: ClusterEvent) -> None:
        with self.lock:
            try:
                self._take(event)
            except Exception as error:  # the cluster's thread must not end in silence
                logger.critical("the pool of workers cannot go on", exc_info=True)
                self.failure = f"the pool of workers broke: {error!r:.200}"
            self._changed.notify_all()

    def _take(self, event: ClusterEvent) -> None:
        if isinstance(event, Ready):
            if self.members[event.worker].info is not None:
                self._lost(event.worker, "it was started again", False)
            self._ready(event.worker, event.info)
        elif isinstance(event, Lost):
            self._lost(event.worker, event.reason, event.refused)
        elif isinstance(event, Delayed):
            self._delayed(event.worker, event.reason)
        else:
            self._answer(event)

    def _raise_failure(self) -> None:
        if self.failure:
            raise WorkerFailedError(self.failure)

    def _ready(self, number: int, info: WorkerInfo) -> None:
        member = self.members[number]
        if self.first is None:
            self.first = info
        member.told, why = info, difference(info, self.first)
        if why:
            member.reason, member.unfit = why, True
            self.observer.worker_lost(number, "refused")
            logger.error("worker %d is not used: %s", number, why)
            return
        member.info, member.reason, member.unfit, member.memory = info, "", False, info.memory
        self.observer.worker_ready(number)
        logger.info("worker %d on %s is ready: %s", number, info.host, info.device)

    def _delayed(self, number: int, reason: str) -> None:
        member = self.members[number]
        if member.info is None and not member.unfit:
            member.reason = reason
            logger.warning("worker %d takes long to start: %s", number, reason)

    def _lost(self, number: int, reason: str, unfit: bool) -> None:
        member = self.members[number]
        logger.log(logging.ERROR if unfit else logging.WARNING, "worker %d was lost: %s", number, reason)
        ended = "hung" if number in self._hung else "ended"
        self.observer.worker_lost(number, "refused" if unfit else ended)
        self._hung.discard(number)
        calls = list(member.calls)
        self.members[number] = Member(
            told=member.told,
            reason=reason,
            unfit=unfit,
            restarts=member.restarts + (not unfit),
            batches=member.batches,
        )
        self._tell_lost(number, calls[0].call if calls else None)
        for pending in calls:
            pending.answered(NoWorkerError(f"worker {number} was lost: {reason}"), 0.0)

    def _answer(self, answer: Answer) -> None:
        member = self.members[answer.worker]
        if not member.calls or member.calls[0].number != answer.number:
            return  # of a process that was replaced meanwhile
        pending, now = member.calls.popleft(), self._clock()
        seconds, member.since = now - member.since, now
        if isinstance(answer.content, (Ran, Opened)):
            member.memory = answer.content.memory
        member.batches += isinstance(answer.content, Ran)
        pending.answered(answer.content, seconds)


def difference(info: WorkerInfo, first: WorkerInfo) -> str:
    """Says why a worker cannot give the same bits, or the same models, as another; empty if it can."""
    # The name and version of the system change no bits.
    for name in sorted({*info.hardware, *first.hardware} - {"platform"}):
        own, other = info.hardware.get(name, ""), first.hardware.get(name, "")
        if own != other:
            return (
                f"its {name} is {own!r}, the first worker's is {other!r}: scores would differ in their last "
                "bits. Use workers of one kind, and another server for others. If all have changed, start "
                "this server again"
            )
    if len(info.models) != len(first.models):
        return f"it serves {len(info.models)} models, the first worker {len(first.models)}"
    for model, expected in zip(info.models, first.models, strict=True):
        if (model.name, model.revision) != (expected.name, expected.revision):
            return (
                f"its model {model.name!r} has revision {model.revision[:12]}, the first worker's "
                f"{expected.name!r} has {expected.revision[:12]}"
            )
        own_offer, offer = _offer(model), _offer(expected)
        if own_offer != offer:
            return f"its model {model.name!r} is served with {own_offer}, the first worker's with {offer}"
    return ""


def _offer(model: ServedModel) -> str:
    """Describes what can be asked of a model, and what the bits of its samples depend on."""
    text = model.generation
    generates = "no text" if text is None else f"text of {text.backend} {text.version}"
    return f"{', '.join(model.precisions)}{' (read from files)' if model.streams else ''} and {generates}"
