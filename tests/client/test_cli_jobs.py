"""Commands about jobs that are on a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pahq.v1 import jobs_pb2 as pb

from pahq_client import Circuit
from pahq_client.cli import main

from .fake_jobs import STARTED
from .fake_server import FakeServer

DISCOVER = ["discover", "--model", "demo", "--task", "ioi", "--threshold", "0.1", "--grouping", "none"]
NAME = "users/me/jobs/0"
COLUMNS = ("task", "method", "threshold", "edges", "kept", "metric", "faithfulness", "created", "state")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, server: FakeServer) -> None:
    monkeypatch.setenv("PAHQ_SERVER", server.address)
    monkeypatch.delenv("PAHQ_TOKEN", raising=False)


@pytest.fixture
def job(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> str:
    """The name of a job that runs."""
    server.outcome = None
    assert main([*DISCOVER, "--detach"]) == 0
    assert capsys.readouterr() == (f"{NAME}\n", "")
    return NAME


def test_detach(server: FakeServer, job: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (request,) = server.called("CreateJob")
    assert (request.spec.acdc.threshold, request.spec.acdc.grouping) == (0.1, "none")
    assert not server.called("WatchJob")
    assert not server.called("CancelJob")
    assert main([*DISCOVER, "--detach", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "users/me/jobs/1"}
    for option in (["--out", str(tmp_path / "c")], ["--dot", str(tmp_path / "c")], ["--timeout", "3"]):
        assert main([*DISCOVER, "--detach", *option]) == 2
        assert "--detach" in capsys.readouterr().err


def test_estimate(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DISCOVER, "--estimate", "--json"]) == 0
    expected = {"memory_bytes": 1 << 20, "least_seconds": 2, "most_seconds": 90, "streams_weights": True}
    assert json.loads(capsys.readouterr().out) == expected
    (request,) = server.called("CreateJob")
    assert request.validate_only
    assert (request.spec.acdc.threshold, request.spec.acdc.grouping) == (0.1, "none")
    assert main([*DISCOVER, "--estimate"]) == 0
    assert "most_seconds: 90" in capsys.readouterr().out


def test_jobs(server: FakeServer, job: str, capsys: pytest.CaptureFixture[str]) -> None:
    server.jobs[job].move(2, STARTED)
    server.list_pages = [[job], ["users/me/jobs/x"]]
    assert main(["jobs"]) == 0
    heading, first, second = capsys.readouterr().out.splitlines()
    assert heading.split() == ["name", "model", *COLUMNS]
    cells = [job, "demo", *["ioi", "(16", "prompts,", "seed", "0)"], "acdc", "0.1", "2/10", "kl_divergence"]
    assert first.split()[: len(cells)] == cells
    assert "  running, number 2 in the queue, starts about " in first
    assert first.index("running") == heading.index("state")
    assert second.split() == ["users/me/jobs/x", "succeeded"]
    assert main(["jobs", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [info["state"] for info in listed] == ["RUNNING", "SUCCEEDED"]
    assert (listed[0]["created"], listed[0]["queue_position"]) == (STARTED.isoformat(), 2)
    assert main(["jobs", "--limit", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2  # one below the heading
    assert server.called("ListJobs")[-1].page_size == 1
    assert main(["jobs", "--limit", "-1"]) == 2


def test_jobs_that_look_for_a_threshold(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.outcome = None
    asked = ["discover", "--model", "demo", "--task", "ioi", "--detach"]
    names = []
    for option in (["--edges", "30"], ["--faithfulness", "0.9"], ["--threshold", "0.1"]):
        assert main([*asked, *option]) == 0
        names.append(capsys.readouterr().out.strip())
    server.list_pages = [names]
    assert main(["jobs"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    end = heading.index("threshold") + len("threshold")
    assert [row[:end].split("acdc")[1].strip() for row in rows] == ["30 edges", "faithfulness 0.9", "0.1"]
    assert main(["jobs", "--json"]) == 0
    assert [info["target"] for info in json.loads(capsys.readouterr().out)] == [
        *("30 edges", "faithfulness 0.9", "")
    ]


def test_no_jobs(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["jobs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_watch(server: FakeServer, job: str, capsys: pytest.CaptureFixture[str]) -> None:
    server.jobs[job].end(pb.JOB_STATE_SUCCEEDED)
    assert main(["watch", job]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{job}\tsucceeded, 10/10 edges, 5 kept, ")
    assert "10/10" in err
    assert main(["watch", job, "--json"]) == 0
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["sequence"] for event in events] == [1, 2, 3, 4]
    assert (events[-1]["state"], err) == ("SUCCEEDED", "")
    assert main(["watch", job, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_watch_tells_by_its_exit_code_how_it_ended(
    server: FakeServer, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    for state, words in (
        (pb.JOB_STATE_FAILED, "metric is NaN"),
        (pb.JOB_STATE_CANCELLED, "was cancelled"),
    ):
        server.outcome = state, "metric is NaN"
        assert main([*DISCOVER, "--detach"]) == 0
        name = capsys.readouterr().out.strip()
        assert main(["watch", name, *options]) == 1
        assert words in capsys.readouterr().err.splitlines()[-1]


def test_cancel(server: FakeServer, job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cancel", job]) == 0
    assert capsys.readouterr().out == f"{job}\tCANCELLED\n"
    assert main(["cancel", job, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": job, "state": "CANCELLED"}


def test_show(
    server: FakeServer, job: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["show", job]) == 0
    assert "state: RUNNING\n" in capsys.readouterr().out
    assert main(["show", job, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decided"] == 4
    server.jobs[job].end(pb.JOB_STATE_SUCCEEDED)
    assert main(["show", job]) == 0
    assert "a0.h1->a1.h0<q>\t0.25\n" in capsys.readouterr().out
    assert main(["show", job, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "pahq.circuit"


def test_show_of_samples_that_are_being_drawn(
    server: FakeServer, job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.jobs[job].events[-1].progress.CopyFrom(
        pb.Progress(
            done=3, total=24, unit="samples", stage="sampling (fifo)", figures={"tokens": 50, "steps": 20}
        )
    )
    assert main(["show", job]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in ("samples: 3/24", "stage: sampling (fifo)", "tokens: 50", "steps: 20"):
        assert line in lines
    names = {line.partition(":")[0] for line in lines}
    assert not names & {"decided", "total", "kept", "evaluations", "metric", "metric_value", "threshold"}


def test_a_file_is_shown_before_a_job_of_its_name(
    circuit: Circuit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).parent.mkdir(parents=True)
    circuit.save(NAME)
    assert main(["show", NAME]) == 0
    assert "m1->logits" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["watch"], ["cancel"], ["show"]])
def test_what_is_not_there(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "users/me/jobs/none"]) == 2
    out, err = capsys.readouterr()
    assert "no users/me/jobs/none" in err.splitlines()[-1]
    assert out == ""


@pytest.mark.parametrize(
    "command", [["jobs"], ["watch", NAME], ["cancel", NAME], ["show", NAME], [*DISCOVER, "--detach"]]
)
def test_they_need_a_server_that_goes_on(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PAHQ_SERVER")
    assert main(command) == 2
    assert "--server" in capsys.readouterr().err
