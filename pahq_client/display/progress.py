"""Shows jobs and their progress: a bar in the terminal, a card in a notebook, HTML.

IPython is used if a notebook has loaded it, and never needed. Whatever comes from a server or a caller is
escaped.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from html import escape
from typing import Any, TypeAlias

from pahq_client.errors import InvalidRequest
from pahq_client.events import Event, EventKind, JobInfo
from pahq_client.formatting import Speed, asked, describe, one_line, summarize

Report: TypeAlias = Callable[[Event], object]
ProgressLike: TypeAlias = bool | Report | None
"""None or False: silent. True: a bar on stderr, or a card in a notebook. Else a function that gets events."""


def reporter(progress: ProgressLike) -> AbstractContextManager[Report]:
    """Returns a context that gives the function to report events to.

    Raises:
        InvalidRequest: it is not a ProgressLike.
    """
    if progress is None or progress is False:
        return nullcontext(lambda event: None)
    if progress is True:
        display = find_display()
        return _bar() if display is None else shown_in(display)
    if not callable(progress):
        raise InvalidRequest("progress", f"must be a bool or a function, got {type(progress).__name__}")
    return nullcontext(progress)


@contextmanager
def _bar() -> Iterator[Report]:
    # Imported here: a program that shows no bar need not wait for it.
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    # markup=False: nothing that a server sends is to be taken for formatting.
    # The bar gives way to the words where the terminal is narrow.
    columns = TextColumn("{task.description}", markup=False), BarColumn(bar_width=None)
    with Bar(*columns, console=Console(stderr=True), expand=True) as bar:
        task, speed = bar.add_task("waiting", total=None), Speed()

        def report(event: Event) -> None:
            text = describe(event, speed.update(event.progress.work))
            bar.update(task, completed=event.decided, total=event.total or None, description=text)

        yield report


# Between two updates of a card: with more, a browser would be busy drawing.
_SECONDS_BETWEEN = 0.1


def find_display() -> Callable[..., Any] | None:
    """Returns IPython's ``display`` if this process is the kernel of a notebook, else None."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if getattr(shell, "kernel", None) is None:
        return None
    display: Callable[..., Any] = importlib.import_module("IPython.display").display
    return display


class ProgressCard:
    """What a notebook shows while it waits for a job."""

    def __init__(self) -> None:
        self._speed = Speed()
        self._text = "waiting"
        self._bar = 0, 0

    def update(self, event: Event) -> None:
        """Shows the event from now on."""
        self._text = event.error or describe(event, self._speed.update(event.progress.work))
        if event.kind is EventKind.END:
            self._text = f"{event.state.lower()}: {self._text}"
        self._bar = (event.decided, event.total) if event.has_begun and not event.state.is_final else (0, 0)

    def __repr__(self) -> str:
        return f"Job: {self._text}"

    def _repr_html_(self) -> str:
        return card("Job", "", [self._text], *self._bar)


@contextmanager
def shown_in(
    display: Callable[..., Any], clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[Event], None]]:
    """Shows a card; gives the function to report events to, which redraws it ten times a second at most."""
    shown = ProgressCard()
    handle, last = display(shown, display_id=True), clock()

    def report(event: Event) -> None:
        nonlocal last
        shown.update(event)
        if event.kind is not EventKind.PROGRESS or clock() - last >= _SECONDS_BETWEEN:
            handle.update(shown)
            last = clock()

    yield report


def job_to_html(name: str, info: JobInfo | None, note: str = "") -> str:
    """Draws a job as a card: name, what was asked for, a bar while it runs, a summary when it is done."""
    if info is None:
        return card("Job", name, ["not asked for yet", note])
    warnings = [f"Warning: {text}" for text in info.warnings]
    done, total = (info.decided, info.total) if info.has_begun and not info.state.is_final else (0, 0)
    return card("Job", name, [asked(info), summarize(info), *warnings, note], done, total)


def card(title: str, name: str, lines: list[str], done: int = 0, total: int = 0) -> str:
    """Draws a heading with a name, lines (empty ones are left out) and, if the total is positive, a bar."""
    head = f"<b>{escape(title)}</b> <code>{_text(name)}</code>" if name else f"<b>{escape(title)}</b>"
    text = "<br>".join([head, *(_text(line) for line in lines if line)])
    bar = f'<br><progress value="{int(done)}" max="{int(total)}" style="width: 100%"></progress>'
    return f"<div>{text}{bar if total > 0 else ''}</div>"


def _text(text: str) -> str:
    """Makes text of others safe to be part of a page."""
    return escape(one_line(text))
