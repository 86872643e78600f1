from __future__ import annotations

import re

import pytest
from helpers.scrape import scrape, value

from pahq_server.core.engine import MemoryUsage
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.observer import Observer
from pahq_server.telemetry.metrics import Sources
from pahq_server.telemetry.telemetry import Observers, Telemetry

BUILD = {"version": "1.2.3", "torch": "9"}
USAGE = MemoryUsage(page_bytes=16, pages=7, used=6, shared=5, peak_used=6, scratch_bytes=4, preemptions=3)


def address_of(caplog: pytest.LogCaptureFixture) -> str:
    found = re.search(r"metrics on http://(\S+)/metrics", caplog.text)
    assert found
    return found[1]


def test_everything_is_on_one_page(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        telemetry = Telemetry(["S/M"], BUILD, "127.0.0.1:0")
    telemetry.read(Sources(lambda: USAGE, lambda: {"queued": 1}, lambda: 0, list, str))
    telemetry.observer.call_started("S/M")
    telemetry.observer.call_ended("S/M", "OK", 0.1)
    now = scrape(address_of(caplog))
    telemetry.close()
    telemetry.close()
    assert value(now, "pahq_build_info", **BUILD) == 1
    assert value(now, "process_start_time_seconds") > 0
    assert value(now, "process_resident_memory_bytes") > 0
    assert value(now, "pahq_jobs", state="queued") == 1
    assert value(now, "pahq_rpc_duration_seconds_count", method="S/M", code="OK") == 1


def test_two_servers_in_one_process_count_for_themselves(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        first = Telemetry([], BUILD, "127.0.0.1:0")
        address = address_of(caplog)
        second = Telemetry([], BUILD, "127.0.0.1:0")
    second.observer.preempted()
    assert value(scrape(address), "pahq_job_preemptions_total") == 0
    first.close()
    second.close()


def test_nothing_listens_unless_asked_to(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = Telemetry([], BUILD)
    telemetry.observer.batch(1, 0.1)
    telemetry.close()
    assert "metrics on" not in caplog.text


def test_a_taken_address_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        telemetry = Telemetry([], BUILD, "127.0.0.1:0")
    with pytest.raises(InvalidRequestError, match="metrics_listen"):
        Telemetry([], BUILD, address_of(caplog))
    telemetry.close()


class Notes(Observer):
    """Writes down some of what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def batch(self, passes: int, seconds: float) -> None:
        self.told.append((passes, seconds))

    def preempted(self) -> None:
        self.told.append("preempted")


def test_every_observer_is_told_everything() -> None:
    first, second = Notes(), Notes()
    both = Observers([first, second])
    both.batch(3, seconds=0.5)
    both.preempted()
    both.rejected("quota")  # none of them overrides it
    assert first.told == second.told == [(3, 0.5), "preempted"]
    public = [name for name in vars(Observer) if not name.startswith("_")]
    assert len(public) > 5
    assert all(name in vars(both) for name in public)
