"""The pool: shares operations among workers that may die, hang or come back at any time.

What an operation gives does not depend on where it runs, so that parts of it can run anywhere, and again
elsewhere if a worker is lost. A call that was lost is repeated; one whose worker has been replaced is never
answered, so nothing is counted twice.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from pahq_server.core.engine import (
    EngineStateId,
    HeadStoreUsage,
    MemoryUsage,
    Outcome,
    ResolvedObjective,
    Work,
)
from pahq_server.core.errors import InvalidRequestError, NoWorkerError, ResourceExhaustedError, ServerError
from pahq_server.core.operations import Operation, ScorePasses
from pahq_server.workers.cluster import Answer, Cluster, ClusterEvent, Lost, Ready
from pahq_server.workers.messages import (
    Call,
    CheckWorker,
    CloseState,
    Opened,
    OpenState,
    Ran,
    RunOperations,
    WorkerInfo,
)
from pahq_server.workers.placement import Load, Share, homes, joints_of, part_of, place

logger = logging.getLogger(__name__)

# A part of a batch goes to another worker only if it takes at least so long: sending it, and computing its
# base circuits there once more, take some milliseconds.
LEAST_S = 0.02
# A job is opened on a further worker when it has taken this many times what opening it takes, so that small
# jobs stay on one.
OPENINGS = 2.0
# Weight of the latest measurement in a mean.
NEWS = 0.3
# An operation that was running at more losses than this fails, since it may be what ends the workers.
MOST_LOSSES = 5


@dataclass
class _Worker:
    """A worker as the pool knows it.

    Args:
        info: None unless it takes calls.
        reason: why it takes none.
        calls: those that are not answered yet, in the order in which they are worked on.
        since: when it began the first of these.
        open: the states that are open on it, or will be when its calls are done.
        refused: states for which it has no memory.
    """

    info: WorkerInfo | None = None
    reason: str = "it is starting"
    unfit: bool = False
    restarts: int = 0
    calls: deque[_Pending] = field(default_factory=deque)
    since: float = 0.0
    open: set[EngineStateId] = field(default_factory=set)
    refused: set[EngineStateId] = field(default_factory=set)
    memory: MemoryUsage | None = None


@dataclass(eq=False)
class _Pending:
    """A call that is not answered yet.

    Args:
        answered: takes the answer or the error, and the seconds that it took; called under the lock.
    """

    number: int
    call: Call
    answered: Callable[[object, float], None]


@dataclass(eq=False)
class _State:
    """A job or session.

    Args:
        home: the worker that keeps its state; None if that was lost.
        opening_s: what opening it took.
        spent_s: what its operations have taken.
        unit_s: what an operation takes per weight and token, by class; means.
    """

    resolved: ResolvedObjective
    home: int | None
    opening_s: float
    spent_s: float = 0.0
    unit_s: dict[type[Operation], float] = field(default_factory=dict)

    def size(self, operation: Operation) -> float:
        """What the seconds of operations of one class are divided by: weight times tokens."""
        return operation.weight * sum(map(len, self.resolved.task.clean))

    def spent(self, operation: Operation, seconds: float) -> None:
        """Notes what an operation took."""
        self.spent_s += seconds
        news, kind = seconds / self.size(operation), type(operation)
        mean = self.unit_s.get(kind, news)
        self.unit_s[kind] = mean + NEWS * (news - mean)


@dataclass(eq=False)
class _Fragment:
    """A part of a batch's operation that one worker runs."""

    share: Share
    operation: Operation
    losses: int = 0


