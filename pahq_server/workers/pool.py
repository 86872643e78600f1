"""The pool: runs operations on workers that may die, hang or come back at any time.

What an operation gives does not depend on where it runs, so that parts of it can run anywhere, and again
elsewhere if a worker is lost. The calls of a worker that was lost are repeated; they are never answered as
well, so that nothing counts twice.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from pahq_server.core.engine import (
    EngineStateId,
    HeadStoreUsage,
    MemoryUsage,
    Outcome,
    ResolvedObjective,
    Work,
    WorkerStatus,
)
from pahq_server.core.errors import NoWorkerError
from pahq_server.core.observer import Observer
from pahq_server.workers.cluster import Cluster
from pahq_server.workers.dispatch import Dispatch, exception, ignore, make_room, short_of_memory
from pahq_server.workers.messages import Call, CheckWorker, CloseState, Opened, OpenState, WorkerInfo
from pahq_server.workers.passes import SentBases
from pahq_server.workers.roster import Roster
from pahq_server.workers.states import State, States


class RemotePool:
    """Runs operations on the workers of a cluster. Implements `engine.WorkerPool`.

    All workers compute the same bits: one that differs from the first in processor, version of torch, threads
    or kind of device is not used. `open`, `run`, `close` and `check` are called from one thread.

    Args:
        cluster: starts the workers' processes.
        deadline_s: a worker that takes longer for a call is replaced.
        clock: seconds.
        observer: is told of workers and their work.
    """

    def __init__(
        self,
        cluster: Cluster,
        deadline_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
        observer: Observer | None = None,
    ) -> None:
        self._states = States()
        self.roster = Roster(cluster, deadline_s, clock, observer or Observer(), self._leave)
        self._dispatch = Dispatch(self.roster, self._states, clock)
        self._ids = itertools.count()

    def start(self) -> WorkerInfo:
        """Starts the workers; returns what the first one that is ready says of itself.

        Raises InvalidRequestError if no worker can load what it is to serve.
        """
        return self.roster.start()

    def stop(self) -> None:
        self.roster.stop()

    # What the pool is

    concurrent = True

    def unavailable(self) -> str:
        with self.roster.lock:
            if self.roster.failure:
                return self.roster.failure
            return "" if self.roster.usable() else self.roster.why_none()

    def workers(self) -> list[WorkerStatus]:
        with self.roster.lock:
            return self.roster.statuses()

    def hardware(self) -> dict[str, str]:
        return self._first.hardware

    @property
    def title(self) -> str:
        return self._first.device

    @property
    def generation(self) -> str:
        offers = [model.generation for model in self._first.models]
        return next((offer.backend for offer in offers if offer is not None), "")

    def memory_usage(self) -> MemoryUsage:
        with self.roster.lock:
            used = [member.memory for member in self.roster.members if member.info and member.memory]
        return added(used) if used else replace(self._first.memory, pages=0, used=0, shared=0, peak_used=0)

    @property
    def _first(self) -> WorkerInfo:
        assert self.roster.first is not None, "the pool was started"
        return self.roster.first

    # What `Engine` asks for

    def open(self, resolved: ResolvedObjective) -> EngineStateId:
        name, roster = EngineStateId(next(self._ids)), self.roster
        with roster.lock:
            self._dispatch.go_on()
            while True:
                home = self._states.emptiest(roster.usable())
                if home is None:
                    raise NoWorkerError(roster.why_none())
                roster.members[home].open[name] = SentBases()
                answer, seconds = roster.ask(home, OpenState(name, resolved))
                if isinstance(answer, Opened):
                    if resolved.clean_run.margins is None:
                        resolved.clean_run.margins = answer.margins
                    # The worker may have been lost since it answered, and be another one now.
                    still = home if name in roster.members[home].open else None
                    self._states.add(name, State(resolved, still, seconds))
                    return name
                roster.members[home].open.pop(name, None)
                if isinstance(answer, NoWorkerError):
                    self._raise_if_too_many(resolved, answer)
                elif not (short_of_memory(answer) and make_room(roster, self._states, home)):
                    raise exception(answer)

    def _raise_if_too_many(self, resolved: ResolvedObjective, lost: NoWorkerError) -> None:
        losses = self._states.losses
        if losses.too_many(resolved):
            error = losses.error(resolved, lost)
            losses.forget(resolved)
            raise error

    def close(self, state: EngineStateId) -> None:
        with self.roster.lock:
            self._dispatch.drop(state)
            self._states.remove(state)
            for number, member in enumerate(self.roster.members):
                member.refused.discard(state)
                member.failed.pop(state, None)
                if state in member.open:
                    del member.open[state]
                    self.roster.call(number, CloseState(state), ignore)

    def check(self) -> None:
        """Checks all workers; replaces those that compute wrongly.

        Raises RuntimeError if one did: what failed may go well elsewhere; NoWorkerError if there is none.
        """
        answers: dict[int, object] = {}
        with self.roster.lock:
            usable = self.roster.usable()
            if not usable:
                raise NoWorkerError(self.roster.why_none())
            for number in usable:
                self.roster.call(number, CheckWorker(), partial(_note, answers, number))
            self._dispatch.go_on()
            self.roster.wait(lambda: len(answers) == len(usable))
            failed = {number: answer for number, answer in answers.items() if answer is not None}
            for number, answer in failed.items():
                if not isinstance(answer, NoWorkerError):
                    self.roster.replace(number, f"it does not compute what it should: {answer}")
        if failed:
            raise RuntimeError(f"workers failed a check: {failed}")

    def run(self, work: Sequence[Work]) -> list[Outcome]:
        with self.roster.lock:
            return self._dispatch.run(work)

    def _leave(self, number: int, call: Call | None) -> None:
        """Takes from a lost worker what it had, under the lock."""
        self._states.leave(number, call)
        self._dispatch.lost(number)


def _note(answers: dict[int, object], number: int, answer: object, seconds: float) -> None:
    answers[number] = answer


def added(used: Sequence[MemoryUsage]) -> MemoryUsage:
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
