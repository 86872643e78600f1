"""What the full model predicts and how well it does a task, from Python and from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pahq.v1 import model_pb2

from pahq_client import (
    BuiltinTask,
    Client,
    InvalidRequest,
    PahqWarning,
    PredictedToken,
    Prediction,
    Predictions,
    ServerFault,
    Task,
    TaskAccuracy,
    TaskCheck,
)
from pahq_client.cli import main

from .fake_server import Code, FakeServer, Fault

A = PredictedToken(0, " a", 0.5, 0.0)
B = PredictedToken(1, " b", 0.25, -1.0)
CLEAN, CORRUPTED = TaskAccuracy(0.95, 0.5, 3.0), TaskAccuracy(0.5, 0.25, -0.125)
CHECK = TaskCheck("demo", CLEAN, CORRUPTED, 16)


def test_texts_and_token_ids(client: Any, server: FakeServer) -> None:
    found = client.predict("demo", ["a b", [1, np.int64(2)], np.array([3])], k=2)
    prompts = ("a b", (1, 2), (3,))
    assert found == Predictions("demo", tuple(Prediction(prompt, (A, B)) for prompt in prompts))
    (request,) = server.called("PredictTokens")
    assert (request.model, request.top) == ("demo", 2)
    assert [p.text or tuple(p.token_ids.ids) for p in request.prompts] == list(prompts)


def test_one_text_and_the_usual_number(client: Any) -> None:
    (prediction,) = client.predict("demo", "a b")
    assert prediction.prompt == "a b"
    assert [token.id for token in prediction.tokens] == [0, 1, 2, 3, 4]


def test_predictions_are_a_sequence() -> None:
    found = Predictions("demo", (Prediction("x", (A,)), Prediction("y", (B,))))
    assert (len(found), found[1].prompt, [each.prompt for each in found[:1]]) == (2, "y", ["x"])
    assert [each.prompt for each in found] == ["x", "y"]


def test_predictions_can_be_read() -> None:
    odd = PredictedToken(7, "\n\x1b", 0.25, -12.5)
    found = Predictions(
        "demo", (Prediction(" Lily", (A, odd)), Prediction((1, 2), (PredictedToken(5, "", 1, 2),)))
    )
    assert repr(found).splitlines() == [
        "Predictions of 'demo'",
        "' Lily'",
        "   50.0 %     0.0000        0  ' a'",
        "   25.0 %   -12.5000        7  '\\n\\x1b'",
        "[1, 2]",
        "  100.0 %     2.0000        5",
    ]
    assert "<code>&#x27; a&#x27;</code>" in found._repr_html_()
    assert repr(A) == "PredictedToken(' a', id=0, 50.0 %, logit=0)"
    long = Prediction("x" * 100 + " the end", (A,)), Prediction(tuple(range(1000)), (A,))
    assert repr(long[0]).splitlines()[0].endswith(" the end'")
    assert repr(long[1]).splitlines()[0].endswith(" 998, 999]")
    assert all(len(repr(each).splitlines()[0]) < 90 for each in long)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("demo", [1, 2]), "texts"),
        (("demo", np.array([1, 2])), "texts"),
        (("demo", 7), "texts"),
        (("demo", ["a", None]), "texts[1]"),
        (("demo", [[1, "b"]]), "texts[0]"),
        (("demo", {"a"}), "texts"),
        ((3, "a"), "model"),
        (("demo", "a", 0), "k"),
        (("demo", "a", -1), "k"),
        (("demo", "a", 2.5), "k"),
        (("demo", "a", 2**31), "k"),
    ],
)
def test_wrong_arguments(client: Any, server: FakeServer, arguments: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.predict(*arguments)
    assert caught.value.field == field
    assert server.calls == []


@pytest.mark.parametrize(
    ("asked", "told"), [("prompts[3]", "texts[3]"), ("prompts", "texts"), ("top", "k"), ("model", "model")]
)
def test_refusals_name_the_argument(client: Any, server: FakeServer, asked: str, told: str) -> None:
    server.faults["PredictTokens"] = [
        Fault(Code.INVALID_ARGUMENT, "m", "INVALID_REQUEST", violation=(asked, "is wrong"))
    ]
    with pytest.raises(InvalidRequest) as caught:
        client.predict("demo", "a")
    assert (caught.value.field, caught.value.detail) == (told, "is wrong")


def test_warnings_name_the_argument(client: Any, server: FakeServer) -> None:
    server.warnings = ["prompts[0]: nobody sees this."]
    with pytest.warns(PahqWarning, match=r"^texts\[0\]: nobody sees this\.$"):
        found = client.predict("demo", "a")
    assert found.warnings == ("texts[0]: nobody sees this.",)
    assert "nobody sees this" in found._repr_html_()


# Checks of tasks

TASK = Task(["a"], ["b"], answers=["c"], wrong_answers=["d"])


def test_a_check(client: Any, server: FakeServer) -> None:
    assert client.check_task("demo", TASK) == CHECK
    assert client.check_task("demo", "ioi") == CHECK
    first, second = server.called("CheckTask")
    assert [prompt.text for prompt in first.task.prompts.answers] == ["c"]
    assert (first.model, second.task.builtin.name) == ("demo", "ioi")


@pytest.mark.parametrize("task", [TASK, Task.ioi(4, seed=2), BuiltinTask("greater_than")])
def test_a_task_checks_itself(threads_client: Client, server: FakeServer, task: Task | BuiltinTask) -> None:
    assert task.check(threads_client, "demo") == CHECK
    threads_client.check_task("demo", task)
    first, second = server.called("CheckTask")
    assert first == second


def test_a_task_checks_itself_with_an_asynchronous_client(server: FakeServer) -> None:
    import asyncio

    from pahq_client import AsyncClient

    async def check() -> TaskCheck:
        async with AsyncClient(server.address) as client:
            return await TASK.check(client, "demo")

    assert asyncio.run(check()) == CHECK


def test_a_task_says_what_it_is_checked_with() -> None:
    with pytest.raises(InvalidRequest, match="client: must be a Client or an AsyncClient, got str"):
        TASK.check("127.0.0.1:7300", "demo")  # type: ignore[call-overload]


def test_no_task(client: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.check_task("demo", 3)
    assert caught.value.field == "task"


def check(clean: TaskAccuracy, corrupted: TaskAccuracy | None = None) -> TaskCheck:
    return TaskCheck("demo", clean, corrupted, 8)


@pytest.mark.parametrize(
    ("found", "suspicion"),
    [
        (check(TaskAccuracy(0.89, 0.5, 3.0)), "does not do the task: .* in 89.0 % of the clean prompts"),
        (check(TaskAccuracy(0.95, 0.5, 0.0)), "does not do the task"),
        (check(TaskAccuracy(0.0, 0.0, -3.0), TaskAccuracy(0.0, 0.0, -3.0)), "does not do the task"),
        (check(CLEAN, CLEAN), "answers the corrupted prompts like the clean ones"),
        (check(CLEAN, TaskAccuracy(0.5, 0.0, 2.8)), "Corrupt what the answer depends on"),
        (check(CLEAN, TaskAccuracy(0.9, 0.0, 0.1)), "in 90.0 % of them"),
        (check(TaskAccuracy(0.9, 0.0, 3.0)), None),
        (check(CLEAN, TaskAccuracy(0.89, 0.9, 2.6)), None),
        (check(CLEAN, TaskAccuracy(0.0, 0.0, -9.0)), None),
    ],
)
def test_what_is_suspicious(found: TaskCheck, suspicion: str | None) -> None:
    if suspicion is None:
        assert found.suspicions == ()
        assert found.verdict.startswith("The model does the task")
        return
    (text,) = found.suspicions
    assert found.verdict == text
    with pytest.raises(AssertionError, match=suspicion):
        raise AssertionError(text)


def test_a_check_can_be_read() -> None:
    assert repr(CHECK).splitlines() == [
        "TaskCheck of 'demo', 16 prompts",
        "prompts    above wrong answer  likeliest  mean logit difference, answer - wrong answer",
        "clean                  95.0 %     50.0 %                                             3",
        "corrupted              50.0 %     25.0 %                                        -0.125",
        "The model does the task, and no longer does on the corrupted prompts.",
    ]
    alone = check(CLEAN)
    assert "corrupted prompts to compare with" in repr(alone)
    assert len(repr(alone).splitlines()) == 4
    for cell in ("<td>95.0 %</td>", "<td>-0.125</td>", "no longer does"):
        assert cell in CHECK._repr_html_()


def test_what_may_mislead_is_shown(client: Any, server: FakeServer) -> None:
    server.warnings = ["The task is small."]
    with pytest.warns(PahqWarning, match="The task is small"):
        assert client.check_task("demo", TASK).warnings == ("The task is small.",)


# Servers that say what cannot be

TOKEN = {"id": 3, "probability": 0.5, "logit": 1.0}


def answer(*tokens: dict[str, Any], prompts: int = 1) -> model_pb2.PredictTokensResponse:
    prediction = model_pb2.Prediction(tokens=[model_pb2.PredictedToken(**(TOKEN | each)) for each in tokens])
    return model_pb2.PredictTokensResponse(predictions=[prediction] * prompts)


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (answer({}, prompts=0), "0 predictions, asked for 1"),
        (answer({}, prompts=2), "2 predictions, asked for 1"),
        (answer(), "0 tokens, asked for 2"),
        (answer({}, {"id": 4}, {"id": 5}), "3 tokens, asked for 2"),
        (answer({}, {}), "negative or repeat"),
        (answer({"id": -1}), "negative or repeat"),
        (answer({"probability": 1.1}), "1.1 as the probability"),
        (answer({"probability": -0.1}), "-0.1 as the probability"),
        (answer({"probability": float("nan")}), "nan as the probability"),
        (answer({"logit": float("inf")}), "inf as a logit"),
        (answer({"text": "x" * 10_001}), "a token of 10001 characters"),
    ],
)
def test_predictions_that_cannot_be(client: Any, server: FakeServer, response: Any, words: str) -> None:
    server.replies["PredictTokens"] = lambda request, context: response
    with pytest.raises(ServerFault, match=words):
        client.predict("demo", "a", k=2)


def test_a_rounded_certainty_is_one(client: Any, server: FakeServer) -> None:
    server.replies["PredictTokens"] = lambda request, context: answer({"probability": 1 + 1e-9})
    assert client.predict("demo", "a")[0].tokens[0].probability == 1.0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "no figures of the clean prompts"),
        ({"clean": {"above_wrong": 1.5}}, "1.5 as clean.above_wrong"),
        ({"clean": {"likeliest": float("nan")}}, "nan as clean.likeliest"),
        ({"clean": {}, "corrupted": {"logit_difference": float("inf")}}, "inf as corrupted.logit_difference"),
        ({"clean": {}, "num_prompts": -1}, "negative number as num_prompts"),
    ],
)
def test_checks_that_cannot_be(client: Any, server: FakeServer, fields: Any, words: str) -> None:
    server.replies["CheckTask"] = lambda request, context: model_pb2.CheckTaskResponse(**fields)
    with pytest.raises(ServerFault, match=words):
        client.check_task("demo", TASK)


# The commands


def test_the_command_predict(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["predict", "--model", "demo", "--server", server.address, "--top", "2", "x", "y"]
    assert main(command) == 0
    rows = ["   50.0 %     0.0000        0  ' a'", "   25.0 %    -1.0000        1  ' b'"]
    assert capsys.readouterr().out.splitlines() == ["'x'", *rows, "'y'", *rows]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    tokens = [{"id": t.id, "text": t.text, "probability": t.probability, "logit": t.logit} for t in (A, B)]
    assert found == [{"prompt": "x", "tokens": tokens}, {"prompt": "y", "tokens": tokens}]
    assert main([*command, "--top", "0"]) == 2
    assert "k: must be at least 1, got 0" in capsys.readouterr().err


CSV = "clean,corrupted,correct_idx,incorrect_idx\nx,y,1,2\n"
FILES: dict[str, Callable[[], str]] = {
    "t.json": lambda: json.dumps({"clean": ["x"], "corrupted": ["y"], "answers": [1], "wrong_answers": [2]}),
    "t.jsonl": lambda: json.dumps({"clean": "x", "corrupted": "y", "answer": 1, "wrong_answer": 2}),
    "t.csv": lambda: CSV,
}


@pytest.mark.parametrize("name", FILES)
def test_the_command_check_task(
    name: str, server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text(FILES[name]())
    command = ["check-task", "--model", "demo", "--server", server.address, "--task", str(path)]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{CHECK!r}\n"
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["clean"]["above_wrong"], found["suspicions"], found["verdict"]) == (0.95, [], CHECK.verdict)
    prompts = server.called("CheckTask")[0].task.prompts
    assert [p.text for p in (*prompts.clean, *prompts.corrupted)] == ["x", "y"]
    assert [list(p.token_ids.ids) for p in (*prompts.answers, *prompts.wrong_answers)] == [[1], [2]]
    path.unlink()
    assert main(command) == 2
    assert f"task: cannot read {path}" in capsys.readouterr().err


def test_the_command_check_task_of_a_built_in_task(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["check-task", "--model", "demo", "--server", server.address, "--task", "ioi"]
    assert main([*command, "--num-prompts", "4", "--seed", "3"]) == 0
    builtin = server.called("CheckTask")[0].task.builtin
    assert (builtin.name, builtin.num_prompts, builtin.seed) == ("ioi", 4, 3)
