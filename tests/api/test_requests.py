"""From messages to values: what is left out is not the same as what is empty."""

from __future__ import annotations

import pytest
from helpers.api_server import objective, spec, token_ids
from helpers.fake_engine import TASK
from pahq.v1 import task_pb2

from pahq_server.api import requests
from pahq_server.core.engine import Objective
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import BuiltinTask, PromptTask


def prompts(**fields: object) -> task_pb2.Task:
    return task_pb2.Task(prompts=task_pb2.PromptTask(**fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (prompts(), PromptTask(clean=())),
        (prompts(clean=token_ids((), (1,))), PromptTask(clean=((), (1,)))),
        (prompts(clean=[task_pb2.Prompt(text="")]), PromptTask(clean=("",))),
        (prompts(positions=task_pb2.Positions()), PromptTask(clean=(), positions=())),
        (prompts(positions=task_pb2.Positions(indices=[-1, 2**40])), PromptTask((), positions=(-1, 2**40))),
        (task_pb2.Task(builtin=task_pb2.BuiltinTask()), BuiltinTask("", 0, 0)),
        (
            task_pb2.Task(builtin=task_pb2.BuiltinTask(name="ioi", num_prompts=-1, seed=-(2**60))),
            BuiltinTask("ioi", -1, -(2**60)),
        ),
    ],
)
def test_tasks(message: task_pb2.Task, expected: PromptTask | BuiltinTask) -> None:
    assert requests.task(message) == expected


def test_a_task_that_is_neither_prompts_nor_builtin() -> None:
    with pytest.raises(InvalidRequestError, match=r"^task: is missing$"):
        requests.task(task_pb2.Task())


def test_specs() -> None:
    task = prompts(clean=token_ids((1, 2), (3, 4)), corrupted=token_ids((1, 5), (3, 6)))
    expected = Objective("toy", TASK, "kl_divergence", "resample", "group", "fp32")
    assert requests.objective(objective(task=task)) == expected
    found = requests.discovery_spec(spec(task=task, gates=False))
    assert (found.objective, found.method, found.threshold, found.gates) == (expected, "acdc", 2.0, False)


@pytest.mark.parametrize("threshold", [None, 0.0, -1.0])
def test_a_threshold_of_zero_is_not_a_missing_one(threshold: float | None) -> None:
    assert requests.discovery_spec(spec(threshold=threshold)).threshold == threshold


def test_equal_messages_are_equal_values_and_can_be_compared_for_repeated_requests() -> None:
    assert requests.discovery_spec(spec()) == requests.discovery_spec(spec())
    assert requests.discovery_spec(spec()) != requests.discovery_spec(spec(gates=False))
