"""How the engine runs each class of operation: one runner per class, in one registry.

To add an operation:

1. Define a frozen subclass of `core.operations.Operation` (methods yield it, so it must not import torch).
2. Write a `Runner` for it in a module of this package. A runner that treats every operation by itself is
   `one_by_one` of a function from `EngineState` and operation to a result.
3. Register it in `RUNNERS`.

A test that needs an operation of its own gives `ModelEngine` a mapping with one more entry,
``ModelEngine(served, runners={**RUNNERS, Toy: run_toy})``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pahq_server.core.activations import (
    CaptureStates,
    DescribeNeurons,
    ScoreContinuations,
    SumNeurons,
)
from pahq_server.core.codebooks import ProbeStates
from pahq_server.core.concepts import (
    AssignCodes,
    MeasureCodebook,
    NameTokens,
    StartCodebook,
    TrainCodebook,
)
from pahq_server.core.engine import Outcome
from pahq_server.core.generation import DecodeUnderCircuit
from pahq_server.core.operations import (
    EdgeGradients,
    LikeliestTokens,
    MeasureAccuracy,
    Operation,
    ScorePasses,
    in_groups,
)
from pahq_server.core.pruning import MeasureMasks, TrainMasks
from pahq_server.engine.activations.operations import (
    capture_states,
    describe_neurons,
    score_continuations,
    sum_neurons,
)
from pahq_server.engine.backends import EngineState
from pahq_server.engine.concepts.probe import probe_states
from pahq_server.engine.concepts.training import (
    assign_codes,
    measure_codebook,
    name_tokens,
    start_codebook,
    train_codebook,
)
from pahq_server.engine.generation.circuit_decoding import decode_under_circuit
from pahq_server.engine.gradients.scorer import edge_gradients
from pahq_server.engine.predictions import likeliest_tokens, measure_accuracy
from pahq_server.engine.pruning.training import measure_masks, train_masks

O = TypeVar("O", bound=Operation)  # noqa: E741 - the operation's class

# Runs operations of one class, which may belong to several jobs and models. Returns one outcome per item, in
# order: the operation's result, or the exception with which it failed. An exception that a runner raises is
# the outcome of all of its items.
Runner = Callable[[Sequence[tuple[EngineState, Any]]], Sequence[Outcome]]


def one_by_one(run: Callable[[EngineState, O], object]) -> Runner:
    """Makes a runner from a function that runs a single operation and returns its result.

    An exception that the function raises becomes the outcome of that operation alone.
    """

    def outcome(state: EngineState, operation: O) -> Outcome:
        try:
            return run(state, operation)
        except Exception as error:  # noqa: BLE001 - whatever it is concerns this operation alone
            return error

    return lambda work: [outcome(state, operation) for state, operation in work]


def score_passes(work: Sequence[tuple[EngineState, ScorePasses]]) -> list[Outcome]:
    """Measures the passes of several jobs. Jobs of one model and precision policy share batches."""

    def score(group: list[tuple[EngineState, ScorePasses]]) -> Sequence[Outcome]:
        backend = group[0][0].backend
        return backend.score([(state.executor, operation.passes) for state, operation in group])

    return list(in_groups(lambda item: id(item[0].backend), work, score))


# All operations that a server runs. An operation's own module holds its runner; this is where it is listed.
RUNNERS: Mapping[type[Operation], Runner] = {
    ScorePasses: score_passes,
    EdgeGradients: one_by_one(edge_gradients),
    LikeliestTokens: one_by_one(likeliest_tokens),
    MeasureAccuracy: one_by_one(measure_accuracy),
    DecodeUnderCircuit: one_by_one(decode_under_circuit),
    TrainMasks: one_by_one(train_masks),
    MeasureMasks: one_by_one(measure_masks),
    StartCodebook: one_by_one(start_codebook),
    TrainCodebook: one_by_one(train_codebook),
    AssignCodes: one_by_one(assign_codes),
    MeasureCodebook: one_by_one(measure_codebook),
    ProbeStates: one_by_one(probe_states),
    NameTokens: one_by_one(name_tokens),
    SumNeurons: one_by_one(sum_neurons),
    DescribeNeurons: one_by_one(describe_neurons),
    CaptureStates: one_by_one(capture_states),
    ScoreContinuations: one_by_one(score_continuations),
}
