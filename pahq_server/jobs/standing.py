"""What the scheduler tells about a job: its place in the queue and what it cost. Not stored."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pahq_server.scheduler.places import Place


@dataclass(frozen=True)
class QueuePlace:
    """A place in the queue.

    Args:
        position: 1 for the next to begin.
        start: when it begins, about, in seconds since the epoch; None while nothing is known of the pace.
    """

    position: int
    start: float | None


@dataclass
class Standing:
    """What the scheduler told last. Written by its worker alone, read by any thread.

    Args:
        charged_s: seconds of the worker's time that the job took.
        place: while it is queued.
    """

    charged_s: float = 0.0
    place: QueuePlace | None = None

    def charge(self, seconds: float) -> None:
        self.charged_s += seconds

    def moved_to(self, place: Place) -> bool:
        """Takes note of a place; returns whether the position is another one than before."""
        before = self.place
        start = None if place.start_s is None else time.time() + place.start_s
        self.place = QueuePlace(place.position, start)
        return before is None or before.position != place.position

    def clock(self) -> float:
        """Seconds, for a search: its own share of the worker's time."""
        return self.charged_s
