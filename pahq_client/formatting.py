"""Text for people: numbers, times and jobs in words, and foreign text made safe to print.

This module imports nothing of the package at run time, so that every other module can use it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pahq_client.events import Event, JobInfo, Progress

# In characters; a longer text is cut off.
_LONGEST = 4000
# How the names of figures begin that are expected sizes of a kind of nodes.
_SIZE = "size_"


def printable(text: str) -> str:
    """Returns the text with everything that a terminal or an editor might obey as an escape like ``\\x1b``.

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


_DAY_S = 86_400
_MOST_DAYS = 9999


class Speed:
    """Measures how fast a job goes: work per second since the first report that was seen."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start: tuple[float, int] | None = None

    def update(self, done: int) -> float | None:
        """Takes in how much is done by now. Returns the speed; None until it can be computed."""
        now = self._clock()
        if self._start is None:
            self._start = now, done
        seconds, more = now - self._start[0], done - self._start[1]
        return more / seconds if seconds > 0 and more > 0 else None


def describe(event: Event, speed: float | None) -> str:
    """Says in one line what an event reports, for display beside a progress bar.

    Args:
        event: what happened.
        speed: as `Speed.update` returned it for ``event.progress.work``; None while unknown.
    """
    progress = event.progress
    if not event.has_begun:
        return ", ".join([event.state.lower(), *_queue_position(event)])
    parts = [*_counts(progress), *_figures(progress)]
    if speed is not None:
        unit = "eval" if "evaluations" in progress.figures else _unit(progress)
        parts.append(f"{speed:.{0 if speed >= 10 else 1}f} {unit}/s")
    if progress.eta_s is not None:
        parts.append(f"{clock_time(progress.eta_s)} left")
    return ", ".join([*parts, *_sizes(progress)])


def summarize(info: JobInfo) -> str:
    """Says in one line how a job stands: state, progress or result, times, number of warnings."""
    parts = [info.state.lower(), *_queue_position(info), *_results(info), *_duration(info)]
    return ", ".join([*parts, *count_warnings(info.warnings)])


def asked(info: JobInfo) -> str:
    """Says in one line what a job was asked to do: model, task, method, threshold or what it is for."""
    task = info.task and f"task {info.task}"
    known = {"model": info.model, "method": info.method, "threshold": info.threshold}
    model, *others = (f"{key} {value}" if value not in ("", None) else "" for key, value in known.items())
    return ", ".join(part for part in (model, task, *others, info.target) if part)


def task(about: object) -> str:
    """Describes a task by what a circuit or a job knows of it: name, number of prompts, seed."""
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
    """Describes a faithfulness; None means that it is undefined."""
    return f"faithfulness {NO_FAITHFULNESS}" if value is None else f"faithfulness={round(value, 4) + 0.0:.4g}"


def count_warnings(warnings: Sequence[str]) -> list[str]:
    """Says how many warnings there are, as a part of a line; returns nothing where there are none."""
    return [f"{len(warnings)} warning{'' if len(warnings) == 1 else 's'}"] if warnings else []


def stands(info: JobInfo) -> str:
    """Says as `summarize` how a job stands, but without figures, and with one time: left, or taken so far."""
    error = [one_line(info.error)] if info.error else []
    parts = [info.state.lower(), *_queue_position(info), *error, *list(_duration(info))[:1]]
    return ", ".join([*parts, *count_warnings(info.warnings)])


def _queue_position(known: Event | JobInfo) -> Iterator[str]:
    if known.queue_position is not None:
        yield f"number {known.queue_position} in the queue"
    if known.estimated_start is not None:
        yield f"starts about {local_time(known.estimated_start, '%H:%M')}"


def _counts(progress: Progress) -> Iterator[str]:
    if progress.stage:
        yield one_line(progress.stage)
    yield f"{progress.done}/{progress.total} {_unit(progress)}"
    if "kept" in progress.figures:
        yield f"{progress.kept} kept"


def _unit(progress: Progress) -> str:
    return one_line(progress.unit) or "steps"


def _figures(progress: Progress) -> Iterator[str]:
    """The figures of a method by name, apart from those that stand elsewhere in the line."""
    for name, value in sorted(progress.figures.items()):
        if name not in ("kept", "evaluations") and not name.startswith(_SIZE):
            yield f"{one_line(name)} {value:.4g}"


def _sizes(progress: Progress) -> Iterator[str]:
    """How many nodes of each kind node pruning expects to keep. They end the line, which may be cut off."""
    sizes = {name: value for name, value in progress.figures.items() if name.startswith(_SIZE)}
    if sizes:
        words = (
            f"{one_line(name.removeprefix(_SIZE).replace('_', ' '))} {value:,.0f}"
            for name, value in sorted(sizes.items())
        )
        yield f"expected {', '.join(words)}"


def _results(info: JobInfo) -> Iterator[str]:
    if info.has_begun:
        yield from _counts(info.progress)
        if info.metric_value is not None:
            yield f"{one_line(info.metric) or 'metric'} {info.metric_value:.4g}"
        if "evaluations" in info.progress.figures:
            yield f"{info.evaluations} evaluations"
        if info.metric_value is not None and info.metric_full is not None:
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
    """Writes a number of seconds for people, for example 1:02:05 or 3 days. Takes infinity and NaN, too."""
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
    """Writes a moment by this machine's clock, in a form of `datetime.strftime`."""
    try:
        return moment.astimezone().strftime(form)
    except (OverflowError, ValueError, OSError):  # so far away that the local clock does not know it
        return moment.isoformat()
