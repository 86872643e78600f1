"""Engine sessions that stay open while nobody needs a score: their rows join the steps of running jobs."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from pahq_server.core.circuit import PatchedPass
from pahq_server.core.engine import Engine, EngineStateId, Outcome, ResolvedObjective, Work
from pahq_server.core.errors import WorkerFailedError

logger = logging.getLogger(__name__)

# Takes a user and the seconds that were spent on it.
Spend = Callable[[str, float], None]


class Holder(Protocol):
    """Something that keeps an engine session and needs scores now and then.

    Its methods are called from the worker thread.
    """

    resolved: ResolvedObjective
    user: str

    def waiting(self) -> bool:
        """Whether there are rows to score, or the session is not needed any more."""
        ...

    def released(self) -> bool:
        """Whether the session is not needed any more. Never changes back."""
        ...

    def next_rows(self) -> Sequence[PatchedPass]:
        """Rows to score in this step; empty if there are none. What it raises comes back by `deliver`."""
        ...

    def deliver(self, outcome: Outcome) -> None:
        """Takes the outcome of the last rows. A failure does not end the session."""
        ...

    def end(self, error: Exception | None) -> None:
        """Called once, last: with the reason if the session could not be opened or the server stops."""
        ...


class HeldSessions:
    """The open sessions of all holders. Used from the worker thread, except `add`.

    Args:
        engine: closes sessions.
        open_session: opens one. Raises WorkerFailedError where nothing can be opened any more.
        clock: seconds.
    """

    def __init__(
        self,
        engine: Engine,
        open_session: Callable[[ResolvedObjective], EngineStateId],
        clock: Callable[[], float],
    ) -> None:
        self._engine, self._open_session, self._clock = engine, open_session, clock
        self._new: deque[Holder] = deque()
        self._open: list[tuple[Holder, EngineStateId]] = []
        # All that were added and not ended, whatever becomes of the two above.
        self._all: dict[int, Holder] = {}

    def add(self, holder: Holder) -> None:
        """Opens a session before a step soon. May be called from any thread."""
        self._all[id(holder)] = holder
        self._new.append(holder)

    def __len__(self) -> int:
        return len(self._open)

    def waiting(self) -> bool:
        return bool(self._new) or any(holder.waiting() for holder, _ in self._open)

    def users(self) -> set[str]:
        """Whose holders wait. Closes what was released first: a newcomer may need the memory."""
        self._open = [held for held in self._open if not self._closed_if_released(*held)]
        waiting = {holder.user for holder, _ in self._open if holder.waiting()}
        return waiting | {holder.user for holder in tuple(self._new)}

    def collect(self, turn: Collection[str], spend: Spend) -> list[tuple[Holder, Work]]:
        """What to score in this step for some users.

        Args:
            turn: the users.
            spend: to be told what opening sessions took.
        """
        for _ in range(len(self._new)):
            holder = self._new.popleft()
            if holder.user in turn:
                started = self._clock()
                self._admit(holder)
                spend(holder.user, self._clock() - started)
            else:
                self._new.append(holder)
        open_ = (held for held in self._open if held[0].user in turn)
        work = ((holder, Work(session, _rows(holder))) for holder, session in open_)
        return [(holder, item) for holder, item in work if item.rows]

    def close(self, error: Exception) -> None:
        """Ends all holders, also those that still wait for their session."""
        for holder, session in self._open:
            self._close(holder, session, error)
        self.abandon(error)

    def abandon(self, error: Exception) -> None:
        """Ends all holders without a word to the engine, which may not be able to hear it."""
        for holder in list(self._all.values()):
            self._end(holder, error)

    def _admit(self, holder: Holder) -> None:
        if holder.released():
            self._end(holder, None)
            return
        try:
            session = self._open_session(holder.resolved)
        except WorkerFailedError:
            raise
        except Exception as error:  # noqa: BLE001 - the others go on
            self._end(holder, error)
            return
        self._open.append((holder, session))

    def _closed_if_released(self, holder: Holder, session: EngineStateId) -> bool:
        released = holder.released()
        if released:
            self._close(holder, session, None)
        return released

    def _close(self, holder: Holder, session: EngineStateId, error: Exception | None) -> None:
        try:
            self._engine.close(session)
        except Exception:
            logger.exception("a session could not be closed")
        self._end(holder, error)

    def _end(self, holder: Holder, error: Exception | None) -> None:
        self._all.pop(id(holder), None)
        try:
            holder.end(error)
        except Exception:
            logger.exception("a holder broke at its end")


def _rows(holder: Holder) -> Sequence[PatchedPass]:
    try:
        return holder.next_rows()
    except Exception as error:  # noqa: BLE001 - it concerns this holder alone
        holder.deliver(error)
        return ()
