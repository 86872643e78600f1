"""What one user may have at a time."""

from __future__ import annotations

from dataclasses import dataclass

from pahq_server.core.errors import QuotaExceededError
from pahq_server.store.records import Usage

# Jobs end in minutes rather than in seconds; results go when somebody deletes them.
RETRY_S = 30.0
RETRY_RESULTS_S = 3600.0


@dataclass(frozen=True)
class Quotas:
    """Limits of every user; None for no limit.

    Args:
        running_jobs: that are worked on at a time; further ones wait.
        queued_jobs: that wait, evaluations of circuits among them.
        prompt_tokens: of all prompts of unfinished jobs and evaluations.
        stored_results: that are kept, and jobs that may still give one.
    """

    running_jobs: int | None = None
    queued_jobs: int | None = None
    prompt_tokens: int | None = None
    stored_results: int | None = None

    def check(self, user: str, usage: Usage, tokens: int, computed: bool) -> None:
        """Raises QuotaExceededError where a new job would be too much.

        Args:
            user: whose job it is.
            usage: what the user has before it.
            tokens: of its prompts.
            computed: whether it has to be computed; else its result is there already.
        """
        if computed:
            self.check_run(user, usage, tokens)
        _check("stored_results", user, usage.results + 1, self.stored_results, RETRY_RESULTS_S)

    def check_run(self, user: str, usage: Usage, tokens: int) -> None:
        """`check` for what leaves no result, such as an evaluation."""
        _check("queued_jobs", user, usage.queued + 1, self.queued_jobs, RETRY_S)
        _check("prompt_tokens", user, usage.tokens + tokens, self.prompt_tokens, RETRY_S)


def _check(quota: str, user: str, needed: int, limit: int | None, retry_s: float) -> None:
    if limit is not None and needed > limit:
        what = quota.replace("_", " ")
        detail = f"{needed} {what} would be more than the {limit} that each user may have"
        raise QuotaExceededError(quota, f"users/{user}", detail, retry_s)
