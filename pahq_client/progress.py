"""Progress for people: a bar in the terminal, a card in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeAlias

from pahq_client.display import progress as notebook
from pahq_client.errors import InvalidRequest
from pahq_client.events import Event
from pahq_client.words import Speed, describe

Report: TypeAlias = Callable[[Event], object]
ProgressLike: TypeAlias = bool | Report | None
"""None or False: silent. True: a bar on stderr, or a card in a notebook. Else a function that gets events."""


def reporter(progress: ProgressLike) -> AbstractContextManager[Report]:
    """Where to report events while the context lasts. Raises InvalidRequest for what is no ProgressLike."""
    if progress is None or progress is False:
        return nullcontext(lambda event: None)
    if progress is True:
        display = notebook.find_display()
        return _bar() if display is None else notebook.shown_in(display)
    if not callable(progress):
        raise InvalidRequest("progress", f"must be a bool or a function, got {type(progress).__name__}")
    return nullcontext(progress)


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
