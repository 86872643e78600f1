"""One batch: rows of several jobs to the engine, their outcomes and what each of them cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from pahq_server.core.engine import Engine, Outcome, ResolvedObjective, Work
from pahq_server.core.errors import NonFiniteMetricError, ServerError
from pahq_server.core.operations import in_groups


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of one job or session in a batch."""

    resolved: ResolvedObjective
    work: Work

    @property
    def group(self) -> Hashable:
        """What is computed together: the engine sweeps rows of one model, precision and graph at once."""
        objective = self.resolved.objective
        return objective.model, objective.precision, self.resolved.graph

    @property
    def tokens(self) -> int:
        """Of all rows: within a group, what a row costs goes by its tokens."""
        return len(self.work.rows) * sum(map(len, self.resolved.task.clean))


@dataclass(frozen=True)
class Scored:
    """The outcome of a part, and how many seconds it cost."""

    outcome: Outcome
    seconds: float


def score(engine: Engine, parts: Sequence[Part], clock: Callable[[], float]) -> list[Scored]:
    """One outcome per part, in order. Never raises: a dead worker would leave every job hanging.

    Args:
        engine: scores.
        parts: what to score.
        clock: seconds.
    """

    def score_group(group: list[Part]) -> Iterable[Scored]:
        started = clock()
        outcomes = _outcomes(engine, [part.work for part in group])
        seconds = clock() - started
        tokens = sum(part.tokens for part in group)
        return map(Scored, outcomes, [seconds * part.tokens / tokens for part in group])

    return in_groups(lambda part: part.group, parts, score_group)


def _outcomes(engine: Engine, work: Sequence[Work]) -> list[Outcome]:
    try:
        outcomes = engine.score(work)
    except Exception as error:  # noqa: BLE001 - it concerns all of them
        return [error] * len(work)
    if len(outcomes) != len(work):
        return [ServerError(f"the engine gave {len(outcomes)} outcomes for {len(work)} jobs")] * len(work)
    return [_checked(outcome, item) for outcome, item in zip(outcomes, work, strict=True)]


def _checked(outcome: Outcome, work: Work) -> Outcome:
    if isinstance(outcome, Exception):
        return outcome
    if len(outcome) != len(work.rows):
        return ServerError(f"the engine gave {len(outcome)} scores for {len(work.rows)} rows")
    if not all(map(math.isfinite, outcome)):
        return NonFiniteMetricError("the engine gave a score that is not finite")
    return outcome
