from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
from helpers.scrape import parse, value
from prometheus_client import CollectorRegistry, generate_latest

from pahq_server.core.engine import HeadStoreUsage, MemoryUsage
from pahq_server.telemetry.pulled import PulledMetrics, Sources

USAGE = MemoryUsage(
    page_bytes=16,
    pages=70,
    used=60,
    shared=50,
    peak_used=65,
    scratch_bytes=400,
    preemptions=3,
    head_store=HeadStoreUsage(hits=7, misses=2, bytes_moved=1024),
)


def told(sources: Sources) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    registry = CollectorRegistry()
    registry.register(PulledMetrics(sources))
    return parse(generate_latest(registry).decode())


def test_sources_are_read_at_every_scrape(tmp_path: Path) -> None:
    jobs = {"queued": 2, "running": 1}
    sources = Sources(lambda: USAGE, lambda: jobs, lambda: 4, tmp_path)
    now = told(sources)
    assert value(now, "pahq_jobs", state="queued") == 2
    assert value(now, "pahq_sessions_open") == 4
    states = {state: value(now, "pahq_pages", state=state) for state in ("used", "shared", "free")}
    assert states == {"used": 60, "shared": 50, "free": 10}
    assert value(now, "pahq_pages_peak") == 65
    assert value(now, "pahq_page_size_bytes") == 16
    assert value(now, "pahq_scratch_bytes") == 400
    assert value(now, "pahq_memory_preemptions_total") == 3
    assert value(now, "pahq_head_store_hits_total") == 7
    assert value(now, "pahq_head_store_misses_total") == 2
    assert value(now, "pahq_head_store_moved_bytes_total") == 1024
    assert 0 < value(now, "pahq_data_dir_free_bytes") <= value(now, "pahq_data_dir_size_bytes")
    jobs["queued"] = 0
    assert value(told(sources), "pahq_jobs", state="queued") == 0


def test_a_server_that_stores_nothing_tells_of_no_disk() -> None:
    now = told(Sources(lambda: USAGE, dict, lambda: 0))
    assert not [name for name, _ in now if name.startswith("pahq_data_dir")]


def test_a_source_that_fails_does_not_hide_the_others(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Mapping[str, int]:
        raise RuntimeError("no database")

    with caplog.at_level(logging.ERROR):
        now = told(Sources(lambda: USAGE, broken, lambda: 4))
    assert value(now, "pahq_sessions_open") == 4
    assert not [name for name, _ in now if name == "pahq_jobs"]
    assert "metrics could not be read" in caplog.text
