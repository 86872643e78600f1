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
        batches_s: how long the batches took that it was part of.
        place: while it is queued.
    """

    charged_s: float = 0.0
    batches_s: float = 0.0
    place: QueuePlace | None = None

    def charge(self, seconds: float, batch_s: float) -> None:
        self.charged_s += seconds
        self.batches_s += batch_s

    def moved_to(self, place: Place) -> bool:
        """Takes note of a place; returns whether the position is another one than before."""
        before = self.place
        start = None if place.start_s is None else time.time() + place.start_s
        self.place = QueuePlace(place.position, start)
        return before is None or before.position != place.position

    def clock(self) -> float:
        """Seconds, for a search: they stand still while it has no turn."""
        return self.batches_s
