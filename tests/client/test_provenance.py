"""A circuit says what was run: the task, and its prompts where they were asked for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pahq_client import BuiltinTask, Circuit, InvalidRequest, ServerFault, Task
from pahq_client.cli import main

from .fake_server import FakeServer

PROMPTS = {
    "clean": ["ü a", [1, 2]],
    "corrupted": ["b c", [1, 3]],
    "answers": ["x", [7]],
    "wrong_answers": [],
    "positions": None,
}


def ran(circuit: Circuit, **run: object) -> Circuit:
    return dataclasses.replace(circuit, provenance={**circuit.provenance, "run": run})


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"name": "ioi", "num_prompts": 16, "seed": 3}, "task='ioi (16 prompts, seed 3)'"),
        ({"num_prompts": 1}, "task='1 prompt'"),
        ({"num_prompts": 12}, "task='12 prompts'"),
    ],
)
def test_a_circuit_shows_its_task(circuit: Circuit, about: dict[str, object], words: str) -> None:
    assert words in repr(ran(circuit, task=about))
    assert "task=" not in repr(ran(circuit))


def test_the_task_again(circuit: Circuit) -> None:
    named = {"name": "ioi", "num_prompts": 8, "seed": 3}
    assert ran(circuit, task=named).task == BuiltinTask("ioi", 8, 3)
    task = ran(circuit, task=named, prompts=PROMPTS).task
    assert task == Task(["ü a", [1, 2]], ["b c", [1, 3]], ["x", 7])
    at = ran(circuit, prompts={**PROMPTS, "positions": [0, 1]}).task
    assert isinstance(at, Task)
    assert at.positions == (0, 1)
    assert ran(circuit, task={"num_prompts": 3}).task is None


@pytest.mark.parametrize(
    "run",
    [
        {"prompts": {}},
        {"prompts": {"clean": 3}},
        {"prompts": {"clean": ["a"], "positions": "first"}},
        {"task": {"name": 3}},
        {"task": {"name": "ioi", "seed": "x"}},
    ],
)
def test_damaged_tasks_are_none(circuit: Circuit, run: dict[str, object]) -> None:
    assert ran(circuit, **run).task is None


def test_prompts_come_in_parts(client: Any, server: FakeServer, tmp_path: Path) -> None:
    text = json.dumps(PROMPTS)
    server.artifact.prompts = [text[i : i + 7] for i in range(0, len(text), 7)]
    circuit = client.discover("demo", "ioi", 0.1, include_prompts=True)
    assert server.called("CreateJob")[0].spec.include_prompts
    assert circuit.provenance["run"]["prompts"] == PROMPTS
    circuit.save(tmp_path / "c.json")
    assert Circuit.load(tmp_path / "c.json").task == Task(["ü a", [1, 2]], ["b c", [1, 3]], ["x", 7])
    assert b"\\u00fc" not in circuit.canonical_bytes()
    server.artifact.prompts[-1] = "]"
    with pytest.raises(ServerFault, match="prompts that is not JSON"):
        client.discover("demo", "ioi", 0.1)


def test_they_are_not_asked_for_unless_they_are(client: Any, server: FakeServer) -> None:
    client.discover("demo", "ioi", 0.1)
    client.submit("demo", "ioi", 0.1, include_prompts=True)
    with pytest.raises(InvalidRequest, match="include_prompts"):
        client.submit("demo", "ioi", 0.1, include_prompts="yes")
    assert [c.spec.include_prompts for c in server.called("CreateJob")] == [False, True]


def test_the_option_of_the_command(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["discover", "--model", "demo", "--task", "ioi", "--threshold", "1", "--server", server.address]
    for option in ("--detach", "--estimate", "--quiet"):
        assert main([*command, option, "--include-prompts"]) == 0
        assert main([*command, option]) == 0
    asked = [request.spec.include_prompts for request in server.called("CreateJob")]
    assert asked == [True, False] * 3
