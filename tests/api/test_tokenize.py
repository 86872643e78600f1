"""The call that shows how texts are tokenized; and a real engine whose tokenizer hangs."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from helpers.api_server import RunningServer, refused, spec
from helpers.fake_engine import FakeEngine
from helpers.random_models import llama
from helpers.tokenizers import llama_like, with_bomb
from pahq.v1 import jobs_pb2 as pb
from pahq.v1 import model_pb2, task_pb2
from transformers import PreTrainedTokenizerFast

from pahq_server.core.errors import InvalidRequestError
from pahq_server.engine import catalogue
from pahq_server.engine.engine import ModelEngine
from pahq_server.models.loading import load
from pahq_server.tasks.time_limit import Bounds, TimeLimit

Code = grpc.StatusCode


def request(*texts: str, model: str = "toy", **rest: object) -> model_pb2.TokenizeTextsRequest:
    return model_pb2.TokenizeTextsRequest(model=model, texts=texts, **rest)  # type: ignore[arg-type]


def test_texts_come_back_in_order(server: RunningServer) -> None:
    found = server.models.TokenizeTexts(request("ab", "", "c")).texts
    assert list(found) == [
        model_pb2.TokenizedText(
            text="ab", ids=[0, 97, 98], tokens=["<s>", "a", "b"], answer_note="no answer to ''"
        ),
        model_pb2.TokenizedText(text="", ids=[0], tokens=["<s>"], answer_note="no answer to ''"),
        model_pb2.TokenizedText(text="c", ids=[0, 99], tokens=["<s>", "c"], answer_id=99, answer_token="c"),
    ]


def test_the_options_arrive(server: RunningServer) -> None:
    (found,) = server.models.TokenizeTexts(request("c", omit_special_tokens=True, prompt="c")).texts
    assert (list(found.ids), found.HasField("answer_id"), found.answer_note) == (
        [99],
        False,
        "no answer to 'c'",
    )


def test_what_cannot_be_asked(server: RunningServer, engine: FakeEngine) -> None:
    with refused() as refusal:
        server.models.TokenizeTexts(request("a", model="other"))
    assert (refusal.code, refusal.info.reason) == (Code.NOT_FOUND, "NOT_FOUND")
    with refused() as refusal:
        server.models.TokenizeTexts(request())
    assert refusal.violation == ("texts", "at least one text is needed")
    engine.failures["toy"].resolve = InvalidRequestError("texts[0]", "cannot be tokenized")
    with refused() as refusal:
        server.models.TokenizeTexts(request("a"))
    assert (refusal.code, refusal.violation[0]) == (Code.INVALID_ARGUMENT, "texts[0]")


# With models


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model with 200 tokens and room for 16."""
    llama(vocab_size=200).save_pretrained(tmp_path)
    return tmp_path


class RealEngine(ModelEngine):
    """Serves the model of a directory as "toy"; nobody holds it."""

    def __init__(self, directory: Path) -> None:
        super().__init__({"toy": load(str(directory))})

    def release(self) -> None:
        """For the running server."""


def task(**texts: list[str]) -> task_pb2.Task:
    prompts = {name: [task_pb2.Prompt(text=text) for text in values] for name, values in texts.items()}
    return task_pb2.Task(prompts=task_pb2.PromptTask(**prompts))


def test_warnings_of_a_task_come_with_its_estimate_and_its_job(directory: Path) -> None:
    tokenizer = llama_like(["Tom", "Ben"], bare=["Tom"])
    tokenizer._tokenizer.save_pretrained(directory)
    texts = {"clean": ["to"], "corrupted": ["go"], "answers": ["Tom"], "wrong_answers": [" Ben"]}
    asked = spec(task=task(**texts), metric="logit_difference", threshold=1e9)
    with RunningServer(RealEngine(directory)) as server:  # type: ignore[arg-type]
        checked = server.job_stub.CreateJob(pb.CreateJobRequest(spec=asked, validate_only=True))
        created = server.create(asked)
        server.events(created.name)
    for warnings in (checked.estimate.warnings, created.warnings):
        (told,) = (
            text for text in warnings if text.startswith("task.answers[0]: 'Tom' is the token '▁Tom' (")
        )
        assert "the same text is the token 'Tom' (" in told
    assert not any("wrong_answers" in text for text in created.warnings)


def test_a_tokenizer_that_hangs_fails_its_calls_and_no_others(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "TimeLimit", lambda: TimeLimit(Bounds(text_s=0.1, stuck=1)))
    PreTrainedTokenizerFast(tokenizer_object=with_bomb()).save_pretrained(directory)
    bomb = ("a" * 29 + "!") * 60
    with RunningServer(RealEngine(directory)) as server:  # type: ignore[arg-type]
        with refused() as refusal:
            server.create(spec(task=task(clean=[bomb], corrupted=[bomb])))
        assert (refusal.code, refusal.violation[0]) == (Code.INVALID_ARGUMENT, "task")
        assert "tokenizing of one text took longer than 0.1 s and was given up" in refusal.message
        with refused() as refusal:
            server.models.TokenizeTexts(request(bomb))
        assert (refusal.code, refusal.info.reason) == (Code.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED")
        assert "the model's tokenizer hangs" in refusal.message
        # Token ids need no tokenizer.
        server.finish(spec(threshold=1e9))
