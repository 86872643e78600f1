"""Progress in a notebook: a card that changes in its place. IPython is used if it is there, never needed."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pahq_client import render_job
from pahq_client.events import Event, EventKind
from pahq_client.words import Speed, describe

# A browser that gets more is busy drawing.
_SECONDS_BETWEEN = 0.1


def find_display() -> Callable[..., Any] | None:
    """IPython's ``display``, if this process is the kernel of a notebook; a terminal is none."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if getattr(shell, "kernel", None) is None:
        return None
    display: Callable[..., Any] = importlib.import_module("IPython.display").display
    return display


class ProgressCard:
    """What the notebook shows of a discovery that is waited for."""

    def __init__(self) -> None:
        self._speed = Speed()
        self._words = "waiting"
        self._bar = 0, 0

    def update(self, event: Event) -> None:
        """Shows the event from now on."""
        self._words = event.error or describe(event, self._speed.update(event.evaluations))
        if event.kind is EventKind.END:
            self._words = f"{event.state.lower()}: {self._words}"
        self._bar = (0, 0) if event.kind is EventKind.END else (event.decided, event.total)

    def __repr__(self) -> str:
        return f"Discovery: {self._words}"

    def _repr_html_(self) -> str:
        return render_job.card("Discovery", "", [self._words], *self._bar)


@contextmanager
def shown_in(
    display: Callable[..., Any], clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[Event], None]]:
    """Where to report events while the context lasts."""
    card = ProgressCard()
    handle, last = display(card, display_id=True), clock()

    def report(event: Event) -> None:
        nonlocal last
        card.update(event)
        if event.kind is not EventKind.PROGRESS or clock() - last >= _SECONDS_BETWEEN:
            handle.update(card)
            last = clock()

    yield report
