"""The command ``pahq``: results on stdout, the rest on stderr, exit codes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pahq import __version__
from pahq.v1 import jobs_pb2 as pb
from pahq.v1 import patching_pb2, server_pb2

from pahq_client import Circuit
from pahq_client.cli import main

from .fake_server import Code, FakeServer, Fault
from .test_selection import SMALL, made_up

DISCOVER = ["discover", "--model", "demo", "--task", "ioi", "--threshold", "0.1"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAHQ_SERVER", "PAHQ_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def test_discover(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--out", str(tmp_path / "c.json"), "--dot", str(tmp_path / "c.dot")]
    options = ["--grouping", "none", "--num-prompts", "3", "--seed", "5", "--kv-receivers", "query"]
    assert main([*DISCOVER, "--server", server.address, *files, *options]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith(
        "# 2 of 82 edges, 1 on a path from input to logits, kl_divergence=0.1, faithfulness=0.95, "
        "3 evaluations, model='demo'"
    )
    assert out.splitlines()[1:] == ["a0.h1->a1.h0<q>\t0.25", "input->logits"]
    assert "10/10" in err
    assert "5 kept" in err
    assert len(Circuit.load(tmp_path / "c.json").edges) == 2
    assert (tmp_path / "c.dot").read_text().startswith("digraph")
    spec = server.called("CreateJob")[0].spec
    assert (spec.acdc.grouping, spec.acdc.threshold, spec.objective.kv_receivers) == ("none", 0.1, "query")
    assert (spec.objective.task.builtin.num_prompts, spec.objective.task.builtin.seed) == (3, 5)


def test_discover_for_programs(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DISCOVER, "--server", server.address, "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["format"] == "pahq.circuit"
    assert err == ""


def test_a_task_file(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"clean": ["ü", [1, 2]], "answers": [3, "x"], "positions": [0]}))
    arguments = ["discover", "--model", "demo", "--task", str(path), "--server", server.address, "--quiet"]
    assert main(arguments) == 0
    task = server.called("CreateJob")[0].spec.objective.task.prompts
    assert (task.clean[0].text, list(task.clean[1].token_ids.ids), list(task.positions.indices)) == (
        "ü",
        [1, 2],
        [0],
    )
    capsys.readouterr()
    for content, words in (
        ("{", "is not JSON"),
        ("[]", "'clean'"),
        ('{"clean": ["a"], "korrupted": []}', "korrupted"),
        ('{"clean": [3]}', "task.clean[0]"),
    ):
        path.write_text(content)
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
    assert main([*arguments, "--seed", "3"]) == 2
    assert "task.seed" in capsys.readouterr().err
    path.unlink()
    assert main(arguments) == 2
    assert "cannot read" in capsys.readouterr().err


def test_tasks_in_files_of_csv(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "task.csv"
    path.write_text("clean,corrupted,answer,wrong_answer\nx,y, Tom, Lily\n")
    arguments = ["discover", "--model", "demo", "--server", server.address, "--quiet", "--task"]
    assert main([*arguments, str(path)]) == 0
    task = server.called("CreateJob")[0].spec.objective.task.prompts
    assert [(p.text, q.text) for p, q in zip(task.answers, task.wrong_answers, strict=True)] == [
        (" Tom", " Lily")
    ]
    capsys.readouterr()
    path.write_text("clean,corrupted,good,bad\nx,y, Tom, Lily\n")
    assert main([*arguments, str(path)]) == 2
    assert "for the command pahq, rename the columns to answer and wrong_answer" in capsys.readouterr().err
    for name in ("task.tsv", "data/task.parquet"):
        assert main([*arguments, name]) == 2
        assert f"cannot read '{name}': files end in one of .json, .jsonl, .csv" in capsys.readouterr().err
    assert len(server.called("CreateJob")) == 1


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(Code.INVALID_ARGUMENT, "m", "INVALID_REQUEST", violation=("threshold", "is NaN")), 2),
        (Fault(Code.NOT_FOUND, "no such model", "NOT_FOUND", {"name": "x"}), 2),
        (Fault(Code.FAILED_PRECONDITION, "v", "VERSION_MISMATCH", {"client": "1", "server": "2"}), 3),
        (Fault(Code.UNIMPLEMENTED), 3),
        (Fault(Code.RESOURCE_EXHAUSTED), 3),
        (Fault(Code.UNAUTHENTICATED), 4),
        (Fault(Code.PERMISSION_DENIED), 4),
        (Fault(Code.INTERNAL), 1),
        (Fault(Code.FAILED_PRECONDITION, "NaN", "NON_FINITE_METRIC"), 1),
        (Fault(Code.INVALID_ARGUMENT, "two\nlines \x1b[31mred"), 2),
    ],
)
def test_exit_codes_of_faults(
    server: FakeServer, capsys: pytest.CaptureFixture[str], fault: Fault, code: int
) -> None:
    server.faults["CreateJob"] = [fault]
    assert main([*DISCOVER, "--server", server.address]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pahq: error: ")
    assert err.count("\n") == 1
    assert "\x1b" not in err


def test_exit_codes_of_jobs(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*DISCOVER, "--server", server.address, "--quiet"]
    for state, words in (
        (pb.JOB_STATE_FAILED, "metric is NaN"),
        (pb.JOB_STATE_CANCELLED, "cancelled"),
    ):
        server.outcome = state, "metric is NaN"
        assert main(arguments) == 1
        assert words in capsys.readouterr().err
    server.outcome = None
    assert main([*arguments, "--timeout", "0.1"]) == 1
    assert server.cancelled.is_set()
    assert "did not finish in time" in capsys.readouterr().err


def test_unreachable(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--server", "127.0.0.1:1"]) == 3
    assert "pahq-server serve --listen 127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["discover"], ["fly"], [*DISCOVER, "--threshold", "much"]])
def test_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"pahq {__version__}\n"


def test_server_and_token_from_the_environment(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAHQ_SERVER", server.address)
    monkeypatch.setenv("PAHQ_TOKEN", "s3cret")
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["device"] == "abacus"
    assert server.calls[0][2]["authorization"] == "Bearer s3cret"


def test_a_place_that_cannot_be_written_is_found_before_the_work(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path, tmp_path / "none" / "c.json"):
        for option in ("--out", "--dot"):
            assert main([*DISCOVER, "--server", server.address, option, str(path)]) == 2
            assert "cannot write" in capsys.readouterr().err
    assert server.calls == []


def test_a_failed_save_still_prints_the_circuit(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Circuit, "save", full)
    assert main([*DISCOVER, "--server", server.address, "--quiet", "--out", str(tmp_path / "c")]) == 2
    out, err = capsys.readouterr()
    assert "a0.h1->a1.h0<q>" in out
    assert "No space left" in err


def test_models_info_and_evaluate(
    server: FakeServer, tmp_path: Path, circuit: Circuit, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--server", server.address]
    assert main(["models", *at]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split()[:4] == ["name", "architecture", "layers", "heads"]
    assert row.split()[:2] == ["demo", "4"]
    assert row.index("4") == heading.index("layers") + len("layer")  # numbers end where their heading does
    assert main(["models", "--json", *at]) == 0
    assert json.loads(capsys.readouterr().out)[0]["layers"] == 4
    assert main(["info", *at]) == 0
    printed = capsys.readouterr().out
    assert "methods: acdc, single_edge\n" in printed
    assert "memory: page_bytes 16, pages 70, used_pages 60, " in printed
    assert "worker" not in printed
    assert "unavailable" not in printed
    assert main(["info", "--json", *at]) == 0
    assert json.loads(capsys.readouterr().out)["memory"]["preemptions"] == 3
    circuit.save(tmp_path / "c.json")
    evaluate = ["evaluate", "--circuit", str(tmp_path / "c.json"), "--model", "demo", "--task", "ioi", *at]
    assert main([*evaluate, "--json", "--metric", "l2"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["metric"], values["faithfulness"]) == ("l2", 0.75)
    assert server.called("EvaluateCircuits")[0].objective.ablation == "mean"
    assert main(evaluate) == 0
    assert "faithfulness: 0.75" in capsys.readouterr().out


def test_info_has_a_table_of_the_workers(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.unavailable = "no worker is left"
    lost, refused = server_pb2.WORKER_STATE_LOST, server_pb2.WORKER_STATE_REFUSED
    server.workers = [
        server_pb2.Worker(number=0, state=lost, host="attic", batches=12, reason="its process\x1b[31m ended"),
        server_pb2.Worker(number=1, state=refused, hardware={"torch": "2", "beads": "100"}, restarts=3),
    ]
    at = ["--server", server.address]
    assert main(["info", *at]) == 0
    *values, heading, first, second = capsys.readouterr().out.splitlines()
    assert "unavailable: no worker is left" in values
    assert values[-1] == "workers:"
    assert heading.split() == [
        *("worker", "state", "host", "device", "batches", "restarts", "reason", "hardware"),
    ]
    assert first.split()[:5] == ["0", "LOST", "attic", "12", "0"]
    assert "its process" in first
    assert "\x1b" not in first
    assert second.split() == ["1", "REFUSED", "0", "3", "beads", "100,", "torch", "2"]
    assert main(["info", "--json", *at]) == 0
    (_, found) = json.loads(capsys.readouterr().out)["workers"]
    assert (found["state"], found["hardware"]) == ("REFUSED", {"beads": "100", "torch": "2"})


def test_show_and_compare(circuit: Circuit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "c.json")
    circuit.save(path)
    assert main(["show", path]) == 0
    assert "m1->logits\t0.75" in capsys.readouterr().out
    assert main(["show", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == 2
    assert main(["compare", path, path]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == ["jaccard 1", "shared 4", "  m1->logits"]
    assert main(["compare", path, path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["only_b"] == []
    two = [str(tmp_path / f"{name}.json") for name in ("one", "another")]
    for name in two:
        replace(circuit, provenance={"request": {"model_revision": Path(name).stem}}).save(name)
    assert main(["compare", *two]) == 2
    err = capsys.readouterr().err
    assert "another" in err
    assert "allow_other_model=True), or pahq with --allow-other-model" in err
    assert main(["compare", *two, "--allow-other-model"]) == 0
    assert capsys.readouterr().out.startswith("jaccard 1\n")
    assert main(["show", str(tmp_path / "none")]) == 2
    (tmp_path / "c.json").write_text("{}")
    assert main(["show", path]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_files_of_scores_where_a_circuit_is_wanted(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "gim.safetensors")
    made_up(SMALL).save(path)
    at = ["--model", "demo", "--task", "ioi", "--server", server.address]
    for command, option in ((["discover", "--threshold", "0.1"], "--within"), (["evaluate"], "--circuit")):
        assert main([*command, *at, option, path]) == 2
        err = capsys.readouterr().err
        assert f"{option}: {path!r} holds edge scores: choose a circuit by them first" in err
        assert "--fraction 0.1 --out FILE" in err
    assert server.calls == []


@pytest.mark.parametrize(
    "command", [["show"], ["view"], ["compare", "{}"], ["curve"], ["evaluate", "--circuit"]]
)
def test_files_that_are_missing(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "none.json")
    measured = ["--model", "demo", "--task", "ioi"] if command[0] in ("curve", "evaluate") else []
    assert main([*(part.format(missing) for part in command), missing, *measured]) == 2
    assert f"cannot read {missing!r}: No such file or directory" in capsys.readouterr().err


def test_figures_in_a_terminal_are_rounded(
    server: FakeServer, tmp_path: Path, circuit: Circuit, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program that wants every digit takes --json."""
    circuit.save(tmp_path / "c.json")
    server.replies["EvaluateCircuits"] = lambda request, context: patching_pb2.EvaluateCircuitsResponse(
        metric="kl_divergence", values=[0.4245007038116455], full=0, empty=10.741340637207031
    )
    arguments = ["--circuit", str(tmp_path / "c.json"), "--model", "demo", "--task", "ioi"]
    arguments += ["--server", server.address]
    assert main(["evaluate", *arguments]) == 0
    out = capsys.readouterr().out
    for line in ("value: 0.424501", "full: 0", "empty: 10.7413", "faithfulness: 0.9605"):
        assert f"{line}\n" in out
    assert main(["evaluate", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["value"] == 0.4245007038116455
    assert main([*DISCOVER, "--estimate", "--server", server.address]) == 0
    assert "memory_bytes: 1,048,576\nleast_seconds: 2\n" in capsys.readouterr().out
