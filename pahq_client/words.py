"""Text for people: where a discovery stands, and strings of others that are safe to print."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from pahq_client.events import Event, JobInfo

# Longer texts of others are cut off: an error message is no place for a megabyte.
_LONGEST = 4000
# From here on a duration is told in days.
_DAY_S = 86_400
_MOST_DAYS = 9999


def printable(text: str) -> str:
    """The text, with whatever a terminal or an editor might obey written as an escape, such as ``\\x1b``.

    That is every character that Unicode counts as not printable: control characters, marks that turn the
    direction of writing, invisible ones, lone surrogates. Line breaks and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)


def one_line(text: str) -> str:
    """As `printable`, on one line of a limited length."""
    # Cut before anything else is done, so that a text of megabytes costs nothing.
    line = printable(" ".join(text[: 2 * _LONGEST].split()))
    return line if len(line) <= _LONGEST and len(text) <= 2 * _LONGEST else f"{line[:_LONGEST]} …"


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


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
    """What stands beside a bar: state and place while waiting, else edges, metric, speed, time left."""
    if not event.total:
        return ", ".join([event.state.lower(), *_place(event)])
    parts = [f"{event.decided}/{event.total} edges, {event.kept} kept, metric {event.metric:.4g}"]
    if speed is not None:
        parts.append(f"{speed:.{0 if speed >= 10 else 1}f} eval/s")
    if event.eta_s is not None:
        parts.append(f"{clock_time(event.eta_s)} left")
    return ", ".join(parts)


def summarize(info: JobInfo) -> str:
    """A discovery at some moment, in one line."""
    return ", ".join([info.state.lower(), *_place(info), *_progress(info), *_duration(info)])


def stands(info: JobInfo) -> str:
    """As `summarize`, without the figures, and with one time only: how long it takes yet, or took."""
    error = [one_line(info.error)] if info.error else []
    return ", ".join([info.state.lower(), *_place(info), *error, *list(_duration(info))[:1]])


def _place(known: Event | JobInfo) -> Iterator[str]:
    if known.queue_position is not None:
        yield f"number {known.queue_position} in the queue"
    if known.estimated_start is not None:
        yield f"starts about {local_time(known.estimated_start, '%H:%M')}"


def _progress(info: JobInfo) -> Iterator[str]:
    if info.total:
        yield f"{info.decided}/{info.total} edges, {info.kept} kept"
        yield f"{one_line(info.metric) or 'metric'} {info.metric_value:.4g}, {info.evaluations} evaluations"
    if info.error:
        yield one_line(info.error)


def _duration(info: JobInfo) -> Iterator[str]:
    if not info.state.is_final and info.eta_s is not None:
        yield f"{clock_time(info.eta_s)} left"
    if info.started is not None and info.ended is not None:
        yield f"took {clock_time((info.ended - info.started).total_seconds())}"
    elif info.started is not None:
        yield f"running for {clock_time((datetime.now(UTC) - info.started).total_seconds())}"


def clock_time(seconds: float) -> str:
    """Seconds as people write them, for example 1:02:05, or 3 days. Anything is fine, also infinity."""
    if math.isnan(seconds):
        return "an unknown time"
    whole = round(min(max(0.0, seconds), _DAY_S * (_MOST_DAYS + 1.0)))
    if whole > _DAY_S * _MOST_DAYS:
        return f"more than {_MOST_DAYS} days"
    if whole >= 4 * _DAY_S:
        return f"{whole // _DAY_S} days"
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def local_time(moment: datetime, form: str) -> str:
    """A moment on this machine's clock, in a form of `datetime.strftime`."""
    try:
        return moment.astimezone().strftime(form)
    except (OverflowError, ValueError, OSError):  # so far away that the local clock does not know it
        return moment.isoformat()
