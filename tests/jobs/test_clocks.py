"""Clocks that are set back or ahead: no negative duration, and nothing is forgotten too early."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.fake_engine import FakeEngine
from helpers.specs import acdc
from helpers.waiting import listed, result_of, wait_end

from pahq_server.api import conversion
from pahq_server.core.artifact import Progress, Records
from pahq_server.jobs import housekeeping
from pahq_server.jobs.housekeeping import DOUBT_S, DOWNTIME_S, TOLERANCE_S, RetentionClock
from pahq_server.jobs.job import Job
from pahq_server.jobs.service import JobPolicy, JobService
from pahq_server.store.database import Database
from pahq_server.store.jobs import SqliteJobStore
from pahq_server.store.records import Retention

SPEC = acdc(2.0, grouping="none")
DAY_S = 86_400.0


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the wall clock by so many seconds."""
    real, ahead = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + ahead[0])

    def by(seconds: float) -> None:
        ahead[0] += seconds

    return by


@pytest.mark.parametrize("seconds", [-12_917.0, -40 * 365 * DAY_S, 3600.0, 365 * DAY_S])
@pytest.mark.parametrize("moment", ["queued", "running"])
def test_no_time_left_is_negative_or_absurd(
    moment: str, seconds: float, set_clock: Callable[[float], None]
) -> None:
    job = Job("users/ada/jobs/1", SPEC, 100, "edges")
    if moment == "queued":
        set_clock(seconds)
    job.start()
    job.update(Progress(10), Records(b"x", 10))
    if moment == "running":
        set_clock(seconds)
    job.update(Progress(20), Records(b"x", 10))
    left = job.snapshot.eta_s(100)
    assert left is not None
    assert 0 <= left < 600  # this test has not been running for long
    told = conversion.progress(job, job.snapshot)
    assert 0 <= told.eta_seconds < 600
    # More was decided than there is: nothing that a client has to understand.
    job.update(Progress(120), Records(b"x", 10))
    assert job.snapshot.eta_s(100) == 0


def test_the_time_left_counts_from_when_this_process_took_the_job_up() -> None:
    job = Job("users/ada/jobs/1", SPEC, 100, "edges")
    assert job.snapshot.eta_s(100) is None
    job.start()
    now = job.snapshot
    assert now.begun is not None
    assert abs(now.begun[0] - time.monotonic()) < 600


@pytest.mark.parametrize("seconds", [-3600.0, -40 * 365 * DAY_S, 365 * DAY_S])
def test_what_happens_later_is_not_told_to_have_been_earlier(
    seconds: float, set_clock: Callable[[float], None]
) -> None:
    engine = FakeEngine()
    service = JobService(engine, "1", JobPolicy())
    service.start()
    engine.hold()
    job = service.create(SPEC, "")
    engine.wait_for_call()
    set_clock(seconds)
    engine.release()
    now = wait_end(job)
    assert now.started is not None
    assert now.ended is not None
    assert now.created <= now.started <= now.ended
    result = result_of(service, job)
    assert isinstance(result.run["seconds"], float)
    assert 0 <= result.run["seconds"] < 600
    assert str(result.run["started"]) <= str(result.run["ended"])
    service.close()


# How old finished jobs are


class Clocks:
    """A wall clock and one that nobody sets."""

    def __init__(self, wall: float) -> None:
        self.wall_s, self.steady_s = wall, 50.0

    def wall(self) -> float:
        return self.wall_s

    def steady(self) -> float:
        return self.steady_s

    def pass_by(self, seconds: float) -> None:
        self.wall_s += seconds
        self.steady_s += seconds

    def clock(self, known: float | None) -> RetentionClock:
        return RetentionClock(known, self.wall, self.steady)


NOW = 1_800_000_000.0


def test_time_that_passes_is_believed() -> None:
    clocks = Clocks(NOW)
    clock = clocks.clock(None)
    for _ in range(5):
        clocks.pass_by(10 * DAY_S)
        assert clock.now() == clocks.wall_s


def test_a_jump_ahead_is_believed_after_a_day(caplog: pytest.LogCaptureFixture) -> None:
    clocks = Clocks(NOW)
    clock = clocks.clock(NOW - 5)
    clock.now()
    clocks.wall_s += 365 * DAY_S
    for _ in range(3):
        assert clock.now() < NOW + DAY_S
        clocks.pass_by(DOUBT_S / 4)
    assert caplog.text.count("ahead of what it should be") == 1
    clocks.pass_by(DOUBT_S)
    assert clock.now() == clocks.wall_s


def test_a_jump_that_is_taken_back_had_no_effect() -> None:
    clocks = Clocks(NOW)
    clock = clocks.clock(None)
    clocks.wall_s += 365 * DAY_S
    assert clock.now() == NOW
    clocks.pass_by(3600.0)
    clocks.wall_s -= 365 * DAY_S
    assert clock.now() == NOW + 3600.0
    clocks.pass_by(DOUBT_S)
    assert clock.now() == clocks.wall_s


def test_a_clock_that_is_set_back_is_followed() -> None:
    clocks = Clocks(NOW)
    clock = clocks.clock(None)
    clocks.wall_s -= 365 * DAY_S
    assert clock.now() == clocks.wall_s
    clocks.wall_s += 2 * TOLERANCE_S
    assert clock.now() == NOW - 365 * DAY_S
    clocks.wall_s -= TOLERANCE_S
    assert clock.now() == clocks.wall_s


def test_a_jump_between_two_processes() -> None:
    clocks = Clocks(NOW)
    assert clocks.clock(NOW - DOWNTIME_S).now() == NOW
    doubted = clocks.clock(NOW - 10 * DAY_S)
    assert doubted.now() == NOW - 9 * DAY_S
    clocks.pass_by(DOUBT_S)
    assert doubted.now() == clocks.wall_s
    assert clocks.clock(NOW + 365 * DAY_S).now() == clocks.wall_s


def test_results_outlive_a_clock_that_jumps(
    tmp_path: Path,
    set_clock: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    passed = [0.0]
    steady = housekeeping.steady_clock
    # The default argument of the clock was bound when it was defined.
    monkeypatch.setattr(RetentionClock.__init__, "__defaults__", (time.time, lambda: steady() + passed[0]))
    store = SqliteJobStore(Database(tmp_path / "db"))
    service = JobService(FakeEngine(), "1", JobPolicy(retention=Retention(seconds=30 * DAY_S)), store=store)
    service.start()
    kept = service.create(SPEC, "", user="ada")
    result_of(service, kept)
    set_clock(365 * DAY_S)
    jumped = [service.create(SPEC, f"{number}", user="ada") for number in range(2)]
    for job in jumped:
        wait_end(job)
    service._housekeeper._prune()
    assert set(listed(service)) == {kept.name, *(job.name for job in jumped)}
    assert "ahead of what it should be" in caplog.text
    passed[0] += DOUBT_S
    service._housekeeper._ended = {"ada"}
    service._housekeeper._prune()
    assert set(listed(service)) == {job.name for job in jumped}
    service.close()
