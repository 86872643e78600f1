"""Runs of the scheduler for calls that wait for a result; nothing of them is stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future
from typing import Any, Generic, TypeVar, cast

from pahq_server.core.engine import Engine, ResolvedObjective
from pahq_server.core.operations import Operation
from pahq_server.jobs.quotas import Admission
from pahq_server.scheduler.run import QueuePosition
from pahq_server.scheduler.scheduler import Scheduler
from pahq_server.store.base import JobStore
from pahq_server.store.records import Usage

T = TypeVar("T")


class UnstoredRun(ABC, Generic[T]):
    """A `Run` whose result goes to the caller alone.

    ``future`` resolves to the result. Cancelling it stops the run.

    Args:
        resolved: the objective whose tensors its operations need.
        user: who asked for it.
    """

    name = ""

    def __init__(self, resolved: ResolvedObjective, user: str) -> None:
        self.resolved, self.user, self.tokens = resolved, user, resolved.task.num_tokens
        self.begun = False
        self.future: Future[T] = Future()

    def submit(self, scheduler: Scheduler, admission: Admission, usage: Usage) -> None:
        """Queues the run, which counts towards its user's quotas until it ends.

        Args:
            scheduler: runs it.
            admission: decides whether it is accepted.
            usage: what its user has in the store.

        Raises ResourceExhaustedError where it would be too much.
        """
        admission.admit(self, usage)
        self.future.add_done_callback(lambda future: admission.forget(self))
        scheduler.submit(self)

    @abstractmethod
    def next_operation(self) -> Operation | None:
        """Returns what is to be computed next; None at the end. Called once more after every result."""

    @abstractmethod
    def take(self, result: object) -> None:
        """Takes the result of the last operation, which the scheduler has checked."""

    @abstractmethod
    def result(self) -> T:
        """Returns the result of the run, after its last operation."""

    def begin(self) -> Operation | None:
        self.begun = True
        return self.next_operation()

    def deliver(self, result: object) -> Operation | None:
        self.take(result)
        return self.next_operation()

    def stopped(self) -> bool:
        return self.future.cancelled()

    def end(self, error: Exception | None) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        if error is not None:
            self.future.set_exception(error)
            return
        try:
            self.future.set_result(self.result())
        except Exception as broken:  # noqa: BLE001 - else the caller would wait for ever
            self.future.set_exception(broken)

    def done(self) -> float:
        return 0.0

    def charge(self, seconds: float) -> None:
        """Does nothing: the answer to the call does not say what it cost."""

    def queued_at(self, position: QueuePosition) -> None:
        """Does nothing: whoever waits for the call is not told its position in the queue."""


class OperationRun(UnstoredRun[T]):
    """Runs one operation; its result is that of the run.

    Args:
        resolved: the objective whose tensors the operation needs.
        operation: what is computed.
        user: who asked for it.
    """

    def __init__(self, resolved: ResolvedObjective, operation: Operation, user: str) -> None:
        super().__init__(resolved, user)
        self._left: Operation | None = operation
        self._result: T | None = None

    def next_operation(self) -> Operation | None:
        operation, self._left = self._left, None
        return operation

    def take(self, result: object) -> None:
        self._result = cast(T, result)

    def result(self) -> T:
        assert self._result is not None, "the scheduler has delivered a result before it ends a run in order"
        return self._result


class UnstoredService:
    """Runs what calls wait for, under the same quotas as jobs. May be used from any thread.

    Args:
        engine: checks what is asked for.
        scheduler: runs it.
        store: knows what users have.
        admission: decides what is accepted.
    """

    def __init__(self, engine: Engine, scheduler: Scheduler, store: JobStore, admission: Admission) -> None:
        self._engine, self._scheduler, self._store = engine, scheduler, store
        self._admission = admission

    def _submit(self, run: UnstoredRun[Any]) -> None:
        """Queues a run. Raises ResourceExhaustedError where it would be too much."""
        run.submit(self._scheduler, self._admission, self._store.usage(run.user))
