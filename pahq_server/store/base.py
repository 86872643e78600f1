"""The protocol of a store of jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pahq_server.store.records import (
    JobRecord,
    JobState,
    NewJob,
    Retention,
    Snapshot,
    StoredArtifact,
    Usage,
)

# Given what the user of a new job has, and whether the job has to be computed: raises to refuse the job.
Admission = Callable[[Usage, bool], None]


class JobStore(Protocol):
    """Keeps jobs, their journals and their artifacts, and knows nothing about methods.

    A journal is a sequence of records from which an interrupted method goes on; only the job's method can
    read them. Records are written in runs of one or more. Equal jobs of one user share one artifact.

    Methods may be called from any thread. Besides what they name, they raise StorageError.

    Damage on the disk is always found when something is read: for a job's record `JobRecord.damage` says so,
    and everything else raises StorageError with ``damaged`` set.

    A method of the store has done all that it says when it returns, and nothing if it raises. What it did is
    not lost when the process dies right after. `create`, `cancel` and `delete`, which clients rely on, also
    survive a power failure. The last records of a journal may not; they are then computed again.
    """

    @property
    def durable(self) -> bool:
        """Whether a later process finds what is stored."""
        ...

    # Creating

    def create(self, new: NewJob, admit: Admission, reuse: bool) -> tuple[JobRecord, bool]:
        """Adds a job, or finds the one that the same request id created before; tells whether it is new.

        Args:
            new: the job.
            admit: called before the job is added; an exception that it raises is passed on.
            reuse: whether to take over the artifact of a succeeded job of the same user and content, if there
                is one. The new job has succeeded then.

        Raises AlreadyExistsError where the request id came with another payload.
        """
        ...

    # Finding

    def by_request(self, user: str, request_id: str) -> JobRecord | None:
        """Finds the job that a request id of a user created, if one did."""
        ...

    def find(self, name: str) -> JobRecord:
        """Finds a job by its resource name. Raises NotFoundError."""
        ...

    def page(self, user: str | None, size: int, before: int | None) -> list[JobRecord]:
        """Lists jobs, newest first.

        Args:
            user: whose; None for all users.
            size: how many at most.
            before: only jobs with an id below this; None for all.
        """
        ...

    def count_by_state(self) -> dict[JobState, int]:
        """Counts the jobs of all users in each state; a state without any may be missing."""
        ...

    def unfinished(self) -> list[JobRecord]:
        """Lists all unfinished jobs, oldest first; some may be damaged."""
        ...

    def after(self, job: int, size: int) -> list[JobRecord]:
        """Lists the next jobs of all users after the one with this id, oldest first."""
        ...

    def latest(self) -> float | None:
        """Returns the latest time of the newest jobs, in seconds since the epoch; None if there are none."""
        ...

    def usage(self, user: str) -> Usage:
        """Counts what a user has at present."""
        ...

    def prompts(self, job: int) -> str | None:
        """Reads the JSON of the prompts that a job was created with.

        Raises NotFoundError, and StorageError where it is damaged.
        """
        ...

    def journal(self, job: int) -> list[bytes]:
        """Reads the runs of a job that has not succeeded, in order.

        They hold `Snapshot.records` records in all; else StorageError says that some are missing. Those that
        are not needed any more are empty.
        """
        ...

    def artifact(self, name: str) -> StoredArtifact | None:
        """Reads the artifact of a job; None for a job that has none. Raises NotFoundError."""
        ...

    # Changing

    def advance(self, job: int, now: Snapshot, first: int, data: bytes, alone: bool = False) -> None:
        """Stores where a job stands, together with new records of its journal.

        Args:
            job: its id.
            now: where the job stands; ``now.records`` includes the new records.
            first: the number of the first new record, counted from 0: how many records are stored already.
            data: the new records; empty if there are none.
            alone: whether the data of the earlier records is deleted. They still count.
        """
        ...

    def cancel(self, job: int, now: Snapshot) -> None:
        """Stores where a job stands that was asked to stop."""
        ...

    def begin_again(self, job: int, content: bytes, now: Snapshot) -> None:
        """Deletes the journal of an unfinished job.

        Args:
            job: its id.
            content: the new SHA-256 of all that determines its artifact.
            now: where the job stands, without any records.
        """
        ...

    def finish(
        self,
        job: int,
        now: Snapshot,
        first: int,
        data: bytes,
        artifact: StoredArtifact | None,
        alone: bool = False,
    ) -> None:
        """Stores the end of a job.

        With an artifact, the journal is deleted. Without one it is kept with the new records: a partial
        artifact can be made from it.

        Args:
            job, now, first, data, alone: as in `advance`.
            artifact: what the job found; None unless it succeeded.
        """
        ...

    def condemn(self, job: JobRecord, reason: str) -> JobRecord:
        """Makes a damaged job a failed one, whatever state it was in; returns what is stored of it then.

        Args:
            job: the job as it was read.
            reason: what of it cannot be read.
        """
        ...

    # Deleting

    def delete(self, name: str) -> None:
        """Deletes a finished job, and its artifact if no other job shares it.

        Raises NotFoundError, and ConflictError for an unfinished job.
        """
        ...

    def prune(self, retention: Retention, now: float, user: str | None = None) -> int:
        """Deletes jobs that need not be kept any more: a portion of them, so that others need not wait long.

        Args:
            retention: which jobs are kept.
            now: seconds since the epoch.
            user: whose jobs; None for all users.

        Returns how many jobs were deleted: 0 when nothing is left to delete.
        """
        ...

    def close(self) -> None:
        """Closes the store."""
        ...
