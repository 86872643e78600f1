"""Random operations of several jobs on real models: whoever dies, the outcomes are those of one engine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from helpers import random_models
from helpers.fake_generator import FakeBackend
from helpers.random_passes import random_passes, random_task

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.engine import EngineStateId, Objective, Outcome, ResolvedObjective, Work
from pahq_server.core.errors import NoWorkerError, ServerError
from pahq_server.core.generation import Decode, SampleRequest, Sampling
from pahq_server.core.operations import (
    EdgeGradients,
    LikeliestTokens,
    MeasureAccuracy,
    Operation,
    ScorePasses,
)
from pahq_server.core.task import PromptTask
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.sparse.base_activations import BaseActivations
from pahq_server.engine.worker import Worker
from pahq_server.models.loading import LoadedModel, load
from pahq_server.workers import dispatch, states
from pahq_server.workers.host import WorkerHost
from pahq_server.workers.messages import Call, CloseState, OpenState, RunOperations, WorkerInfo
from pahq_server.workers.pool import RemotePool

from .fake_workers import finished
from .thread_cluster import Die, Fault, ThreadCluster, sent

ROUNDS = 8
KINDS = (("gpt2", "kl_divergence"), ("gpt2", "logit_difference"), ("llama", "l2"))
Models = dict[str, LoadedModel]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    """Workers are threads here: two that compute share none."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    directory = tmp_path_factory.mktemp("models")
    random_models.gpt2().save_pretrained(directory / "gpt2")
    random_models.llama().save_pretrained(directory / "llama")
    return {name: load(str(directory / name)) for name in ("gpt2", "llama")}


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """All work is spread, however little it is."""
    monkeypatch.setattr(dispatch, "LEAST_S", 1e-5)
    monkeypatch.setattr(states, "OPENINGS", 0.0)


def make_worker(models: Models) -> Worker:
    return Worker(models, generation=FakeBackend())


def objectives(engine: ModelEngine, models: Models) -> list[ResolvedObjective]:
    """Jobs on both models, and one without activations, which generates text."""
    found = []
    for seed, (name, metric) in enumerate(
        [("gpt2", "kl_divergence"), ("gpt2", "logit_difference"), ("llama", "l2")]
    ):
        task = random_task(models[name].model, seed=seed)
        answers = [tuple((token,) for token in tokens or ()) for tokens in (task.answers, task.wrong_answers)]
        prompts = PromptTask(task.clean, task.corrupted or (), *answers)
        found.append(engine.resolve(Objective(name, prompts, metric, "resample", "group", "fp32")))
    prompts = PromptTask(clean=((1, 2), (3, 4, 5)))
    text = Objective("gpt2", prompts, "kl_divergence", "zero", "group", "fp32")
    return [*found, engine.resolve(text, activations=False)]


def random_operation(resolved: ResolvedObjective, random: Random) -> Operation:
    """One of any class that the objective allows."""
    task, graph = resolved.task, resolved.graph
    if not resolved.activations:
        # Others each time: those of an operation that runs again on a new state begin again.
        requests = [
            SampleRequest(random.getrandbits(30), prompt, random.getrandbits(30), Sampling(max_tokens=9))
            for prompt in task.clean
        ]
        return Decode(requests, random.randint(1, 9), sum(map(len, task.clean)))
    prompts = len(task.clean)
    first = random.randrange(prompts)
    choices: list[Callable[[], Operation]] = [
        lambda: ScorePasses(random_passes(graph, random.randrange(5))[: random.randint(1, 60)]),
        lambda: ScorePasses(random_passes(graph, random.randrange(5))),
        lambda: EdgeGradients(first, random.randint(first + 1, prompts), prompts, graph.num_edges),
        lambda: LikeliestTokens(prompts, random.randint(1, 5)),
        lambda: MeasureAccuracy(random.random() < 0.5),
    ]
    return random.choice(choices)()


def plain(outcome: Outcome) -> object:
    """An outcome as values that compare bit by bit."""
    if isinstance(outcome, np.ndarray):
        return outcome.tobytes()
    if isinstance(outcome, Exception):
        return repr(outcome)
    if hasattr(outcome, "logits"):
        return [outcome.ids.tobytes(), outcome.logits.tobytes(), outcome.probabilities.tobytes()]
    return getattr(outcome, "samples", outcome)


