"""A progress bar for the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeAlias

from pahq_client.errors import InvalidRequest
from pahq_client.events import Event

Report: TypeAlias = Callable[[Event], object]
ProgressLike: TypeAlias = bool | Report | None
"""None or False: silent. True: a bar on stderr. Else a function that gets every event."""


def reporter(progress: ProgressLike) -> AbstractContextManager[Report]:
    """Where to report events while the context lasts. Raises InvalidRequest for what is no ProgressLike."""
    if progress is None or progress is False:
        return nullcontext(lambda event: None)
    if progress is True:
        return _bar()
    if not callable(progress):
        raise InvalidRequest("progress", f"must be a bool or a function, got {type(progress).__name__}")
    return nullcontext(progress)


class Speed:
    """Evaluations per second since the first event that was seen."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start: tuple[float, int] | None = None

    def update(self, evaluations: int) -> float | None:
        """The speed now; None as long as there is nothing to divide."""
        now = self._clock()
        if self._start is None:
            self._start = now, evaluations
        seconds, done = now - self._start[0], evaluations - self._start[1]
        return done / seconds if seconds > 0 and done > 0 else None


def describe(event: Event, speed: float | None) -> str:
    """What stands beside the bar: state while waiting, else edges, metric, speed, time left."""
    if not event.total:
        return event.state.lower()
    parts = [f"{event.decided}/{event.total} edges, {event.kept} kept, metric {event.metric:.4g}"]
    if speed is not None:
        parts.append(f"{speed:.{0 if speed >= 10 else 1}f} eval/s")
    if event.eta_s is not None:
        parts.append(f"{_clock_time(event.eta_s)} left")
    return ", ".join(parts)


def _clock_time(seconds: float) -> str:
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


@contextmanager
def _bar() -> Iterator[Report]:
    # Imported here: a program that shows no bar need not wait for it.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    # markup=False: nothing that a server sends is to be taken for formatting.
    # The bar gives way to the words where the terminal is narrow.
    columns = TextColumn("{task.description}", markup=False), BarColumn(bar_width=None)
    with Progress(*columns, console=Console(stderr=True), expand=True) as bar:
        task, speed = bar.add_task("waiting", total=None), Speed()

        def report(event: Event) -> None:
            words = describe(event, speed.update(event.evaluations))
            bar.update(task, completed=event.decided, total=event.total or None, description=words)

        yield report
