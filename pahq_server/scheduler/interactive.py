"""Interactive sessions: they keep tensors between calls, and their operations join the batches of jobs."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection
from typing import Protocol

from pahq_server.core.engine import Engine, EngineStateId, Outcome, ResolvedObjective, Work
from pahq_server.core.errors import WorkerFailedError
from pahq_server.core.operations import Operation

logger = logging.getLogger(__name__)

# Takes a user and the seconds that were spent on it.
Spend = Callable[[str, float], None]


class InteractiveSession(Protocol):
    """Keeps tensors in the engine and needs an operation now and then.

    Its methods are called from the worker thread.

    Attributes:
        resolved: the objective whose tensors it keeps.
        user: who is charged.
    """

    resolved: ResolvedObjective
    user: str

    def waiting(self) -> bool:
        """Tells whether there is an operation to run, or the session is not needed any more."""
        ...

    def released(self) -> bool:
        """Tells whether the session is not needed any more. Never changes back."""
        ...

    def next_operation(self) -> Operation | None:
        """Returns the operation for this batch; None for none. An exception is given to `deliver`."""
        ...

    def deliver(self, outcome: Outcome) -> None:
        """Takes the outcome of the last operation. A failure does not end the session."""
        ...

    def end(self, error: Exception | None) -> None:
        """Called once, last: with the reason if its state could not be opened or the server stops."""
        ...


class InteractiveSessions:
    """All interactive sessions and their engine states. Used from the worker thread, except `add`.

    Args:
        engine: closes states.
        open_state: opens one. Raises WorkerFailedError where nothing can be opened any more.
        clock: seconds.
    """

    def __init__(
        self,
        engine: Engine,
        open_state: Callable[[ResolvedObjective], EngineStateId],
        clock: Callable[[], float],
    ) -> None:
        self._engine, self._open_state, self._clock = engine, open_state, clock
        self._new: deque[InteractiveSession] = deque()
        self._open: list[tuple[InteractiveSession, EngineStateId]] = []
        # All sessions that were added and have not ended; after a failure, only this is complete.
        self._all: dict[int, InteractiveSession] = {}

    def add(self, session: InteractiveSession) -> None:
        """Opens the state of a session before a batch soon. May be called from any thread."""
        self._all[id(session)] = session
        self._new.append(session)

    def __len__(self) -> int:
        return len(self._open)

    def waiting(self) -> bool:
        return bool(self._new) or any(session.waiting() for session, _ in self._open)

    def users(self) -> set[str]:
        """Returns whose sessions wait. First closes released ones, since others may need their memory."""
        self._open = [pair for pair in self._open if not self._closed_if_released(*pair)]
        waiting = {session.user for session, _ in self._open if session.waiting()}
        return waiting | {session.user for session in tuple(self._new)}

    def collect(self, turn: Collection[str], spend: Spend) -> list[tuple[InteractiveSession, Work]]:
        """Returns the operations of some users' sessions for this batch, after opening their new sessions.

        Args:
            turn: the users that take part in the batch.
            spend: is told how long opening states took.
        """
        for _ in range(len(self._new)):
            session = self._new.popleft()
            if session.user in turn:
                started = self._clock()
                self._admit(session)
                spend(session.user, self._clock() - started)
            else:
                self._new.append(session)
        found = []
        for session, state in self._open:
            operation = _next_operation(session) if session.user in turn else None
            if operation is not None:
                found.append((session, Work(state, operation)))
        return found

    def close(self, error: Exception) -> None:
        """Ends all sessions, also those that still wait for their state."""
        for session, state in self._open:
            self._close(session, state, error)
        self.abandon(error)

    def abandon(self, error: Exception) -> None:
        """Ends all sessions without calling the engine, which may not be able to answer."""
        for session in list(self._all.values()):
            self._end(session, error)

    def _admit(self, session: InteractiveSession) -> None:
        if session.released():
            self._end(session, None)
            return
        try:
            state = self._open_state(session.resolved)
        except WorkerFailedError:
            raise
        except Exception as error:  # noqa: BLE001 - the others go on
            self._end(session, error)
            return
        self._open.append((session, state))

    def _closed_if_released(self, session: InteractiveSession, state: EngineStateId) -> bool:
        released = session.released()
        if released:
            self._close(session, state, None)
        return released

    def _close(self, session: InteractiveSession, state: EngineStateId, error: Exception | None) -> None:
        try:
            self._engine.close(state)
        except Exception:
            logger.exception("the state of a session could not be closed")
        self._end(session, error)

    def _end(self, session: InteractiveSession, error: Exception | None) -> None:
        self._all.pop(id(session), None)
        try:
            session.end(error)
        except Exception:
            logger.exception("a session broke at its end")


def _next_operation(session: InteractiveSession) -> Operation | None:
    try:
        return session.next_operation()
    except Exception as error:  # noqa: BLE001 - it concerns this session alone
        session.deliver(error)
        return None
