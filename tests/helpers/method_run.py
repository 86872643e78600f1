"""Runs a method on a made-up engine, to its end or until it is killed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pahq_server.core.artifact import Artifact, Progress
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.operations import Operation
from pahq_server.methods.base import Method, MethodContext


class MethodRun:
    """One run.

    Args:
        method: to run.
        resolved: its objective.
        parameters: of the method.
        answer: the engine's answer to an operation.
        journal: what earlier runs recorded.
        operations: after which the run is killed; None for its end.
        seconds: what each operation takes.
        folder: for the files of the job; None where there must be none.

    Attributes:
        asked: the operations, in order.
        told: the progress before each of them, and at the end.
        journal: what was recorded, with that of earlier runs: as the store gives it back.
        artifact: what was found; None if the run was killed.
        sizes: how large the method said that its files would be, whenever it asked for the folder.
    """

    def __init__(
        self,
        method: Method[Any],
        resolved: ResolvedObjective,
        parameters: object,
        answer: Callable[[Operation], object],
        journal: Sequence[bytes] = (),
        operations: int | None = None,
        seconds: float = 0.1,
        folder: Path | None = None,
    ) -> None:
        now = [0.0]
        self.sizes: list[int] = []

        def folder_of(size: int) -> Path:
            assert folder is not None, "the method has no files"
            self.sizes.append(size)
            folder.mkdir(parents=True, exist_ok=True)
            return folder

        self.context: MethodContext[Any] = MethodContext(
            resolved, parameters, journal, len(journal), clock=lambda: now[0], folder=folder_of
        )
        self.asked: list[Operation] = []
        self.told: list[Progress] = []
        self.journal = list(journal)
        self.artifact: Artifact | None = None
        steps = method.run(self.context)
        answered: object = None
        while operations is None or len(self.asked) < operations:
            try:
                operation = steps.send(answered)
            except StopIteration as stop:
                self.artifact = stop.value
                break
            finally:
                records = self.context.take_records()
                if records.alone:
                    self.journal = [b""] * len(self.journal)
                self.journal += [records.data] if records.count else []
                self.told.append(self.context.progress)
            self.asked.append(operation)
            now[0] += seconds
            answered = answer(operation)

    @property
    def data(self) -> bytes:
        """The bytes of the artifact."""
        assert self.artifact is not None
        return self.artifact.data
