"""Discoveries for people: one line, and a card for notebooks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape

from pahq_client.events import JobInfo, JobState


def words(info: JobInfo) -> str:
    """Where a discovery stands, in one line."""
    return ", ".join(_parts(info))


def _parts(info: JobInfo) -> Iterator[str]:
    yield info.state.lower()
    if info.state is JobState.QUEUED and info.queue_position is not None:
        yield f"number {info.queue_position} in the queue"
    if info.state is JobState.QUEUED and info.estimated_start is not None:
        yield f"starts about {info.estimated_start.astimezone():%H:%M}"
    if info.total:
        yield f"{info.decided}/{info.total} edges, {info.kept} kept"
        yield f"{info.metric or 'metric'} {info.metric_value:.4g}, {info.evaluations} evaluations"
    if not info.state.is_final and info.eta_s is not None:
        yield f"{clock_time(info.eta_s)} left"
    if info.started is not None:
        seconds = ((info.ended or datetime.now(UTC)) - info.started).total_seconds()
        yield f"{'took' if info.ended else 'for'} {clock_time(seconds)}"
    if info.error:
        yield info.error


def clock_time(seconds: float) -> str:
    """Seconds as people write them, for example 1:02:05."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def to_html(name: str, info: JobInfo | None, note: str = "") -> str:
    """A card for notebooks: name, what was asked for, a bar while it runs, a summary when it is done."""
    head = f"<b>Discovery</b> <code>{escape(name)}</code>"
    lines = [head, *(escape(line) for line in _lines(info)), *([f"<i>{escape(note)}</i>"] if note else [])]
    return f"<div>{'<br>'.join(lines)}{_bar(info)}</div>"


def _lines(info: JobInfo | None) -> list[str]:
    if info is None:
        return ["not asked yet"]
    asked = [f"{key} {value}" for key, value in _asked(info) if value not in ("", None)]
    return [", ".join(asked), words(info)] if asked else [words(info)]


def _asked(info: JobInfo) -> list[tuple[str, object]]:
    return [("model", info.model), ("method", info.method), ("threshold", info.threshold)]


def _bar(info: JobInfo | None) -> str:
    """Only while something moves."""
    if info is None or info.state.is_final or not info.total:
        return ""
    return f'<br><progress value="{info.decided}" max="{info.total}" style="width: 100%"></progress>'
