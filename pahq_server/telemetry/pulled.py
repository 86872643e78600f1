"""What is read when Prometheus asks, rather than counted while the server works."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pahq_server.core.engine import MemoryUsage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sources:
    """Where the numbers come from. All may be called from any thread.

    Args:
        memory: of the engine.
        jobs: how many there are, by the name of their state, for every state.
        sessions: how many patching sessions are open.
        data_dir: folder of the store; None where nothing is stored.
    """

    memory: Callable[[], MemoryUsage]
    jobs: Callable[[], Mapping[str, int]]
    sessions: Callable[[], int]
    data_dir: Path | None = None


class PulledMetrics(Collector):
    """Reads `Sources` for every scrape. A source that fails is left out of that scrape, and logged."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        for read in (self._jobs, self._sessions, self._memory, self._disk):
            try:
                yield from read()
            except Exception:
                logger.exception("metrics could not be read")

    def _jobs(self) -> Iterable[Metric]:
        jobs = GaugeMetricFamily(
            "pahq_jobs",
            "Jobs that the server knows, by state. Final ones are among them until they are deleted.",
            labels=["state"],
        )
        for state, number in self._sources.jobs().items():
            jobs.add_metric([state], number)
        return [jobs]

    def _sessions(self) -> Iterable[Metric]:
        return [_gauge("pahq_sessions_open", "Patching sessions that are open.", self._sources.sessions())]

    def _memory(self) -> Iterable[Metric]:
        now = self._sources.memory()
        pages = GaugeMetricFamily(
            "pahq_pages",
            "Pages of the pool by state: used + free are all; shared ones are used, by several owners.",
            labels=["state"],
        )
        for state, number in (("used", now.used), ("shared", now.shared), ("free", now.pages - now.used)):
            pages.add_metric([state], number)
        return [
            pages,
            _gauge(
                "pahq_pages_peak", "The most pages that were used at a time, since the start.", now.peak_used
            ),
            _gauge("pahq_page_size_bytes", "Size of a page.", now.page_bytes),
            _gauge("pahq_scratch_bytes", "Memory for the values of one batch.", now.scratch_bytes),
            _counter(
                "pahq_memory_preemptions",
                "How often a job's values were dropped to make room, and computed again later.",
                now.preemptions,
            ),
            *_head_store(now),
        ]

    def _disk(self) -> Iterable[Metric]:
        if self._sources.data_dir is None:
            return []
        disk = shutil.disk_usage(self._sources.data_dir)
        return [
            _gauge("pahq_data_dir_free_bytes", "Free space where jobs are stored.", disk.free),
            _gauge("pahq_data_dir_size_bytes", "All space where jobs are stored.", disk.total),
        ]


def _head_store(now: MemoryUsage) -> Iterable[Metric]:
    store = now.head_store
    return [
        _counter("pahq_head_store_hits", "Full-precision heads that were there when wanted.", store.hits),
        _counter("pahq_head_store_misses", "Full-precision heads that had to be read.", store.misses),
        _counter(
            "pahq_head_store_moved_bytes", "Bytes of full-precision heads that were read.", store.bytes_moved
        ),
    ]


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)
