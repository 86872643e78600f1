"""How the engine finds the runner of an operation, and what becomes of operations that fail."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from helpers.zoo import Zoo

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.engine import Objective, Work
from pahq_server.core.errors import ServerError
from pahq_server.core.operations import Operation, ScorePasses
from pahq_server.core.task import PromptTask
from pahq_server.engine.backends import EngineState
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.runners import RUNNERS, one_by_one
from pahq_server.models.loading import load

PROMPTS = PromptTask(clean=((1, 2, 3), (4, 5)), corrupted=((1, 6, 3), (4, 7)))
OBJECTIVE = Objective("gpt2", PROMPTS, "kl_divergence", "resample", "group", "fp32")


@dataclass(frozen=True)
class CountLayers(Operation):
    """Adds a number to the model's layers, and remembers how often it was asked."""

    more: int
    weight: float = 1.0


def count_layers(state: EngineState, operation: CountLayers) -> tuple[int, int]:
    if operation.more < 0:
        raise ValueError("more must not be negative")
    state.kept["asked"] = state.kept.get("asked", 0) + 1
    return state.resolved.graph.layers + operation.more, state.kept["asked"]


@pytest.fixture
def engine(zoo: Zoo) -> ModelEngine:
    served = {"gpt2": load(str(zoo.path("gpt2")))}
    return ModelEngine(served, runners={**RUNNERS, CountLayers: one_by_one(count_layers)})


def test_an_operation_of_its_own_runs_beside_patched_passes(engine: ModelEngine, zoo: Zoo) -> None:
    resolved = engine.resolve(OBJECTIVE)
    states = engine.open(resolved), engine.open(resolved)
    passes = [PatchedPass(BaseCircuit(Circuit.empty(resolved.graph)))]
    work = [
        Work(states[0], CountLayers(3)),
        Work(states[1], ScorePasses(passes)),
        Work(states[0], CountLayers(4)),
        Work(states[1], CountLayers(5)),
    ]
    layers = zoo["gpt2"].architecture.layers
    first, scores, second, third = engine.run(work)
    assert (first, second, third) == ((layers + 3, 1), (layers + 4, 2), (layers + 5, 1))
    assert [scores] == engine.run([Work(states[0], ScorePasses(passes))])


def test_an_operation_that_fails_does_not_affect_the_others(engine: ModelEngine) -> None:
    state = engine.open(engine.resolve(OBJECTIVE))
    failed, counted = engine.run([Work(state, CountLayers(-1)), Work(state, CountLayers(0))])
    assert isinstance(failed, ValueError)
    assert isinstance(counted, tuple)


def test_an_operation_without_a_runner_fails_by_name(zoo: Zoo) -> None:
    engine = ModelEngine({"gpt2": load(str(zoo.path("gpt2")))})
    state = engine.open(engine.resolve(OBJECTIVE))
    (failed,) = engine.run([Work(state, CountLayers(0))])
    assert isinstance(failed, ServerError)
    assert "CountLayers" in str(failed)
