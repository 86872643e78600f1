"""PredictTokens and CheckTask: what arrives, what comes back, what is refused."""

from __future__ import annotations

import asyncio
import threading

import grpc
import pytest
from helpers.api_server import RunningServer, refused, token_ids
from helpers.fake_engine import CLEAN, CORRUPTED, FakeEngine
from pahq.v1 import model_pb2, task_pb2

from pahq_server.api import info

Code = grpc.StatusCode


@pytest.fixture
def engine(engine: FakeEngine) -> FakeEngine:
    engine.answers = {"answers": (4,), "wrong_answers": (5,)}
    return engine


def predict(*prompts: tuple[int, ...], **fields: object) -> model_pb2.PredictTokensRequest:
    return model_pb2.PredictTokensRequest(model="toy", prompts=token_ids(*prompts), **fields)  # type: ignore[arg-type]


def check(**fields: object) -> model_pb2.CheckTaskRequest:
    prompts = {"clean": (1, 2), "corrupted": (1, 3), "answers": (4,), "wrong_answers": (5,)} | fields
    task = {name: token_ids(ids) for name, ids in prompts.items() if ids is not None}  # type: ignore[arg-type]
    return model_pb2.CheckTaskRequest(
        model="toy",
        task=task_pb2.Task(prompts=task_pb2.PromptTask(**task)),  # type: ignore[arg-type]
    )


def test_next_tokens(server: RunningServer, engine: FakeEngine) -> None:
    engine.request_warnings = ("task.clean[0]: nobody sees this.",)
    response = server.models.PredictTokens(predict((1, 2), top=2))
    tokens = [
        model_pb2.PredictedToken(id=0, text="2a", probability=0.5, logit=0.0),
        model_pb2.PredictedToken(id=1, text="2b", probability=0.25, logit=-1.0),
    ]
    assert response == model_pb2.PredictTokensResponse(
        predictions=[model_pb2.Prediction(tokens=tokens)], warnings=["prompts[0]: nobody sees this."]
    )
    assert len(server.models.PredictTokens(predict((1, 2))).predictions[0].tokens) == 5


def test_accuracy(server: RunningServer, engine: FakeEngine) -> None:
    response = server.models.CheckTask(check())
    for found, made in ((response.clean, CLEAN), (response.corrupted, CORRUPTED)):
        assert (found.above_wrong, found.likeliest, found.logit_difference) == (
            made.above_wrong,
            made.likeliest,
            made.logit_difference,
        )
    assert response.num_prompts == 1
    assert not server.models.CheckTask(check(corrupted=None)).HasField("corrupted")
    engine.answers = {"answers": (4,), "wrong_answers": (4,)}
    assert any("the same token" in text for text in server.models.CheckTask(check()).warnings)


@pytest.mark.parametrize(
    ("request_", "field", "detail"),
    [
        (predict((1, 2), top=101), "top", "must be from 1 to 100"),
        (predict((1, 2), top=-1), "top", "got -1"),
        (predict(*[(1,)] * 10_001), "prompts", "ask for fewer at a time"),
        (
            model_pb2.PredictTokensRequest(model="toy", prompts=[task_pb2.Prompt()]),
            "prompts[0]",
            "has neither text nor token ids",
        ),
        (model_pb2.CheckTaskRequest(model="toy"), "task", "is missing"),
    ],
)
def test_what_cannot_be_asked(
    request_: object, field: str, detail: str, server: RunningServer, engine: FakeEngine
) -> None:
    predicts = isinstance(request_, model_pb2.PredictTokensRequest)
    with refused() as refusal:
        (server.models.PredictTokens if predicts else server.models.CheckTask)(request_)
    assert (refusal.code, refusal.violation[0]) == (Code.INVALID_ARGUMENT, field)
    assert detail in refusal.violation[1]
    assert engine.opened == []


def test_a_task_without_answers(server: RunningServer, engine: FakeEngine) -> None:
    engine.answers = {}
    with refused() as refusal:
        server.models.CheckTask(check(answers=None, wrong_answers=None))
    assert refusal.violation[0] == "task.answers"
    assert "Add answers to the task" in refusal.violation[1]


def test_an_unknown_model(server: RunningServer) -> None:
    for call, request in ((server.models.PredictTokens, predict((1, 2))), (server.models.CheckTask, check())):
        request.model = "other"  # type: ignore[attr-defined]
        with refused() as refusal:
            call(request)
        assert (refusal.code, refusal.info.reason) == (Code.NOT_FOUND, "NOT_FOUND")


@pytest.mark.parametrize("name", ["PredictTokens", "CheckTask"])
def test_a_caller_that_leaves_stops_it(name: str, server: RunningServer, engine: FakeEngine) -> None:
    request = predict((1, 2)) if name == "PredictTokens" else check()
    engine.hold()
    with refused() as refusal:
        getattr(server.models, name)(request, timeout=0.2)
    assert refusal.code is Code.DEADLINE_EXCEEDED
    cancelled = getattr(server.models, name).future(request)
    cancelled.cancel()
    engine.release()
    assert server.models.CheckTask(check()).num_prompts == 1
    assert engine.open_states == {}
    assert not server.jobs._admission._unstored


@pytest.mark.parametrize("name", ["PredictTokens", "CheckTask"])
def test_none_waits_for_ever(
    name: str, server: RunningServer, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(info, "PREDICTION_S", 0.1)
    request = predict((1, 2)) if name == "PredictTokens" else check()
    engine.hold()
    with refused() as refusal:
        getattr(server.models, name)(request)
    assert refusal.code is Code.DEADLINE_EXCEEDED
    engine.release()
    assert server.models.CheckTask(check()).num_prompts == 1


def test_the_event_loop_answers_others_meanwhile(server: RunningServer, engine: FakeEngine) -> None:
    """Neither the model nor the texts of tokens keep it: both take long here."""
    loop_threads: list[bool] = []
    texts = engine.token_texts

    def noted(*arguments: object) -> list[list[str]]:
        try:
            asyncio.get_running_loop()
            loop_threads.append(True)
        except RuntimeError:
            loop_threads.append(threading.current_thread().name == "api")
        return texts(*arguments)  # type: ignore[arg-type]

    engine.token_texts = noted  # type: ignore[method-assign]
    engine.hold()
    waiting = server.models.PredictTokens.future(predict((1, 2)))
    engine.wait_for_call()
    assert server.models.ListModels(model_pb2.ListModelsRequest(), timeout=10).models
    engine.release()
    assert waiting.result().predictions
    assert loop_threads == [False]
    assert engine.threads == {"pahq-worker"}
