"""Going on with jobs that an earlier process left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from pahq_server.core.engine import Engine, Prepared
from pahq_server.core.errors import ServerError, StorageError
from pahq_server.jobs import spec_json
from pahq_server.jobs.job import Job, JobState
from pahq_server.jobs.journal import StoredJournal
from pahq_server.jobs.runs import DiscoveryRun, Surroundings
from pahq_server.jobs.spec import DiscoverySpec
from pahq_server.search.base import SearchProgress
from pahq_server.store.base import JobStore
from pahq_server.store.records import JobRecord

# So often a job may be there when the server dies: else one that kills it would do so for ever.
MOST_DEATHS = 5

logger = logging.getLogger(__name__)


class Resumption:
    """Makes runs of stored jobs. A job that cannot go on ends, and says why.

    Args:
        engine: checks their measurements again.
        store: holds their verdicts.
        around: what all runs share.
        content: key of all that determines a job's result.
    """

    def __init__(
        self,
        engine: Engine,
        store: JobStore,
        around: Surroundings,
        content: Callable[[DiscoverySpec, Prepared], bytes],
    ) -> None:
        self._engine, self._store, self._around, self._content = engine, store, around, content

    def resume(self, record: JobRecord) -> tuple[Job, DiscoveryRun | None]:
        """The job, and its run unless it has ended. Raises StorageError."""
        spec = spec_json.decode(record.spec, self._store.prompts(record.id))
        if record.snapshot.state is JobState.CANCELLING:
            job = self._new_job(record, spec)
            job.end_cancelled()
            return job, None
        try:
            prepared = self._prepare(record, spec)
            return self._go_on(record, spec, prepared)
        except StorageError:
            raise
        except Exception as error:
            logger.warning("%s cannot go on", record.name, exc_info=error)
            job = self._new_job(record, spec)
            job.fail(_explained(error))
            return job, None

    def _prepare(self, record: JobRecord, spec: DiscoverySpec) -> Prepared:
        if record.snapshot.deaths > MOST_DEATHS:
            deaths = record.snapshot.deaths
            raise ServerError(f"the server died {deaths} times while it ran, without coming further")
        prepared = self._engine.prepare(spec.measurement)
        if prepared.revision != record.revision:
            raise ServerError(
                f"model {spec.measurement.model!r} has revision {prepared.revision} now; the discovery was "
                f"accepted for {record.revision}"
            )
        return prepared

    def _go_on(self, record: JobRecord, spec: DiscoverySpec, prepared: Prepared) -> tuple[Job, DiscoveryRun]:
        content = self._content(spec, prepared)
        if content != record.content:
            record = self._begin_again(record, content)
        verdicts = self._store.verdicts(record.id)
        job = self._new_job(record, spec, len(verdicts))
        run = DiscoveryRun(job, prepared, self._around, verdicts)
        logger.info("%s goes on after %d evaluations", record.name, len(verdicts))
        return job, run

    def _begin_again(self, record: JobRecord, content: bytes) -> JobRecord:
        """Scores of another version or other hardware are not mixed with new ones."""
        logger.warning("%s begins again: it was begun by another version or on other hardware", record.name)
        before = record.snapshot
        now = replace(
            before,
            progress=SearchProgress(0, 0, 0.0),
            evaluations=0,
            dropped=before.dropped + before.evaluations,
        )
        self._store.begin_again(record.id, content, now)
        return replace(record, content=content, snapshot=now)

    def _new_job(self, record: JobRecord, spec: DiscoverySpec, verdicts: int = 0) -> Job:
        journal = StoredJournal(self._store, record.id, verdicts)
        now = replace(record.snapshot, resumed=(time.time(), record.snapshot.progress.decided))
        facts = spec_json.facts(record.spec)
        return Job(record.name, spec, record.total, now, journal, self._around.ended, facts)


def _explained(error: Exception) -> Exception:
    """The error, which says since when."""
    return ServerError(f"cannot go on after a restart: {error}") if isinstance(error, ServerError) else error
