"""Which passes an engine was asked to score, written down batch by batch by a process that may die."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from pahq_server.core.circuit import BaseCircuit, PatchedPass
from pahq_server.core.engine import EngineStateId, Outcome, ResolvedObjective, Work
from pahq_server.core.operations import ScorePasses


class LoggedEngine:
    """To be mixed into an engine: writes a line for every batch before it is scored.

    What one call of the system writes is in the file when the process dies.
    """

    log = -1
    _jobs: dict[EngineStateId, str]

    def log_into(self, path: Path) -> None:
        self.log, self._jobs = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), {}

    def open(self, resolved: ResolvedObjective) -> EngineStateId:
        state: EngineStateId = super().open(resolved)  # type: ignore[misc]
        self._jobs[state] = resolved.task.hash
        return state

    def run(self, work: Sequence[Work]) -> list[Outcome]:
        batch = {self._jobs[item.state]: list(map(describe, _passes(item))) for item in work}
        os.write(self.log, (json.dumps([os.getpid(), batch]) + "\n").encode())
        outcomes: list[Outcome] = super().run(work)  # type: ignore[misc]
        return outcomes


def _passes(work: Work) -> Sequence[PatchedPass]:
    assert isinstance(work.operation, ScorePasses)
    return work.operation.passes


def describe(patched: PatchedPass) -> str:
    """What is measured; begins with ``base`` where a circuit is measured again."""
    digest = hashlib.sha256(chain_key(patched.base_circuit) + repr(patched.removed).encode()).hexdigest()[:32]
    return digest if patched.removed else f"base {digest}"


def chain_key(base_circuit: BaseCircuit | None) -> bytes:
    return (
        b""
        if base_circuit is None
        else hashlib.sha256(chain_key(base_circuit.parent) + base_circuit.circuit.key).digest()
    )
