"""What is written down about one job while it runs."""

from __future__ import annotations

from collections.abc import Sequence

from pahq_server.core.verdict import Verdict
from pahq_server.store.base import JobStore
from pahq_server.store.records import DiscoveryResult, Snapshot


class Journal:
    """Writes nothing: of jobs that are not stored. Methods are called one by one, and raise StorageError."""

    def add(self, verdicts: Sequence[Verdict]) -> None:
        """Verdicts to store with the next snapshot."""

    def advance(self, now: Snapshot) -> None:
        """Stores where the job stands."""

    def cancel(self, now: Snapshot) -> None:
        """Stores that the job was asked to stop."""

    def begin_again(self, now: Snapshot, content: bytes) -> None:
        """Stores that all verdicts are given up; the job's result has another key now."""

    def finish(self, now: Snapshot, result: DiscoveryResult | None) -> None:
        """Stores the end."""

    @property
    def behind(self) -> bool:
        """Whether there are verdicts that are not stored."""
        return False


class StoredJournal(Journal):
    """Writes into a store.

    Args:
        store: keeps it.
        job: id in the store.
        stored: how many verdicts are there already.
    """

    def __init__(self, store: JobStore, job: int, stored: int = 0) -> None:
        self._store, self._job, self._stored = store, job, stored
        self._verdicts: list[Verdict] = []

    def resume(self, stored: int) -> None:
        """Goes on behind so many verdicts."""
        self._stored = stored

    def add(self, verdicts: Sequence[Verdict]) -> None:
        self._verdicts += verdicts

    def advance(self, now: Snapshot) -> None:
        self._store.advance(self._job, now, self._stored, self._verdicts)
        self._stored += len(self._verdicts)
        self._verdicts = []

    def cancel(self, now: Snapshot) -> None:
        self._store.cancel(self._job, now)

    def begin_again(self, now: Snapshot, content: bytes) -> None:
        self._store.begin_again(self._job, content, now)
        self._stored, self._verdicts = 0, []

    @property
    def behind(self) -> bool:
        return bool(self._verdicts)

    def finish(self, now: Snapshot, result: DiscoveryResult | None) -> None:
        self._store.finish(self._job, now, self._stored, self._verdicts, result)
        self._verdicts = []
