"""A run of the scheduler that needs one operation of the engine, and stores nothing."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Generic, TypeVar, cast

from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.operations import Operation
from pahq_server.jobs.quotas import Admission
from pahq_server.scheduler.run import QueuePosition
from pahq_server.scheduler.scheduler import Scheduler
from pahq_server.store.records import Usage

T = TypeVar("T")


class OperationRun(Generic[T]):
    """A `Run` of one operation, for a call that waits for its result.

    ``future`` resolves to the result. Cancelling it stops the run.

    Args:
        resolved: the objective whose tensors the operation needs.
        operation: what is computed. The scheduler checks its result.
        user: who asked for it.
    """

    name = ""

    def __init__(self, resolved: ResolvedObjective, operation: Operation, user: str) -> None:
        self.resolved, self.user, self._operation = resolved, user, operation
        self.tokens = resolved.task.num_tokens
        self.begun = False
        self.future: Future[T] = Future()
        self._result: T | None = None

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

    def begin(self) -> Operation | None:
        self.begun = True
        return self._operation

    def deliver(self, result: object) -> Operation | None:
        # Of the operation's type: the scheduler has checked it.
        self._result = cast(T, result)
        return None

    def stopped(self) -> bool:
        return self.future.cancelled()

    def end(self, error: Exception | None) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        if error is not None or self._result is None:
            self.future.set_exception(error or RuntimeError("the run ended without a result"))
        else:
            self.future.set_result(self._result)

    def done(self) -> float:
        return 0.0

    def charge(self, seconds: float) -> None:
        """Does nothing: the answer to the call does not say what it cost."""

    def queued_at(self, position: QueuePosition) -> None:
        """Does nothing: whoever waits for the call is not told its position in the queue."""
