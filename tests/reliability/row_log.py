"""Which rows an engine was asked to score, written down batch by batch by a process that may die."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from pahq_server.core.engine import Anchor, Outcome, Prepared, Row, SessionId, Work


class LoggedEngine:
    """To be mixed into an engine: writes a line for every batch before it is scored.

    What one call of the system writes is in the file when the process dies.
    """

    log = -1
    _jobs: dict[SessionId, str]

    def log_into(self, path: Path) -> None:
        self.log, self._jobs = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), {}

    def open(self, prepared: Prepared) -> SessionId:
        session: SessionId = super().open(prepared)  # type: ignore[misc]
        self._jobs[session] = prepared.task.hash
        return session

    def score(self, work: Sequence[Work]) -> list[Outcome]:
        batch = {self._jobs[item.session]: [describe(row) for row in item.rows] for item in work}
        os.write(self.log, (json.dumps([os.getpid(), batch]) + "\n").encode())
        outcomes: list[Outcome] = super().score(work)  # type: ignore[misc]
        return outcomes


def describe(row: Row) -> str:
    """What is measured; begins with ``anchor`` where that is no evaluation, but a circuit measured again."""
    digest = hashlib.sha256(anchor_key(row.anchor) + repr(row.removed).encode()).hexdigest()[:32]
    return digest if row.removed else f"anchor {digest}"


def anchor_key(anchor: Anchor | None) -> bytes:
    return b"" if anchor is None else hashlib.sha256(anchor_key(anchor.parent) + anchor.circuit.key).digest()
