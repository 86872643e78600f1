from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from helpers.scrape import parse, value
from prometheus_client import CollectorRegistry, generate_latest

from pahq_server.core.engine import HeadStoreUsage, MemoryUsage, WorkerState, WorkerStatus
from pahq_server.telemetry.metrics import LOSSES, MAX_REASONS, REASONS, WATCH, Metrics, PulledMetrics, Sources

CREATE = "pahq.v1.JobService/CreateJob"

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


@pytest.fixture
def metrics() -> Metrics:
    return Metrics([CREATE, WATCH])


def told(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return parse(generate_latest(metrics.registry).decode())


def test_what_happens_is_counted(metrics: Metrics) -> None:
    metrics.job_started(2.0)
    metrics.batch(passes=3, seconds=0.25)
    metrics.batch(passes=64, seconds=0.5)
    metrics.method_advanced(records=5, passes=8, wasted=2)
    metrics.preempted()
    metrics.rejected("quota")
    metrics.rejected("quota")
    metrics.job_ended("users/ada/jobs/1", "failed", 3.0)
    now = told(metrics)
    assert value(now, "pahq_queue_wait_seconds_sum") == 2.0
    assert value(now, "pahq_queue_wait_seconds_bucket", le="1.0") == 0
    assert value(now, "pahq_queue_wait_seconds_bucket", le="5.0") == 1
    assert value(now, "pahq_batch_passes_sum") == 67
    assert value(now, "pahq_batch_passes_bucket", le="4.0") == 1
    assert value(now, "pahq_batch_duration_seconds_count") == 2
    assert value(now, "pahq_batch_duration_seconds_sum") == 0.75
    assert value(now, "pahq_evaluations_total") == 5
    assert value(now, "pahq_search_passes_total", outcome="accepted") == 6
    assert value(now, "pahq_search_passes_total", outcome="wasted") == 2
    assert value(now, "pahq_job_preemptions_total") == 1
    assert value(now, "pahq_rejections_total", reason="quota") == 2
    assert value(now, "pahq_rejections_total", reason="auth") == 0
    assert value(now, "pahq_jobs_ended_total", state="failed") == 1
    assert value(now, "pahq_jobs_ended_total", state="succeeded") == 0


def test_workers_are_counted_by_number(metrics: Metrics) -> None:
    metrics.worker_ready(1)
    now = told(metrics)
    assert value(now, "pahq_worker_busy_seconds_total", worker="1") == 0
    assert value(now, "pahq_worker_passes_total", worker="1") == 0
    metrics.worker_worked(1, weight=13.0, seconds=0.25)
    metrics.worker_worked(1, weight=7.0, seconds=0.5)
    metrics.worker_worked(0, weight=1.0, seconds=2.0)
    metrics.worker_lost(1, "hung")
    metrics.worker_lost(1, "something else")
    now = told(metrics)
    assert value(now, "pahq_worker_busy_seconds_total", worker="1") == 0.75
    assert value(now, "pahq_worker_passes_total", worker="1") == 20
    assert value(now, "pahq_worker_busy_seconds_total", worker="0") == 2
    losses = {reason: value(now, "pahq_worker_losses_total", reason=reason) for reason in (*LOSSES, "other")}
    assert losses == {"ended": 0, "hung": 1, "refused": 0, "other": 1}


def test_calls_are_counted_while_they_run_and_at_their_end(metrics: Metrics) -> None:
    for method in (CREATE, WATCH, WATCH):
        metrics.call_started(method)
    now = told(metrics)
    assert value(now, "pahq_rpcs_in_flight", method=WATCH) == 2
    assert value(now, "pahq_watchers") == 2
    metrics.call_ended(WATCH, "CANCELLED", 100.0)
    metrics.call_ended(CREATE, "OK", 0.02)
    now = told(metrics)
    assert value(now, "pahq_watchers") == 1
    assert value(now, "pahq_rpcs_in_flight", method=CREATE) == 0
    assert value(now, "pahq_rpc_duration_seconds_count", method=WATCH, code="CANCELLED") == 1
    assert value(now, "pahq_rpc_duration_seconds_bucket", method=CREATE, code="OK", le="0.025") == 1


def test_no_client_can_make_the_server_remember_more_and_more(metrics: Metrics) -> None:
    def everything(number: int) -> None:
        metrics.call_started(f"any.Service/Method{number}")
        metrics.call_ended(f"any.Service/Method{number}", f"CODE{number}", 0.1)
        metrics.rejected(f"reason {number}")
        metrics.job_ended(f"users/u{number}/jobs/{number}", f"state {number}", 1.0)

    for number in range(MAX_REASONS + 1):
        everything(number)
    before = len(told(metrics))
    for number in range(1000):
        everything(number + MAX_REASONS + 1)
    now = told(metrics)
    assert len(now) == before
    assert value(now, "pahq_rpc_duration_seconds_count", method="other", code="UNKNOWN") == 1001 + MAX_REASONS
    assert value(now, "pahq_rejections_total", reason="other") == 1001 + len(REASONS)
    assert not any("users/" in text for _, labels in now for _, text in labels)


def test_names_help_and_labels_follow_the_rules(metrics: Metrics) -> None:
    families = list(metrics.registry.collect())
    assert len(families) >= 10
    for family in families:
        assert re.fullmatch(r"pahq_[a-z]+(_[a-z]+)*", family.name)
        assert family.documentation.endswith(".")
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mib|percent|ratio_percent)$", family.name)
        labels = {name for sample in family.samples for name in sample.labels}
        assert labels <= {"method", "code", "reason", "state", "outcome", "worker", "le"}
        if family.type == "histogram" and "duration" in family.name:
            assert family.name.endswith("_seconds")


