"""What jobs need of a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from pahq_server.core.verdict import Verdict
from pahq_server.store.records import DiscoveryResult, JobRecord, JobState, NewJob, Retention, Snapshot, Usage

# Is shown what a user has before a new job, and whether that has to be computed; raises to refuse it.
Admission = Callable[[Usage, bool], None]


class JobStore(Protocol):
    """Keeps jobs. Methods may be called from any thread, and raise StorageError as well as what they name.

    What is read is what was written, or it is found to be damaged: of a job's record, `JobRecord.damage` says
    so, and everything else raises StorageError.

    A method either has done all that it says when it returns, or, where it raises, nothing. What it did is
    not lost when the process dies right after. `create`, `cancel` and `delete`, which clients rely on,
    survive a power failure too; a search that loses its last verdicts to one finds them again.
    """

    @property
    def durable(self) -> bool:
        """Whether a later process finds what is stored."""
        ...

    def create(self, new: NewJob, admit: Admission, reuse: bool) -> tuple[JobRecord, bool]:
        """Adds a job, or finds the one that the same request id created; tells whether it is new.

        Args:
            new: the job.
            admit: is asked first; what it raises is raised.
            reuse: whether to take over the result of a job of the same user and content, if there is one.
                The new job has succeeded then.

        Raises AlreadyExistsError where the request id came with another payload.
        """
        ...

    def by_request(self, user: str, request_id: str) -> JobRecord | None: ...

    def find(self, name: str) -> JobRecord:
        """Raises NotFoundError."""
        ...

    def page(self, user: str | None, size: int, before: int | None) -> list[JobRecord]:
        """Jobs of a user, or None for all, newest first: those with an id below ``before``."""
        ...

    def count_by_state(self) -> dict[JobState, int]:
        """How many jobs of all users are in each state; states without any may be missing."""
        ...

    def unfinished(self) -> list[str]:
        """Names, oldest first."""
        ...

    def left(self) -> list[JobRecord]:
        """All unfinished jobs, oldest first. Among them may be damaged ones."""
        ...

    def after(self, job: int, size: int) -> list[JobRecord]:
        """The next jobs of all users after one with this id, oldest first."""
        ...

    def latest(self) -> float | None:
        """The latest time that was written down of one of the newest jobs, in seconds since the epoch."""
        ...

    def usage(self, user: str) -> Usage:
        """What a user has at present."""
        ...

    def prompts(self, job: int) -> str | None:
        """JSON as it was created with. Raises NotFoundError, and StorageError where it is damaged."""
        ...

    def verdicts(self, job: int) -> list[Verdict]:
        """All verdicts of an unfinished job, in order."""
        ...

    def begin_again(self, job: int, content: bytes, now: Snapshot) -> None:
        """Gives up the verdicts of an unfinished job, whose content is another one now."""
        ...

    def condemn(self, job: JobRecord, reason: str) -> JobRecord:
        """Lets a job fail that is damaged, whatever state it was in; returns what is stored of it then.

        Args:
            job: as it was read.
            reason: what cannot be read.
        """
        ...

    def advance(self, job: int, now: Snapshot, first: int, verdicts: Sequence[Verdict]) -> None:
        """Sets what changes about a job, and adds verdicts, of which the first has the number ``first``."""
        ...

    def cancel(self, job: int, now: Snapshot) -> None:
        """As `advance`, without verdicts."""
        ...

    def finish(
        self, job: int, now: Snapshot, first: int, verdicts: Sequence[Verdict], result: DiscoveryResult | None
    ) -> None:
        """As `advance`, for the last time. Without a result the verdicts are dropped."""
        ...

    def result(self, name: str) -> DiscoveryResult | None:
        """None for a job that has none. Raises NotFoundError."""
        ...

    def delete(self, name: str) -> None:
        """Raises NotFoundError, and ConflictError for an unfinished job."""
        ...

    def prune(self, retention: Retention, now: float, user: str | None = None) -> int:
        """Deletes what need not be kept any more, of one user or all, so much that nobody waits long.

        Returns how many jobs that were: 0 when nothing is left to delete.
        """
        ...

    def close(self) -> None: ...
