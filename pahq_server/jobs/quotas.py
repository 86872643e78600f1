"""Quotas of users, and the decision whether another job, evaluation or prediction is accepted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from pahq_server.core.errors import QuotaExceededError, ResourceExhaustedError
from pahq_server.store.records import Usage

# When to try again: jobs end within minutes, artifacts only when somebody deletes them.
RETRY_S = 30.0
RETRY_RESULTS_S = 3600.0


@dataclass(frozen=True)
class Quotas:
    """Limits of every user; None for no limit.

    Args:
        running_jobs: jobs that run at a time; further ones wait.
        queued_jobs: jobs that wait, and other runs: evaluations, predictions, checks of tasks.
        prompt_tokens: tokens of the prompts of all of these that have not ended.
        stored_results: artifacts that are kept, together with unfinished jobs, which may still give one.
        file_bytes: size of the files that running jobs have beside the database, see `files.JobFiles`.
    """

    running_jobs: int | None = None
    queued_jobs: int | None = None
    prompt_tokens: int | None = None
    stored_results: int | None = None
    file_bytes: int | None = None

    def check(self, user: str, usage: Usage, tokens: int, computed: bool) -> None:
        """Raises QuotaExceededError where a new job would be too much.

        Args:
            user: whose job it is.
            usage: what the user has before it.
            tokens: number of tokens of its prompts.
            computed: whether it has to be computed; else its artifact is there already.
        """
        if computed:
            self.check_run(user, usage, tokens)
        _check("stored_results", user, usage.results + 1, self.stored_results, RETRY_RESULTS_S)

    def check_run(self, user: str, usage: Usage, tokens: int) -> None:
        """Does `check` for work that leaves no artifact, an `unstored_run.UnstoredRun`."""
        _check("queued_jobs", user, usage.queued + 1, self.queued_jobs, RETRY_S)
        _check("prompt_tokens", user, usage.tokens + tokens, self.prompt_tokens, RETRY_S)


class Unstored(Protocol):
    """Work that counts towards its user's quotas and is not stored: see `unstored_run.UnstoredRun`.

    Attributes:
        user: whose it is.
        tokens: number of tokens of its prompts.
        begun: whether it has begun, so that it is not queued any more.
    """

    user: str
    tokens: int
    begun: bool


class Admission:
    """Decides what is accepted. Methods may be called from any thread.

    Args:
        quotas: quotas of every user.
        max_queued: how many runs of all users may wait; twice as many if each is its user's only one.
        queued: tells how many runs of all users wait.
        queued_of: tells how many runs of one user wait.
    """

    def __init__(
        self,
        quotas: Quotas,
        max_queued: int,
        queued: Callable[[], int],
        queued_of: Callable[[str], int],
    ) -> None:
        self.quotas, self._max_queued = quotas, max_queued
        self._queued, self._queued_of = queued, queued_of
        self._unstored: set[Unstored] = set()
        self._lock = threading.Lock()

    def admit_job(self, user: str, usage: Usage, tokens: int, computed: bool) -> None:
        """Raises ResourceExhaustedError where a new job would be too much; see `Quotas.check`."""
        if computed:
            self.check_room(user)
        with self._lock:
            self.quotas.check(user, self._with_unstored(usage, user), tokens, computed)

    def admit(self, work: Unstored, usage: Usage) -> None:
        """Counts work until `forget`. Raises ResourceExhaustedError where it would be too much.

        Args:
            work: what is to be done.
            usage: what its user has in the store.
        """
        self.check_room(work.user)
        with self._lock:
            self.quotas.check_run(work.user, self._with_unstored(usage, work.user), work.tokens)
            self._unstored.add(work)

    def forget(self, work: Unstored) -> None:
        """Counts work no more."""
        with self._lock:
            self._unstored.discard(work)

    def check_room(self, user: str) -> None:
        """Raises ResourceExhaustedError where the queue is full.

        A user with nothing in the queue gets in for longer, so no other user can fill it alone.
        """
        most = self._max_queued * (1 if self._queued_of(user) else 2)
        if self._queued() >= most:
            raise ResourceExhaustedError(f"{most} runs are waiting already", retry_after_s=30)

    def _with_unstored(self, usage: Usage, user: str) -> Usage:
        works = [work for work in self._unstored if work.user == user]
        waiting, tokens = sum(not work.begun for work in works), sum(work.tokens for work in works)
        return replace(usage, queued=usage.queued + waiting, tokens=usage.tokens + tokens)


def _check(quota: str, user: str, needed: int, limit: int | None, retry_s: float) -> None:
    if limit is not None and needed > limit:
        what = quota.replace("_", " ")
        detail = f"{needed} {what} would be more than the {limit} that each user may have"
        raise QuotaExceededError(quota, f"users/{user}", detail, retry_s)
