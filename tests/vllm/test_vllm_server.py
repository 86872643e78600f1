"""A server that generates text by vLLM says what one with transformers says."""

from __future__ import annotations

import pytest
from e2e.process import ServerProcess
from helpers import vllm_models

from pahq_client import Client, Samples

pytestmark = vllm_models.needs_vllm

PROMPTS = [
    "The cat saw the dog and the man gave the",
    " Lily and Tom went to the park. Lily gave the ball to",
]


def _sample(client: Client, n: int) -> Samples:
    return client.generate("demo", PROMPTS, n=n, max_tokens=30, seed=3, slots=8, logprobs=True)


def test_samples_are_those_of_transformers() -> None:
    options = ("--generation", "vllm", "--generation-memory", "16MB")
    with ServerProcess(None, *options) as server, Client(server.address) as client:
        found = _sample(client, 50)
    with ServerProcess() as other, Client(other.address) as theirs:
        expected = _sample(theirs, 50)
    alike = sum(a.ids == b.ids and a.text == b.text for a, b in zip(found, expected, strict=True))
    # The libraries round differently, which may move a token across the edge of a draw, very rarely.
    assert alike >= 99
    for one, other_one in zip(found, expected, strict=True):
        if one.ids == other_one.ids:
            assert one.finish_reason == other_one.finish_reason
            assert one.logprobs == pytest.approx(other_one.logprobs, abs=1e-4)
