"""What a server says may mislead: in the answer, once as a Python warning, and on stderr of the command."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from pahq.v1 import jobs_pb2 as pb

from pahq_client import Circuit, Client, JobState, PahqWarning
from pahq_client.cli import main

from .fake_server import FakeServer

EARLY, LATE = "The prompts are the same. Change them.", "The faithfulness is 0. Use a smaller threshold."
DISCOVER = ["discover", "--model", "demo", "--task", "ioi", "--threshold", "0.1"]


@pytest.fixture(autouse=True)
def _warns(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first warning is known when a discovery is accepted, the second with its result."""
    server.warnings = server.session.warnings[:] = [EARLY, LATE]
    for name in ("PAHQ_SERVER", "PAHQ_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PAHQ_SERVER", server.address)


def shown(caught: list[warnings.WarningMessage]) -> list[str]:
    assert all(warning.category is PahqWarning for warning in caught)
    return [str(warning.message) for warning in caught]


def test_each_answer_tells_each_warning_once(client: Any) -> None:
    for _ in range(2):  # another answer says it again, though Python has shown this text at this line
        with warnings.catch_warnings(record=True) as caught:
            circuit = client.discover("demo", "ioi", 0.1)
        assert shown(caught) == [EARLY, LATE]
        assert circuit.warnings == (EARLY, LATE)


def test_they_point_at_the_line_of_the_caller(client: Any) -> None:
    with warnings.catch_warnings(record=True) as caught:
        client.discover("demo", "ioi", 0.1)
    assert not [w.filename for w in caught if "pahq_client" in Path(w.filename).parts]


def test_a_blocking_call_is_blamed_itself(threads_client: Client) -> None:
    with warnings.catch_warnings(record=True) as caught:
        threads_client.evaluate("demo", "ioi", [])
    assert {warning.filename for warning in caught} == {__file__}


def test_a_job_tells_early_what_is_known_early(client: Any, server: FakeServer) -> None:
    server.outcome = None
    with warnings.catch_warnings(record=True) as caught:
        job = client.submit("demo", "ioi", 0.1)
        assert shown(caught) == [EARLY]
        assert job.latest.warnings == (EARLY,)
        server.jobs[job.name].end(pb.JOB_STATE_SUCCEEDED)
        for _ in range(2):
            job.result()
        assert shown(caught) == [EARLY, LATE]


def test_asking_how_it_stands_warns_of_nothing(client: Any) -> None:
    with pytest.warns(PahqWarning):
        name = client.submit("demo", "ioi", 0.1).name
    with warnings.catch_warnings(record=True) as caught:
        info = client.job(name).info
        client.jobs()
    assert (caught, info.state, info.warnings) == ([], JobState.SUCCEEDED, (EARLY, LATE))


def test_estimates_evaluations_and_sessions_tell_theirs(client: Any) -> None:
    with warnings.catch_warnings(record=True) as caught:
        assert client.estimate("demo", "ioi", 0.1).warnings == (EARLY,)
        assert client.evaluate("demo", "ioi", []).warnings == (EARLY, LATE)
        with client.session("demo", "ioi") as session:
            assert session.warnings == (EARLY, LATE)
            session.score([[]])
    assert shown(caught) == [EARLY, EARLY, LATE, EARLY, LATE]


def test_a_filter_makes_them_errors_or_silent(threads_client: Client) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", PahqWarning)
        with pytest.raises(PahqWarning, match="The prompts are the same"):
            threads_client.submit("demo", "ioi", 0.1)
        warnings.simplefilter("ignore", PahqWarning)
        assert threads_client.discover("demo", "ioi", 0.1).warnings


