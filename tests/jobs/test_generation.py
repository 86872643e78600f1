"""Jobs that sample text beside others, and what becomes of them."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_engine import GRAPH, OBJECTIVE, FakeEngine
from helpers.specs import acdc
from helpers.waiting import result_of, wait_end, wait_state, wait_until

from pahq_server.core.artifact import unpack
from pahq_server.core.circuit import EdgeSet
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.generation import DecodeUnderCircuit
from pahq_server.core.task import PromptTask
from pahq_server.jobs.job import JobState
from pahq_server.jobs.service import JobPolicy, JobService
from pahq_server.jobs.spec import JobSpec
from pahq_server.methods.generate.parameters import GenerateParameters
from pahq_server.store.database import Database
from pahq_server.store.jobs import SqliteJobStore

PROMPTS = PromptTask(clean=((1, 2, 3), (4, 5)))


def generate(**parameters: object) -> JobSpec:
    values: dict[str, object] = {"n": 6, "max_tokens": 20, "slots": 3, "seed": 1, "policy": "fifo"}
    # Resample ablation would need corrupted prompts, if anything was ablated.
    objective = replace(OBJECTIVE, task=PROMPTS)
    return JobSpec(objective, "generate", GenerateParameters(**(values | parameters)))  # type: ignore[arg-type]


def start(path: Path, engine: FakeEngine | None = None) -> tuple[JobService, FakeEngine]:
    engine = engine or FakeEngine()
    service = JobService(engine, "1.2.3", JobPolicy(), store=SqliteJobStore(Database(path / "jobs.sqlite3")))
    service.start()
    return service, engine


def test_finished_samples_survive_a_server_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    killed, held = start(tmp_path / "first")
    held.hold()
    job = killed.create(generate(), "")
    held.let(3)
    for _ in range(4):
        held.wait_for_call()
    before = job.snapshot
    assert 0 < before.progress.done < 12
    shutil.copytree(tmp_path / "first", tmp_path / "then", ignore=shutil.ignore_patterns("*-shm"))
    service, engine = start(tmp_path / "then")
    found = result_of(service, service.find(job.name))
    held.release()
    undisturbed = result_of(killed, job)
    assert found.artifact.data == undisturbed.artifact.data
    assert found.run["counts"]["replayed"] == before.records  # type: ignore[index]
    assert len(engine.steps) < len(held.steps)
    assert not engine.opened[0].activations
    for each in (killed, service):
        each.close()


def interrupted(path: Path) -> tuple[str, int, Path]:
    """Stops a job that has some samples: its name, how many, and what is on disk."""
    (path / "first").mkdir()
    service, engine = start(path / "first")
    engine.hold()
    job = service.create(generate(), "")
    engine.let(3)
    for _ in range(4):
        engine.wait_for_call()
    done = job.snapshot.progress.done
    shutil.copytree(path / "first", path / "then", ignore=shutil.ignore_patterns("*-shm"))
    engine.release()
    service.close()
    assert 0 < done < 12
    return job.name, done, path / "then"


def test_samples_of_another_backend_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    name, _, path = interrupted(tmp_path)
    engine = FakeEngine()
    assert engine.offer is not None
    engine.offer = replace(engine.offer, backend="vllm")
    service, _ = start(path, engine)
    found = result_of(service, service.find(name))
    assert found.run["counts"]["replayed"] == 0  # type: ignore[index]
    assert found.request["generation"] == {"backend": "vllm", "version": "0"}
    service.close()


def test_samples_outlive_a_server_that_generates_no_text(tmp_path: Path) -> None:
    name, done, path = interrupted(tmp_path)
    engine = FakeEngine()
    engine.offer = None
    service, _ = start(path, engine)
    now = wait_end(service.find(name))
    assert now.state is JobState.FAILED
    assert "cannot go on after a restart" in now.error
    assert "the abacus does not speak" in now.error
    found = service.artifact(name)
    assert found is not None
    assert found.partial
    _, arrays = unpack(found.artifact.data)
    assert len(arrays["finish"]) == done
    assert not {"generation"} & found.request.keys()  # by what it was generated is not known here
    assert not engine.opened
    service.close()


def test_equal_requests_share_samples_and_others_do_not(tmp_path: Path) -> None:
    engine = FakeEngine()
    service = JobService(
        engine, "1", JobPolicy(reuse=True), store=SqliteJobStore(Database(tmp_path / "jobs.sqlite3"))
    )
    service.start()
    first = result_of(service, service.create(generate(), ""))
    steps = len(engine.steps)
    assert result_of(service, service.create(generate(), "")).artifact.data == first.artifact.data
    assert len(engine.steps) == steps
    other = result_of(service, service.create(generate(seed=2), ""))
    assert other.artifact.data != first.artifact.data
    assert engine.offer is not None
    engine.offer = replace(engine.offer, version="another")  # may sample differently
    result_of(service, service.create(generate(), ""))
    assert len(engine.steps) > 2 * steps
    service.close()


def test_a_request_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    service, engine = start(tmp_path)
    with pytest.raises(InvalidRequestError, match="context of 64"):
        service.create(generate(max_tokens=99), "")
    engine.offer = None
    with pytest.raises(InvalidRequestError, match="the abacus does not speak"):
        service.create(generate(), "")
    service.close()


def test_sampling_and_searching_of_two_users_take_turns(tmp_path: Path) -> None:
    service, engine = start(tmp_path)
    engine.hold()
    text = service.create(generate(n=1000, slots=1), "", "ada")
    search = service.create(acdc(2.0), "", "bob")
    engine.release()
    wait_state(search, JobState.SUCCEEDED)
    steps = list(engine.steps)
    kinds = Counter(engine.opened[state].activations for step in steps for state in step)
    assert not text.snapshot.state.final
    assert text.snapshot.progress.done > 0
    assert min(kinds.values()) >= 5
    service.cancel(text.name)
    wait_end(text)
    service.close()


def test_a_job_that_is_cancelled_gives_up_its_slot_and_keeps_its_samples(tmp_path: Path) -> None:
    service, engine = start(tmp_path)
    engine.hold()
    job = service.create(generate(n=300), "")
    engine.let(5)
    wait_until(job, lambda now: now.progress.done >= 1)
    service.cancel(job.name)
    engine.release()
    assert wait_end(job).state is JobState.CANCELLED
    assert not engine.open_states
    found = service.artifact(job.name)
    assert found is not None
    assert found.partial
    _, arrays = unpack(found.artifact.data)
    assert 0 < len(arrays["finish"]) < 600
    service.close()


def test_samples_under_a_circuit_survive_a_server_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    killed, held = start(tmp_path / "first")
    held.offer = None  # it needs no backend
    held.hold()
    circuit = EdgeSet(
        GRAPH, "c0ffee", np.packbits(np.ones(GRAPH.num_edges, bool), bitorder="little").tobytes()
    )
    task = replace(PROMPTS, corrupted=((1, 2, 9), (4, 9)))
    spec = generate(slots=None, circuit=circuit)
    job = killed.create(replace(spec, objective=replace(spec.objective, task=task)), "")
    held.let(40)
    for _ in range(41):
        held.wait_for_call()
    before = job.snapshot
    assert 0 < before.progress.done < 12
    shutil.copytree(tmp_path / "first", tmp_path / "then", ignore=shutil.ignore_patterns("*-shm"))
    service, engine = start(tmp_path / "then")
    seen: list[DecodeUnderCircuit] = []
    decode = engine.operations[DecodeUnderCircuit]
    engine.operations[DecodeUnderCircuit] = lambda operation: (seen.append(operation), decode(operation))[1]
    found = result_of(service, service.find(job.name))
    held.release()
    undisturbed = result_of(killed, job)
    assert found.artifact.data == undisturbed.artifact.data
    assert found.run["counts"]["replayed"] == before.records  # type: ignore[index]
    assert len(seen) < len(held.steps)
    assert {each.corrupted for each in seen} <= {((1, 2, 9),), ((4, 9),)}
    assert all(each.circuit.kept.all() for each in seen)
    assert found.request["generation"] == {"backend": "pahq", "version": "0"}
    for each in (killed, service):
        each.close()
