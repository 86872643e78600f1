"""Text for people: where a discovery stands."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from pahq_client.events import Event, JobInfo
from pahq_client.text import one_line

# From here on a duration is told in days.
_DAY_S = 86_400
_MOST_DAYS = 9999


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
    parts = [info.state.lower(), *_place(info), *_progress(info), *_duration(info)]
    return ", ".join([*parts, *count_warnings(info.warnings)])


def asked(info: JobInfo) -> str:
    """What a discovery was asked for, in one line: model, task, method, threshold."""
    task = info.task and f"task {info.task}"
    known = {"model": info.model, "method": info.method, "threshold": info.threshold}
    model, *others = (f"{key} {value}" if value not in ("", None) else "" for key, value in known.items())
    return ", ".join(part for part in (model, task, *others) if part)


def task(about: object) -> str:
    """A task in words, from what a circuit or a job tells of it: a name, a number of prompts and a seed."""
    if not isinstance(about, Mapping):
        return ""
    name, count, seed = (about.get(key) for key in ("name", "num_prompts", "seed"))
    size = f"{count} prompt{'' if count == 1 else 's'}" if count else ""
    if not name:
        return size
    details = ", ".join(part for part in (size, "" if seed is None else f"seed {seed}") if part)
    return f"{name} ({details})" if details else str(name)


NO_FAITHFULNESS = "undefined (full = empty)"


def faithfulness(value: float | None) -> str:
    """A faithfulness in words, also where there is none."""
    return f"faithfulness {NO_FAITHFULNESS}" if value is None else f"faithfulness={round(value, 4) + 0.0:.4g}"


def count_warnings(warnings: Sequence[str]) -> list[str]:
    """How many warnings there are, as a part of a line; nothing for none."""
    return [f"{len(warnings)} warning{'' if len(warnings) == 1 else 's'}"] if warnings else []


def stands(info: JobInfo) -> str:
    """As `summarize`, without the figures, and with one time only: how long it takes yet, or took."""
    error = [one_line(info.error)] if info.error else []
    parts = [info.state.lower(), *_place(info), *error, *list(_duration(info))[:1]]
    return ", ".join([*parts, *count_warnings(info.warnings)])


def _place(known: Event | JobInfo) -> Iterator[str]:
    if known.queue_position is not None:
        yield f"number {known.queue_position} in the queue"
    if known.estimated_start is not None:
        yield f"starts about {local_time(known.estimated_start, '%H:%M')}"


def _progress(info: JobInfo) -> Iterator[str]:
    if info.total:
        yield f"{info.decided}/{info.total} edges, {info.kept} kept"
        yield f"{one_line(info.metric) or 'metric'} {info.metric_value:.4g}, {info.evaluations} evaluations"
        if info.metric_full is not None:
            yield faithfulness(info.faithfulness)
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
