"""The job service over a made-up engine, in a process that dies where it is told. Light: it starts at once.

Run as a script with a JSON object of settings. Reads one command per line from standard input, and answers
each with one line on standard output.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from dying import die_at
from helpers.fake_engine import OBJECTIVE, FakeEngine
from helpers.waiting import wait_end, wait_until_forgotten
from pass_log import LoggedEngine

from pahq_server.core.engine import Objective, ResolvedObjective
from pahq_server.core.task import PromptTask, TokenTask
from pahq_server.jobs.service import JobPolicy, JobService
from pahq_server.jobs.spec import JobSpec
from pahq_server.methods.acdc.method import AcdcParameters
from pahq_server.store.directory import StorageConfig, opened
from pahq_server.store.jobs import SqliteJobStore
from pahq_server.store.records import Retention, StoredArtifact


class Engine(LoggedEngine, FakeEngine):
    """Writes down what it was asked, and tells tasks apart."""

    def resolve(self, objective: Objective, activations: bool = True) -> ResolvedObjective:
        assert isinstance(objective.task, PromptTask)
        resolved = super().resolve(objective)
        return replace(resolved, task=TokenTask(objective.task.clean))  # type: ignore[arg-type]


def spec_of(threshold: float, prompt: int) -> JobSpec:
    task = replace(OBJECTIVE.task, clean=((1, prompt),), corrupted=((1, 5),))  # type: ignore[type-var]
    # Without gates: one of a single edge is the same pass as that edge, which would look like lost work.
    return JobSpec(replace(OBJECTIVE, task=task), "acdc", AcdcParameters(threshold, "none"))


def canonical(found: StoredArtifact | None) -> str | None:
    """All that must be the same of a job that succeeded, to the last bit."""
    if found is None or found.partial:
        return None
    artifact = found.artifact
    return repr((artifact.kind, artifact.version, hashlib.sha256(artifact.data).hexdigest()))


class Commands:
    """What a line may ask for, by name."""

    def __init__(self, engine: Engine, jobs: JobService) -> None:
        self._engine, self._jobs = engine, jobs

    def create(self, request_id: str, threshold: float, prompt: int) -> str:
        return self._jobs.create(spec_of(threshold, prompt), request_id).name

    def result(self, name: str) -> list[Any]:
        now = wait_end(self._jobs.find(name))
        return [now.state.name, now.sequence, canonical(self._jobs.artifact(name))]

    def list(self) -> list[str]:
        return [job.name for job in self._jobs.page(None, 1000)[0]]

    def sequence(self, name: str) -> int:
        return self._jobs.find(name).snapshot.sequence

    def cancel(self, name: str) -> None:
        self._jobs.cancel(name)

    def delete(self, name: str) -> None:
        self._jobs.delete(name)

    def wait_forgotten(self, name: str) -> None:
        wait_until_forgotten(self._jobs, name)

    def hold(self) -> None:
        self._engine.hold()

    def release(self) -> None:
        self._engine.release()


def main(settings: dict[str, Any]) -> None:
    config = StorageConfig(Path(settings["data"]), failpoint=die_at(settings["die_at"] or ":0"))
    engine = Engine()
    engine.log_into(Path(settings["passes"]))
    with opened(config) as database:
        policy = JobPolicy(window=4, retention=Retention(jobs=settings["keep"]))
        jobs = JobService(engine, "1", policy, store=SqliteJobStore(database))
        jobs.start()
        commands = Commands(engine, jobs)
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            print(json.dumps(getattr(commands, name)(*arguments)), flush=True)
        engine.release()
        jobs.close()


if __name__ == "__main__":
    threading.current_thread().name = "commands"
    main(json.loads(sys.argv[1]))