@dataclass
class Script:
    """What is asked in one test: batches of operations of one class and model, and when jobs close."""

    seed: int

    def run(self, engine: Any, resolved: list[ResolvedObjective], wait: Callable[[], object]) -> list[object]:
        """Everything that came of it."""
        random, found = Random(self.seed), []
        opened = [persist(lambda each=each: engine.open(each), wait) for each in resolved]
        found += [each.clean_run.margins for each in resolved]
        for _ in range(ROUNDS):
            asked: dict[tuple[str, type], list[tuple[EngineStateId, Operation]]] = {}
            for each, state in zip(resolved, opened, strict=True):
                operation = random_operation(each, random)
                asked.setdefault((each.objective.model, type(operation)), []).append((state, operation))
            for pairs in asked.values():
                found += map(plain, self._outcomes(engine, pairs, wait))
            if random.random() < 0.3:  # one job ends, and one like it begins
                at = random.randrange(len(opened))
                engine.close(opened[at])
                opened[at] = persist(lambda at=at: engine.open(resolved[at]), wait)
        for state in opened:
            engine.close(state)
        return found

    def _outcomes(
        self, engine: Any, pairs: list[tuple[EngineStateId, Operation]], wait: Callable[[], object]
    ) -> list[Outcome]:
        done: dict[int, Outcome] = {}
        while len(done) < len(pairs):
            left = [number for number in range(len(pairs)) if number not in done]
            outcomes = engine.run([Work(*pairs[number]) for number in left])
            lost = [isinstance(outcome, NoWorkerError) for outcome in outcomes]
            done |= {n: o for n, o, gone in zip(left, outcomes, lost, strict=True) if not gone}
            if any(lost):
                wait()
        return [done[number] for number in range(len(pairs))]


def persist(call: Callable[[], Any], wait: Callable[[], object]) -> Any:
    while True:
        try:
            return call()
        except NoWorkerError:
            wait()


@pytest.mark.parametrize(("size", "kills"), [(3, 0.0), (1, 0.15), (2, 0.15), (3, 0.15)])
def test_outcomes_are_those_of_one_engine(models: Models, size: int, kills: float) -> None:
    local = ModelEngine(models, generation=FakeBackend())
    script, random, lock = Script(size), Random(size), threading.Lock()
    expected = script.run(local, objectives(local, models), lambda: pytest.fail("it has a worker"))

    def fault(worker: int, number: int, call: Call) -> None:
        with lock:
            if random.random() < kills:
                raise Die("a test killed it")

    found, cluster = pooled(models, size, script, fault)
    assert found == expected
    assert (cluster.losses > 0) == (kills > 0)
    assert size == 1 or sum(map(bool, cluster.calls)) == size  # all have worked


def pooled(models: Models, size: int, script: Script, fault: Fault) -> tuple[list[object], ThreadCluster]:
    said = WorkerHost(make_worker(models)).info()  # measures how fast it is, which takes a while

    class Host(WorkerHost):
        def info(self) -> WorkerInfo:
            return said

    cluster = ThreadCluster(size, lambda worker: Host(make_worker(models)), fault)
    pool = RemotePool(cluster)
    back = threading.Event()
    pool.start()
    try:
        engine = ModelEngine(models, generation=FakeBackend())  # resolves
        found = script.run(_Both(engine, pool), objectives(engine, models), lambda: back.wait(0.005))
    finally:
        pool.stop()
    return found, cluster


class _Both:
    """What a script needs of an engine, from a pool."""

    def __init__(self, engine: ModelEngine, pool: RemotePool) -> None:
        self.open, self.close = pool.open, pool.close
        self.run = partial(finished, pool)


# A base circuit is computed once


def graph_of(models: Models) -> Any:
    return models["gpt2"].model.architecture.graph("group")


def test_base_circuits_keep_their_activations_from_message_to_message(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[bytes] = []
    right = BaseActivations.from_scratch

    def counted(unpatched: Any, circuit: Circuit) -> BaseActivations:
        computed.append(circuit.key)
        return right(unpatched, circuit)

    monkeypatch.setattr(BaseActivations, "from_scratch", counted)
    engine = ModelEngine(models)
    cluster = ThreadCluster(1, lambda worker: WorkerHost(make_worker(models)))
    pool = RemotePool(cluster)
    pool.start()
    state = pool.open(objectives(ModelEngine(models, generation=FakeBackend()), models)[0])
    graph = graph_of(models)
    base = BaseCircuit(Circuit.full(graph))
    child = BaseCircuit(base.circuit.without((3,)), base)
    for edges in ((1, 2), (4, 5, 6), (7,)):
        passes = [PatchedPass(each, (edge,)) for edge in edges for each in (base, child)]
        (outcome,) = finished(pool, [Work(state, ScorePasses(passes))])
        assert len(outcome) == len(passes)  # type: ignore[arg-type]
    pool.stop()
    assert engine.memory_usage().used == 0
    assert computed == [base.circuit.key]


def test_a_host_does_not_take_one_job_for_another(models: Models, tmp_path: Path) -> None:

    host = WorkerHost(make_worker(models))
    first, second, *_ = objectives(ModelEngine(models, generation=FakeBackend()), models)
    host.run(OpenState(EngineStateId(0), first))
    host.run(sent(OpenState(EngineStateId(0), first)))  # the same again
    with pytest.raises(ServerError, match="with another objective"):
        host.run(OpenState(EngineStateId(0), second))
    host.run(CloseState(EngineStateId(0)))
    host.run(CloseState(EngineStateId(0)))
    host.run(OpenState(EngineStateId(0), second))
    missing = host.run(RunOperations(((EngineStateId(5), MeasureAccuracy(False)),)))
    assert "state 5 is not open" in str(missing.outcomes[0])  # type: ignore[attr-defined]
