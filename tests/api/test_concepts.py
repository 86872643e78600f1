"""Jobs that learn concepts over gRPC: what is asked for is told as it was sent, errors name its fields."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from helpers.api_server import RunningServer, objective, refused
from pahq.v1 import jobs_pb2 as pb
from pahq.v1 import methods_pb2


def spec(**parameters: Any) -> pb.JobSpec:
    given = {"low": 0, "high": 1, "codes": 2, "neighbours": 1, "decoder_heads": 1, "skip": 0} | parameters
    return pb.JobSpec(objective=objective(), concepts=methods_pb2.ConceptsParameters(**given))


def test_the_request_is_told_as_it_was_sent(server: RunningServer) -> None:
    told = server.create(spec(seed=7, temperature=2.5, memory="continuous")).spec.concepts
    assert (told.low, told.high, told.codes, told.neighbours, told.seed) == (0, 1, 2, 1, 7)
    assert (told.temperature, told.memory, told.skip) == (2.5, "continuous", 0)
    # What was left open is told as its default.
    assert (told.steps, told.batch, told.max_states, told.decoder_layers) == (1000, 512, 1_000_000, 6)
    assert told.learning_rate == 0.001


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (spec(high=99), "high"),
        (spec(low=1, high=0), "concepts.high"),
        (spec(codes=8000), "codes"),
        (spec(memory="all"), "concepts.memory"),
        (spec(temperature=0.0), "concepts.temperature"),
        (spec(learning_rate=float("inf")), "concepts.learning_rate"),
        (spec(steps=-1), "concepts.steps"),
    ],
)
def test_what_cannot_be_is_refused(server: RunningServer, asked: pb.JobSpec, field: str) -> None:
    with refused() as refusal:
        server.create(asked)
    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.message.startswith(f"{field}: ")
