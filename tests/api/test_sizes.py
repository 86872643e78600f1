"""Messages and texts of unusual size."""

from __future__ import annotations

import grpc
import pytest
from helpers.api_server import RunningServer, evaluation, extension, refused, spec
from pahq.v1 import server_pb2, task_pb2

Code = grpc.StatusCode


def long_prompt(letters: int) -> task_pb2.Task:
    text = task_pb2.Prompt(text="x" * letters)
    return task_pb2.Task(prompts=task_pb2.PromptTask(clean=[text]))


def test_a_message_that_is_too_large_is_refused(server: RunningServer) -> None:
    limit = server.server.GetServerInfo(server_pb2.GetServerInfoRequest()).server_info.max_message_bytes
    with refused() as refusal:
        server.create(spec(task=long_prompt(limit)))
    assert refusal.code is Code.RESOURCE_EXHAUSTED
    server.assert_alive()


def test_a_large_message_within_the_limit_is_accepted(server: RunningServer) -> None:
    asked = spec(task=long_prompt(6_000_000))
    assert server.create(asked, validate_only=True).progress.total > 0


@pytest.mark.parametrize("name", ["x" * 100_000, "é" * 50_000, "modèle\n\0«»", "'" * 9_000])
def test_a_strange_name_is_refused_like_any_other(name: str, server: RunningServer) -> None:
    """Errors travel in headers, which have limits of their own."""
    with refused() as refusal:
        server.create(spec(model=name))
    assert (refusal.code, refusal.info.reason) == (Code.NOT_FOUND, "NOT_FOUND")
    assert refusal.message.startswith("model ")
    assert refusal.message.endswith("not found; served models: toy")
    with refused() as refusal:
        edges = [f"{name}->logits"]
        server.patching.EvaluateCircuits(evaluation(edges))
    assert (refusal.code, refusal.violation[0]) == (Code.INVALID_ARGUMENT, "circuits[0].names")
    with refused() as refusal:
        server.create(extension("acdc", **{name: 1.0}))
    assert (refusal.code, refusal.info.reason) == (Code.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert refusal.violation[0].startswith("extension.parameters.")
    with refused() as refusal:
        server.create(extension(name))
    assert (refusal.code, refusal.violation[0]) == (Code.INVALID_ARGUMENT, "method")
