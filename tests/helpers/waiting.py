"""Waiting for jobs, never for a fixed time."""

from __future__ import annotations

import threading
from collections.abc import Callable

from helpers.fake_engine import OBJECTIVE, PATIENCE_S, FakeEngine
from pahq_server.core.errors import NotFoundError
from pahq_server.jobs.job import Job, JobState, Snapshot
from pahq_server.jobs.service import JobService
from pahq_server.store.records import StoredArtifact


def wait_until(job: Job, condition: Callable[[Snapshot], bool]) -> Snapshot:
    """The job's snapshot once it meets a condition."""
    changed = threading.Event()
    stop_listening = job.listen(changed.set)
    try:
        while True:
            changed.clear()
            now = job.snapshot
            if condition(now):
                return now
            assert changed.wait(PATIENCE_S), f"the job is still {now}"
    finally:
        stop_listening()


def wait_end(job: Job) -> Snapshot:
    return wait_until(job, lambda now: now.state.final)


def wait_state(job: Job, state: JobState) -> Snapshot:
    return wait_until(job, lambda now: now.state is state)


def listed(service: JobService) -> list[str]:
    """Names of all jobs, newest first."""
    return [job.name for job in service.page(None, 1000)[0]]


def wait_until_forgotten(service: JobService, name: str) -> None:
    for _ in range(int(PATIENCE_S / 0.01)):
        try:
            service.find(name)
        except NotFoundError:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"{name} is still there")


def result_of(service: JobService, job: Job) -> StoredArtifact:
    """The artifact of a job, once it has ended."""
    wait_end(job)
    result = service.artifact(job.name)
    assert result is not None, job.snapshot
    return result


def close_in_mid_step(service: JobService, engine: FakeEngine) -> None:
    """Closes a service whose engine is held in a call, and lets the call end once it is closing."""
    closing = threading.Thread(target=service.close)
    closing.start()
    # What is asked for now is turned away at once, or it waits: the engine is held.
    while not service.evaluations.evaluate(OBJECTIVE, [[]]).future.done():
        threading.Event().wait(0.001)
    engine.release()
    closing.join(PATIENCE_S)
    assert not closing.is_alive(), "the service did not close"
