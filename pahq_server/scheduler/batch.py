"""Runs one batch: operations of several jobs and sessions, with their outcomes and what each of them cost."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from pahq_server.core.engine import UNDER_WAY, Engine, Outcome, ResolvedObjective, Timed, Work
from pahq_server.core.errors import ServerError
from pahq_server.core.operations import in_groups


@dataclass(frozen=True, eq=False)
class Part:
    """An operation of one job or session in a batch."""

    resolved: ResolvedObjective
    work: Work

    @property
    def group(self) -> Hashable:
        """Parts with equal groups are given to the engine together, so that they can share work."""
        objective = self.resolved.objective
        return objective.model, objective.precision, self.resolved.graph, type(self.work.operation)

    @property
    def cost(self) -> float:
        """Weight of the operation times tokens: the seconds of a group are divided in proportion to it."""
        return self.work.operation.weight * sum(map(len, self.resolved.task.clean))


@dataclass(frozen=True)
class Finished:
    """The outcome of a part, and its share of the seconds that its group took.

    Args:
        outcome: `UNDER_WAY` for a part that goes on.
    """

    outcome: Outcome
    seconds: float


def run_batch(engine: Engine, parts: Sequence[Part], clock: Callable[[], float]) -> list[Finished]:
    """Runs the operations of a batch.

    Args:
        engine: runs them.
        parts: what to run.
        clock: seconds.

    Returns:
        One outcome per part, in order. A failure of the engine becomes the outcome of all parts that it was
        given together: if it were raised here, the worker would end and every job would hang.
    """

    if engine.concurrent:
        return list(map(_timed, _outcomes(engine, [part.work for part in parts])))

    def run_group(group: list[Part]) -> Iterable[Finished]:
        started = clock()
        outcomes = _outcomes(engine, [part.work for part in group])
        seconds = clock() - started
        total = sum(part.cost for part in group)
        return map(Finished, outcomes, [seconds * part.cost / total for part in group])

    return in_groups(lambda part: part.group, parts, run_group)


def _outcomes(engine: Engine, work: Sequence[Work]) -> list[Outcome]:
    try:
        outcomes = engine.run(work)
    except Exception as error:  # noqa: BLE001 - it concerns all of them
        return [error] * len(work)
    if len(outcomes) != len(work):
        wrong = ServerError(f"the engine gave {len(outcomes)} outcomes for {len(work)} operations")
        return [wrong] * len(work)
    return [_checked(outcome, item) for outcome, item in zip(outcomes, work, strict=True)]


def _timed(outcome: Outcome) -> Finished:
    if isinstance(outcome, Timed):
        return Finished(outcome.outcome, outcome.seconds)
    return Finished(outcome, 0.0)


def _checked(outcome: Outcome, work: Work) -> Outcome:
    if isinstance(outcome, Timed):
        return replace(outcome, outcome=_checked(outcome.outcome, work))
    if isinstance(outcome, Exception) or outcome is UNDER_WAY:
        return outcome
    try:
        work.operation.check(outcome)
    except Exception as error:  # noqa: BLE001 - it concerns this operation alone
        return error
    return outcome