def test_python_shows_them_by_itself(server: FakeServer) -> None:
    """Without any filter of the program's, also twice from one line."""
    program = (
        "from pahq_client import Client\n"
        f"client = Client('{server.address}')\n"
        "for _ in range(2): client.estimate('demo', 'ioi', 0.1)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.count(f"PahqWarning: {EARLY}") == 2


def test_what_a_terminal_would_obey_is_gone(server: FakeServer, threads_client: Client) -> None:
    server.warnings = ["red \x1b[31m\nand more"]
    with warnings.catch_warnings(record=True) as caught:
        threads_client.evaluate("demo", "ioi", [])
    assert shown(caught) == ["red \\x1b[31m and more"]


def test_they_are_kept_in_the_file_and_not_in_canonical_bytes(server: FakeServer, tmp_path: Path) -> None:
    with Client(server.address) as client:
        with pytest.warns(PahqWarning):
            circuit = client.discover("demo", "ioi", 0.1)
        server.warnings = []
        silent = client.discover("demo", "ioi", 0.1)
    circuit.save(tmp_path / "c.json")
    assert Circuit.load(tmp_path / "c.json").warnings == (EARLY, LATE)
    assert silent.warnings == ()
    assert silent.canonical_bytes() == circuit.canonical_bytes()
    assert "2 warnings" in repr(circuit)
    assert "warning" not in repr(silent)
    assert EARLY in circuit._repr_html_()


@pytest.mark.parametrize("found", [None, "text", 3, [1, {}], {"a": 1}])
def test_files_of_other_tools_hold_anything(circuit: Circuit, found: object) -> None:
    odd = dataclasses.replace(
        circuit, provenance={"run": {"warnings": found, "task": found, "prompts": found}}
    )
    assert odd.warnings == ()
    assert odd.task is None
    assert "warning" not in repr(odd)


# The command


def lines(err: str) -> list[str]:
    return [line for line in err.splitlines() if "warning" in line]


EXPECTED = [f"pahq: warning: {EARLY}", f"pahq: warning: {LATE}"]


@pytest.mark.parametrize("options", [[], ["--json"], ["--quiet", "--json"]])
def test_discover(options: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = str(tmp_path / "c.json")
    assert main([*DISCOVER, "--out", file, *options]) == 0
    out, err = capsys.readouterr()
    assert lines(err) == EXPECTED
    assert EARLY not in out or "--json" in options
    assert main(["show", file]) == 0
    assert lines(capsys.readouterr().err) == EXPECTED


def test_commands_about_jobs(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DISCOVER, "--detach"]) == 0
    out, err = capsys.readouterr()
    assert lines(err) == EXPECTED  # it has ended by the time of the answer
    (name,) = out.split()
    server.list_pages = [[name]]
    for command in ("watch", "show"):
        assert main([command, name]) == 0
        assert lines(capsys.readouterr().err) == EXPECTED
    assert main(["jobs"]) == 0
    assert "2 warnings" in capsys.readouterr().out.splitlines()[1]
    assert main(["jobs", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)[0]["warnings"] == [EARLY, LATE]
    assert err == ""


def test_a_job_that_goes_on(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.outcome = None
    assert main([*DISCOVER, "--detach"]) == 0
    out, err = capsys.readouterr()
    assert lines(err) == EXPECTED[:1]
    assert main(["show", out.strip()]) == 0
    out, err = capsys.readouterr()
    assert lines(err) == EXPECTED[:1]
    assert "warning" not in out


def test_evaluate_and_estimate(
    server: FakeServer, circuit: Circuit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    circuit.save(tmp_path / "c.json")
    evaluate = ["evaluate", "--circuit", str(tmp_path / "c.json"), "--model", "demo", "--task", "ioi"]
    for command, expected in ((evaluate, EXPECTED), ([*DISCOVER, "--estimate"], EXPECTED[:1])):
        assert main(command) == 0
        out, err = capsys.readouterr()
        assert lines(err) == expected
        assert "warning" not in out
        assert main([*command, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["warnings"] == [
            line.removeprefix("pahq: warning: ") for line in expected
        ]


def test_a_warning_made_an_error_ends_the_command(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", PahqWarning)
        assert main([*DISCOVER, "--quiet"]) == 1
    assert f"pahq: error: {EARLY}" in capsys.readouterr().err


# Faithfulness


@pytest.fixture
def measured(server: FakeServer) -> FakeServer:
    server.warnings = []
    server.figures = {"metric": 0.5, "metric_full": 0.0, "metric_empty": 2.0}
    return server


def test_jobs_tell_the_faithfulness(
    measured: FakeServer, client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    job = client.submit("demo", "ioi", 0.1)
    info = client.job(job.name).latest or job.latest
    assert info is not None
    assert (info.metric_value, info.metric_full, info.metric_empty) == (0.5, 0.0, 2.0)
    assert info.faithfulness == 0.75
    assert (info.task, info.num_prompts) == ("ioi (16 prompts, seed 0)", 16)
    assert "faithfulness=0.75" in job._repr_html_()
    assert "task ioi (16 prompts, seed 0)" in job._repr_html_()
    assert "model demo, task ioi (16 prompts, seed 0), method acdc, threshold 0.1, succeeded" in repr(job)
    measured.list_pages = [[job.name]]
    assert main(["jobs"]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{job.name} ")
    columns = {name: heading.index(name) for name in ("model", "task", "method", "threshold")}
    assert line[columns["model"] :].startswith("demo ")
    assert line[columns["task"] :].startswith("ioi (16 prompts, seed 0) ")
    assert line[columns["method"] :].startswith("acdc ")
    assert line[: heading.index("faithfulness") + len("faithfulness")].endswith("0.75")
    assert main(["jobs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["faithfulness"] == 0.75


def test_there_is_none_before_the_end_and_where_the_ends_are_equal(measured: FakeServer, client: Any) -> None:
    measured.figures["metric_empty"] = 0.0
    job = client.submit("demo", "ioi", 0.1)
    assert job.latest.faithfulness is None
    assert "faithfulness undefined (full = empty)" in job._repr_html_()
    measured.outcome = None
    job = client.submit("demo", "ioi", 0.1)
    assert (job.latest.metric_full, job.latest.faithfulness) == (None, None)
    assert "faithfulness" not in job._repr_html_()


def test_the_commands_print_it(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.warnings = []
    assert main([*DISCOVER, "--quiet"]) == 0
    assert ", faithfulness=0.95, " in capsys.readouterr().out.splitlines()[0]
    server.artifact.layout["metric"]["empty"] = 0.0
    assert main([*DISCOVER, "--quiet"]) == 0
    assert ", faithfulness undefined (full = empty), " in capsys.readouterr().out.splitlines()[0]