# What is read when Prometheus asks


def pulled(sources: Sources) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    registry = CollectorRegistry()
    registry.register(PulledMetrics(sources))
    return parse(generate_latest(registry).decode())


def test_sources_are_read_at_every_scrape(tmp_path: Path) -> None:
    jobs, why = {"queued": 2, "running": 1}, [""]
    workers = [WorkerStatus(0, WorkerState.READY, restarts=3), WorkerStatus(1, WorkerState.READY)]
    sources = Sources(lambda: USAGE, lambda: jobs, lambda: 4, lambda: workers, lambda: why[0], tmp_path)
    now = pulled(sources)
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
    states = {
        state: value(now, "pahq_workers", state=state) for state in ("starting", "ready", "lost", "refused")
    }
    assert states == {"starting": 0, "ready": 2, "lost": 0, "refused": 0}
    assert [value(now, "pahq_worker_restarts_total", worker=number) for number in "01"] == [3, 0]
    assert value(now, "pahq_available") == 1
    jobs["queued"] = 0
    workers[1] = WorkerStatus(1, WorkerState.LOST, reason="its process ended")
    why[0] = "no worker is left"
    now = pulled(sources)
    assert value(now, "pahq_jobs", state="queued") == 0
    assert value(now, "pahq_workers", state="ready") == value(now, "pahq_workers", state="lost") == 1
    assert value(now, "pahq_available") == 0


def test_a_server_that_stores_nothing_tells_of_no_disk() -> None:
    now = pulled(Sources(lambda: USAGE, dict, lambda: 0, list, str))
    assert not [name for name, _ in now if name.startswith("pahq_data_dir")]


def test_a_source_that_fails_does_not_hide_the_others(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Mapping[str, int]:
        raise RuntimeError("no database")

    with caplog.at_level(logging.ERROR):
        now = pulled(Sources(lambda: USAGE, broken, lambda: 4, list, str))
    assert value(now, "pahq_sessions_open") == 4
    assert not [name for name, _ in now if name == "pahq_jobs"]
    assert "metrics could not be read" in caplog.text