class RemotePool:
    """Runs operations on the workers of a cluster. Implements `engine.WorkerPool`.

    All workers compute the same bits: one that differs from the first in processor, version of torch, threads
    or kind of device is not used. `open`, `run`, `close` and `check` are called from one thread.

    Args:
        cluster: starts the workers' processes.
        deadline_s: a worker that takes longer for a call is replaced.
        clock: seconds.
    """

    def __init__(
        self, cluster: Cluster, deadline_s: float = 600.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster, self._deadline_s, self._clock = cluster, deadline_s, clock
        self._changed = threading.Condition()
        self._workers = [_Worker() for _ in range(cluster.size)]
        self._states: dict[EngineStateId, _State] = {}
        self._ids, self._numbers = itertools.count(), itertools.count()
        self._first: WorkerInfo | None = None

    def start(self) -> WorkerInfo:
        """Starts the workers; returns what the first one that is ready says of itself.

        Raises InvalidRequestError if no worker can load what it is to serve.
        """
        self._cluster.start(self._tell)
        with self._changed:
            self._changed.wait_for(
                lambda: self._first is not None or all(worker.unfit for worker in self._workers)
            )
            if self._first is None:
                raise InvalidRequestError("workers", self._workers[0].reason)
            return self._first

    # Events of the cluster

    def _tell(self, event: ClusterEvent) -> None:
        with self._changed:
            if isinstance(event, Ready):
                self._ready(event.worker, event.info)
            elif isinstance(event, Lost):
                self._lost(event.worker, event.reason, event.refused)
            else:
                self._answered(event)
            self._changed.notify_all()

    def _ready(self, number: int, info: WorkerInfo) -> None:
        worker = self._workers[number]
        if self._first is None:
            self._first = info
        why = _difference(info, self._first)
        if why:
            worker.reason, worker.unfit = why, True
            logger.error("worker %d is not used: %s", number, why)
            return
        worker.info, worker.reason, worker.unfit, worker.memory = info, "", False, info.memory
        logger.info("worker %d on %s is ready: %s", number, info.host, info.device)

    def _lost(self, number: int, reason: str, unfit: bool) -> None:
        worker = self._workers[number]
        if worker.info is not None:
            worker.restarts += 1
        logger.log(logging.ERROR if unfit else logging.WARNING, "worker %d was lost: %s", number, reason)
        calls = list(worker.calls)
        worker.info, worker.reason, worker.unfit = None, reason, unfit
        worker.calls.clear()
        worker.open.clear()
        worker.refused.clear()
        for state in self._states.values():
            if state.home == number:
                state.home = None
        lost = NoWorkerError(f"worker {number} was lost: {reason}")
        for pending in calls:
            pending.answered(lost, 0.0)

    def _answered(self, answer: Answer) -> None:
        worker = self._workers[answer.worker]
        if not worker.calls or worker.calls[0].number != answer.number:
            return  # of a process that was replaced meanwhile
        pending, now = worker.calls.popleft(), self._clock()
        seconds, worker.since = now - worker.since, now
        if isinstance(answer.content, (Ran, Opened)):
            worker.memory = answer.content.memory
        pending.answered(answer.content, seconds)

    # Calls. All of these hold the lock.

    def _usable(self) -> list[int]:
        return [number for number, worker in enumerate(self._workers) if worker.info is not None]

    def _call(self, number: int, call: Call, answered: Callable[[object, float], None]) -> None:
        worker = self._workers[number]
        pending = _Pending(next(self._numbers), call, answered)
        if not worker.calls:
            worker.since = self._clock()
        worker.calls.append(pending)
        self._cluster.call(number, pending.number, call)

    def _wait(self, done: Callable[[], bool]) -> None:
        """Waits until something is done, and replaces workers that take too long meanwhile."""
        while not done():
            busy = [worker.since for worker in self._workers if worker.calls]
            left = min(busy, default=self._clock()) + self._deadline_s - self._clock()
            self._changed.wait(max(0.0, left))
            for number, worker in enumerate(self._workers):
                if worker.calls and self._clock() - worker.since >= self._deadline_s:
                    worker.since = self._clock()
                    self._cluster.replace(number, f"it did not answer for {self._deadline_s:g} s")

    def _ask(self, number: int, call: Call) -> object:
        """Calls a worker and waits for the answer; returns it, or the exception that the call failed with."""
        found: list[object] = []
        self._call(number, call, lambda answer, _: found.append(answer))
        self._wait(lambda: bool(found))
        return found[0]

    # WorkerPool

    def open(self, resolved: ResolvedObjective) -> EngineStateId:
        name = EngineStateId(next(self._ids))
        with self._changed:
            for _ in range(1 + MOST_LOSSES):
                home = self._home()
                if home is None:
                    raise NoWorkerError(self._why_none())
                begun = self._clock()
                self._workers[home].open.add(name)
                answer = self._ask(home, OpenState(name, resolved))
                if isinstance(answer, Opened):
                    break
                self._workers[home].open.discard(name)
                if not isinstance(answer, NoWorkerError):
                    raise _exception(answer)
            else:
                raise ServerError(f"{1 + MOST_LOSSES} workers were lost while they opened this job: {answer}")
            if resolved.clean_run.margins is None:
                resolved.clean_run.margins = answer.margins
            self._states[name] = _State(resolved, home, self._clock() - begun)
        return name

    def close(self, state: EngineStateId) -> None:
        with self._changed:
            del self._states[state]
            for number, worker in enumerate(self._workers):
                worker.refused.discard(state)
                if state in worker.open:
                    worker.open.discard(state)
                    self._call(number, CloseState(state), _ignore)

    def check(self) -> None:
        """Checks all workers; replaces those that compute wrongly.

        Raises RuntimeError if one did: what failed may go well elsewhere; NoWorkerError if there is none.
        """
        answers: dict[int, object] = {}
        with self._changed:
            usable = self._usable()
            for number in usable:
                self._call(number, CheckWorker(), partial(_note, answers, number))
            self._wait(lambda: len(answers) == len(usable))
            failed = {number: answer for number, answer in answers.items() if answer is not None}
            for number, answer in failed.items():
                if not isinstance(answer, NoWorkerError):
                    self._cluster.replace(number, f"it does not compute what it should: {answer}")
            if not usable:
                raise NoWorkerError(self._why_none())
        if failed:
            raise RuntimeError(f"workers failed a check: {failed}")

    def run(self, work: Sequence[Work]) -> list[Outcome]:
        with self._changed:
            return _Batch(self, work).run()

    def unavailable(self) -> str:
        with self._changed:
            return "" if self._usable() else self._why_none()

    def hardware(self) -> dict[str, str]:
        assert self._first is not None, "the pool was started"
        return self._first.hardware

    @property
    def title(self) -> str:
        assert self._first is not None, "the pool was started"
        return self._first.device

    @property
    def generation(self) -> str:
        assert self._first is not None, "the pool was started"
        offers = [model.generation for model in self._first.models]
        return next((offer.backend for offer in offers if offer is not None), "")

    def memory_usage(self) -> MemoryUsage:
        with self._changed:
            assert self._first is not None, "the pool was started"
            used = [worker.memory for worker in self._workers if worker.info is not None and worker.memory]
        return _sum(used) if used else replace(self._first.memory, used=0, shared=0, pages=0)

    def stop(self) -> None:
        self._cluster.stop()

    # Where states are

    def _home(self) -> int | None:
        """Returns the worker for a new state; None if there is no worker."""
        usable = self._usable()
        if not usable:
            return None
        at = Counter(state.home for state in self._states.values())
        return homes({number: at[number] for number in usable})

    def _why_none(self) -> str:
        reasons = Counter(worker.reason for worker in self._workers)
        said = "; ".join(f"{count} x {reason}" if count > 1 else reason for reason, count in reasons.items())
        return f"no worker is ready: {said}"


class _Batch:
    """One call of `RemotePool.run`. Holds the pool's lock.

    Args:
        pool: whose workers run it.
        work: operations of one class.
    """

    def __init__(self, pool: RemotePool, work: Sequence[Work]) -> None:
        self._pool, self._work = pool, work
        self._parts: dict[int, list[tuple[Share, Outcome]]] = {number: [] for number in range(len(work))}
        self._open = 0  # fragments whose outcome is not known

    def run(self) -> list[Outcome]:
        pool = self._pool
        usable = pool._usable()
        if not usable:
            return [NoWorkerError(pool._why_none())] * len(self._work)
        loads = [self._load(item, usable) for item in self._work]
        for number, shares in place(loads, usable, LEAST_S).items():
            self._send(number, [self._fragment(share) for share in shares])
        pool._wait(lambda: not self._open)
        return [self._joined(number) for number in range(len(self._work))]

    def _load(self, item: Work, usable: Collection[int]) -> Load:
        state, operation = self._pool._states[item.state], item.operation
        if state.home is None:
            state.home = self._pool._home()
        assert state.home is not None, "there are workers"
        unit = state.unit_s.get(type(operation))
        seconds = None if unit is None else unit * state.size(operation)
        if not isinstance(operation, ScorePasses):
            return Load(state.home, seconds)
        return Load(
            state.home,
            seconds,
            len(operation.passes),
            joints_of(operation.passes),
            [number for number in usable if number != state.home and self._helps(number, item.state)],
        )

    def _helps(self, number: int, name: EngineStateId) -> bool:
        """Tells whether a worker may take part in a job that has its home elsewhere."""
        worker, state = self._pool._workers[number], self._pool._states[name]
        worth = name in worker.open or state.spent_s >= OPENINGS * state.opening_s
        return worth and name not in worker.refused

    def _fragment(self, share: Share) -> _Fragment:
        return _Fragment(share, part_of(self._work[share.load].operation, share))

    def _send(self, number: int, fragments: list[_Fragment]) -> None:
        """Has a worker run fragments, after it has opened what they need."""
        pool, worker = self._pool, self._pool._workers[number]
        self._open += len(fragments)
        for fragment in fragments:
            name = self._work[fragment.share.load].state
            if name not in worker.open:
                worker.open.add(name)
                pool._call(number, OpenState(name, pool._states[name].resolved), _ignore)
        operations = tuple(
            (self._work[fragment.share.load].state, fragment.operation) for fragment in fragments
        )
        pool._call(
            number,
            RunOperations(operations),
            lambda answer, seconds: self._ran(number, fragments, answer, seconds),
        )

    def _ran(self, number: int, fragments: list[_Fragment], answer: object, seconds: float) -> None:
        self._open -= len(fragments)
        if isinstance(answer, Ran) and len(answer.outcomes) == len(fragments):
            self._measure(fragments, seconds)
            for fragment, outcome in zip(fragments, answer.outcomes, strict=True):
                self._take(number, fragment, outcome)
        elif isinstance(answer, NoWorkerError):
            for fragment in fragments:
                self._repeat(fragment, answer)
        else:
            for fragment in fragments:
                self._end(fragment, _exception(answer))

    def _take(self, number: int, fragment: _Fragment, outcome: Outcome) -> None:
        """Takes an outcome; what had no memory on a helping worker goes home."""
        name = self._work[fragment.share.load].state
        state = self._pool._states[name]
        short = isinstance(outcome, (ResourceExhaustedError, MemoryError))
        if short and state.home is not None and state.home != number:
            worker = self._pool._workers[number]
            worker.refused.add(name)
            worker.open.discard(name)
            self._pool._call(number, CloseState(name), _ignore)
            self._send(state.home, [fragment])
        else:
            self._end(fragment, outcome)

    def _repeat(self, fragment: _Fragment, lost: NoWorkerError) -> None:
        """Runs a fragment again whose worker was lost: by itself, so that it is known what ends workers."""
        fragment.losses += 1
        usable = self._pool._usable()
        if fragment.losses > MOST_LOSSES:
            what = f"{fragment.losses} workers were lost while they worked on this job; the last one: {lost}"
            self._end(fragment, ServerError(what))
        elif not usable:
            self._end(fragment, NoWorkerError(self._pool._why_none()))
        else:
            name = self._work[fragment.share.load].state
            state = self._pool._states[name]
            if state.home is None:
                state.home = self._pool._home()
            fewest = min(usable, key=lambda number: (len(self._pool._workers[number].calls), number))
            self._send(fewest, [fragment])

    def _end(self, fragment: _Fragment, outcome: Outcome) -> None:
        self._parts[fragment.share.load].append((fragment.share, outcome))

    def _measure(self, fragments: list[_Fragment], seconds: float) -> None:
        """Divides the seconds that a worker took for some fragments among their jobs."""
        kind = type(self._work[0].operation)
        states = [self._pool._states[self._work[fragment.share.load].state] for fragment in fragments]
        known = [state.unit_s[kind] for state in states if kind in state.unit_s]
        usual = sum(known) / len(known) if known else 1.0
        expected = [
            state.unit_s.get(kind, usual) * state.size(fragment.operation)
            for state, fragment in zip(states, fragments, strict=True)
        ]
        for state, fragment, part in zip(states, fragments, expected, strict=True):
            state.spent(fragment.operation, seconds * part / sum(expected))

    def _joined(self, number: int) -> Outcome:
        """Puts the outcomes of an operation's parts together."""
        parts = sorted(self._parts[number], key=lambda part: part[0].first)
        failed = [outcome for _, outcome in parts if isinstance(outcome, Exception)]
        if failed:
            # What was lost can be tried again, what failed cannot.
            return min(failed, key=lambda error: isinstance(error, NoWorkerError))
        if not isinstance(self._work[number].operation, ScorePasses):
            return parts[0][1]
        scores: list[float] = []
        for _, outcome in parts:
            if not isinstance(outcome, list):
                return ServerError(f"a worker gave {type(outcome).__name__} in the place of scores")
            scores += outcome
        return scores


def _ignore(answer: object, seconds: float) -> None:
    """For calls whose answer nobody waits for: a state that cannot be opened is told by what needs it."""


def _note(answers: dict[int, object], number: int, answer: object, seconds: float) -> None:
    answers[number] = answer


def _exception(answer: object) -> Exception:
    if isinstance(answer, Exception):
        return answer
    return ServerError(f"a worker gave {type(answer).__name__} as an answer")


def _difference(info: WorkerInfo, first: WorkerInfo) -> str:
    """Says why a worker cannot give the same bits, or the same models, as the first one; empty if it can."""
    # The name and version of the system change no bits.
    names = {*info.hardware, *first.hardware} - {"platform"}
    for name in sorted(names):
        own, other = info.hardware.get(name, ""), first.hardware.get(name, "")
        if own != other:
            return (
                f"its {name} is {own!r}, the first worker's is {other!r}: scores would differ in their last "
                "bits. Use workers of one kind, and another server for others"
            )
    for model, expected in zip(info.models, first.models, strict=False):
        if (model.name, model.revision) != (expected.name, expected.revision):
            return (
                f"its model {model.name!r} has revision {model.revision[:12]}, the first worker's "
                f"{expected.name!r} has {expected.revision[:12]}"
            )
    if len(info.models) != len(first.models):
        return f"it serves {len(info.models)} models, the first worker {len(first.models)}"
    return ""


def _sum(used: Sequence[MemoryUsage]) -> MemoryUsage:
    """Adds up the memory of several workers, whose pages have one size."""
    stores = [each.head_store for each in used]
    return MemoryUsage(
        page_bytes=used[0].page_bytes,
        pages=sum(each.pages for each in used),
        used=sum(each.used for each in used),
        shared=sum(each.shared for each in used),
        peak_used=sum(each.peak_used for each in used),
        scratch_bytes=sum(each.scratch_bytes for each in used),
        preemptions=sum(each.preemptions for each in used),
        head_store=HeadStoreUsage(
            hits=sum(store.hits for store in stores),
            misses=sum(store.misses for store in stores),
            bytes_moved=sum(store.bytes_moved for store in stores),
        ),
    )
