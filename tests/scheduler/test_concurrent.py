"""An engine whose operations go on while others are asked for: each is begun, delivered and charged once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest
from helpers.fake_engine import FakeEngine

from pahq_server.core.engine import UNDER_WAY, EngineStateId, Outcome, Timed, Work
from pahq_server.core.operations import Operation
from pahq_server.scheduler.scheduler import Scheduler

from .fake_run import FakeRun
from .test_interactive import FakeSession

# What every operation takes, in seconds of its workers.
SECONDS = 0.25


class Slow(FakeEngine):
    """Every operation is asked for some times until it is done; of those asked for at once, one at least is.

    Args:
        seed: draws which.
    """

    concurrent = True

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._draw = Random(seed)
        self._under_way: dict[EngineStateId, Operation] = {}
        self.begun: Counter[int] = Counter()  # by the operation's id
        self.kept: list[Operation] = []  # so that ids stay unique
        self.most_asked = 0

    def run(self, work: Sequence[Work]) -> list[Outcome]:
        assert len({item.state for item in work}) == len(work)
        for item in work:
            if self._under_way.get(item.state) is not item.operation:
                self._under_way[item.state] = item.operation
                self.kept.append(item.operation)
                self.begun[id(item.operation)] += 1
        self.most_asked = max(self.most_asked, len(work))
        sure = self._draw.choice(work).state
        done = [item for item in work if item.state == sure or self._draw.random() < 0.3]
        outcomes = dict(zip([item.state for item in done], super().run(done), strict=True))
        for state in outcomes:
            del self._under_way[state]
        return [
            Timed(outcomes[item.state], SECONDS) if item.state in outcomes else UNDER_WAY for item in work
        ]

    def close(self, state: EngineStateId) -> None:
        self._under_way.pop(state, None)
        super().close(state)


@pytest.mark.parametrize("seed", range(8))
def test_every_operation_is_begun_once_and_charged_what_it_took(seed: int) -> None:
    engine = Slow(seed)
    runs = [FakeRun(engine, steps=5 + number, user=f"user-{number % 2}") for number in range(4)]
    scheduler = Scheduler(engine, 4)
    for run in runs:
        scheduler.submit(run)
    scheduler.start()
    assert [run.wait() for run in runs] == [None] * 4
    scheduler.close()
    assert [run.delivered for run in runs] == [run.steps for run in runs]
    assert set(engine.begun.values()) == {1}
    assert sum(engine.begun.values()) == sum(run.steps for run in runs)
    assert engine.most_asked > 1
    for run in runs:
        # Beside its operations a run is charged what opening and the method take, which is next to nothing.
        assert run.steps * SECONDS <= run.charged < (run.steps + 1) * SECONDS
    assert not engine.open_states


@pytest.mark.parametrize("seed", range(4))
def test_jobs_lose_their_slots_between_operations(seed: int) -> None:
    """More jobs than slots, of several users: nothing that is under way is lost with its state."""
    engine = Slow(seed)
    runs = [FakeRun(engine, steps=12, user=f"user-{number}") for number in range(6)]
    scheduler = Scheduler(engine, 2)
    for run in runs:
        scheduler.submit(run)
    scheduler.start()
    assert [run.wait() for run in runs] == [None] * 6
    scheduler.close()
    assert [run.delivered for run in runs] == [12] * 6
    assert len(engine.opened) > 6
    assert set(engine.begun.values()) == {1}
    assert not engine.open_states


def test_a_job_is_cancelled_while_its_operation_is_under_way() -> None:
    engine = Slow(0)
    stopped, other = FakeRun(engine, steps=10**6), FakeRun(engine, steps=30)
    scheduler = Scheduler(engine, 4)
    for run in (stopped, other):
        scheduler.submit(run)
    scheduler.start()
    assert other.wait() is None
    stopped.stop_asked = True
    assert stopped.wait() is None
    scheduler.close()
    assert 0 < stopped.delivered < 10**6
    assert not engine.open_states


def test_sessions_are_answered_beside_jobs_that_go_on() -> None:
    engine = Slow(1)
    run = FakeRun(engine, steps=10**6)
    scheduler = Scheduler(engine, 4)
    scheduler.submit(run)
    session = FakeSession(engine)
    scheduler.add_session(session)
    scheduler.start()
    for count in range(1, 6):
        session.want(scheduler, count)
        outcome = session.wait_outcomes(count)[-1]
        assert isinstance(outcome, list)
        assert len(outcome) == count
    run.stop_asked = True
    assert run.wait() is None
    scheduler.close()
