"""Tasks and the messages made of them: wrong types are told apart with their place."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pahq_client import BuiltinTask, Client, InvalidRequest, Task
from pahq_client import _requests as requests
from pahq_client._job_options import JobRequest

from .fake_server import FakeServer


def test_texts_and_ids_of_any_kind() -> None:
    task = Task(
        clean=["a b", [1, np.int64(2)], np.array([3, 4])],
        corrupted=iter([(5,), "c", ()]),
        answers=["x", 7, np.int32(8)],
        wrong_answers=[[9], "y", (1, 2)],
        positions=np.array([0, 2]),
    )
    message = requests.task_message(task).prompts
    assert [p.text or list(p.token_ids.ids) for p in message.clean] == ["a b", [1, 2], [3, 4]]
    assert [p.text or list(p.token_ids.ids) for p in message.corrupted] == [[5], "c", []]
    assert [p.text or list(p.token_ids.ids) for p in message.answers] == ["x", [7], [8]]
    assert [p.text or list(p.token_ids.ids) for p in message.wrong_answers] == [[9], "y", [1, 2]]
    assert list(message.positions.indices) == [0, 2]
    assert hash(task) == hash(Task(task.clean, task.corrupted, task.answers, task.wrong_answers, (0, 2)))


def test_positions_last_is_absent_and_an_empty_list_is_not() -> None:
    assert not requests.task_message(Task(["a"])).prompts.HasField("positions")
    assert requests.task_message(Task(["a"], positions=[])).prompts.HasField("positions")


def test_builtin_tasks() -> None:
    assert requests.task_message("ioi") == requests.task_message(Task.ioi())
    message = requests.task_message(Task.ioi(num_prompts=np.int64(3), seed=-5)).builtin  # type: ignore[arg-type]
    assert (message.name, message.num_prompts, message.seed) == ("ioi", 3, -5)
    for name in ("greater_than", "induction", "pronoun", "subject_verb", "docstring"):
        assert getattr(Task, name)() == BuiltinTask(name, 16, 0)
        assert getattr(Task, name)(3, seed=-5) == BuiltinTask(name, 3, -5)
        with pytest.raises(InvalidRequest, match="sed"):
            getattr(Task, name)(sed=1)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"clean": "one text"}, "task.clean"),
        ({"clean": None}, "task.clean"),
        ({"clean": {"a", "b"}}, "task.clean"),
        ({"clean": np.array(3)}, "task.clean"),
        ({"clean": [1, 2]}, "task.clean[0]"),
        ({"clean": ["a", "b", "c", 4.5]}, "task.clean[3]"),
        ({"clean": ["a", b"b"]}, "task.clean[1]"),
        ({"clean": [[1, True]]}, "task.clean[0]"),
        ({"clean": [[1, 2.0]]}, "task.clean[0]"),
        ({"clean": [["a"]]}, "task.clean[0]"),
        ({"clean": [[1 << 63]]}, "task.clean[0]"),
        ({"clean": ["\ud800"]}, "task.clean[0]"),
        ({"clean": ["a"], "corrupted": ["b", None]}, "task.corrupted[1]"),
        ({"clean": ["a"], "answers": 3}, "task.answers"),
        ({"clean": ["a"], "wrong_answers": [2.5]}, "task.wrong_answers[0]"),
        ({"clean": ["a"], "positions": "first"}, "task.positions"),
        ({"clean": ["a"], "positions": 3}, "task.positions"),
        ({"clean": ["a"], "positions": [0, 1.5]}, "task.positions[1]"),
    ],
)
def test_wrong_types_name_their_place(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        Task(**arguments)
    assert raised.value.field == field


@pytest.mark.parametrize(
    ("arguments", "field", "words"),
    [
        ({"clean": []}, "task.clean", "is empty"),
        ({"clean": ["a"], "corrupted": ["b", "c"]}, "task.corrupted", "got 2 prompts for 1"),
        ({"clean": ["a"], "corrupted": []}, "task.corrupted", "got 0 prompts for 1"),
        ({"clean": ["a"], "answers": ["x", "y"]}, "task.answers", "got 2 answers for 1"),
        ({"clean": ["a", "b"], "wrong_answers": [7]}, "task.wrong_answers", "got 1 wrong answers for 2"),
    ],
)
def test_one_of_each_for_every_prompt(arguments: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as raised:
        Task(**arguments)
    assert raised.value.field == field


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my.csv", r"Task\.from_csv\('my.csv'\)"),
        ("data/my.jsonl", r"Task\.from_jsonl\('data/my.jsonl'\)"),
        ("my.json", r"Task\.load\('my.json'\)"),
        ("data/my", r"Task\.load \(JSON\), Task\.from_jsonl or Task\.from_csv"),
        ("my.tsv", r"Task\.load \(JSON\), Task\.from_jsonl or Task\.from_csv"),
        (Path("my.csv"), r"got PosixPath; read the file with Task\.from_csv"),
        (Path("ioi"), "got PosixPath"),
    ],
)
def test_a_file_is_no_name_of_a_task(client: Client, server: FakeServer, name: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as raised:
        client.submit("m", name, 0.1)
    assert raised.value.field == "task"
    assert server.calls == []


def test_prompts_of_builtin_tasks_are_drawn_by_a_server() -> None:
    for name in ("clean", "corrupted", "answers", "wrong_answers", "positions"):
        with pytest.raises(AttributeError, match=rf"no '{name}' of its own: .*include_prompts=True"):
            getattr(Task.ioi(), name)
    with pytest.raises(AttributeError, match="'BuiltinTask' has no attribute 'prompts'"):
        Task.ioi().prompts  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(Task.ioi(), "cleaned")
    assert copy.deepcopy(Task.ioi(3)) == copy.copy(Task.ioi(3)) == Task.ioi(3)


def test_the_place_in_a_prompt_is_in_the_detail() -> None:
    with pytest.raises(InvalidRequest, match=r"task.clean\[1\]: token 2 must be an integer, got float"):
        Task(["a", [1, 2, 3.0]])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 3),
        ("task", ["a"]),
        ("threshold", "0.1"),
        ("threshold", True),
        ("threshold", [0.1]),
        ("method", None),
        ("metric", 1),
        ("ablation", 1),
        ("grouping", 1),
        ("kv_receivers", 1),
        ("precision", 32),
    ],
)
def test_wrong_types_of_other_arguments(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as raised:
        requests.job_spec(JobRequest(**{"model": "m", "task": "ioi", field: value}))
    assert raised.value.field == field


@pytest.mark.parametrize(("num_prompts", "seed"), [(1 << 31, 0), (1, 1 << 63), (1.5, 0), ("2", 0)])
def test_sizes_of_builtin_tasks(num_prompts: Any, seed: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"task\.(num_prompts|seed)"):
        BuiltinTask("ioi", num_prompts, seed)


def test_unknown_keywords_are_type_errors(client: Client) -> None:
    with pytest.raises(TypeError):
        client.submit("m", "ioi", treshold=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        client.evaluate("m", "ioi", [], metrics="l2")  # type: ignore[call-arg]


def test_defaults_and_numbers_reach_the_message() -> None:
    spec = requests.job_spec(JobRequest("m", "ioi", np.float32(0.5)))  # type: ignore[arg-type]
    measured = spec.objective
    assert (spec.WhichOneof("method"), spec.acdc.threshold, spec.acdc.grouping) == ("acdc", 0.5, "gates")
    assert (measured.model, measured.metric, measured.ablation) == ("m", "kl_divergence", "resample")
    assert (measured.kv_receivers, measured.precision) == ("group", "fp32")
    assert not requests.job_spec(JobRequest("m", "ioi")).acdc.HasField("threshold")
