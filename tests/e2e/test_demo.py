"""The demo: one circuit, whatever the machine, the threads and the executor."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.demo import NUM_EDGES

from pahq_client import Circuit, Client, Task

from .process import ServerProcess

ROOT = Path(__file__).parents[2]
# As in the script `deploy/demo` and in the README.
TASK, THRESHOLD = Task.ioi(num_prompts=16, seed=0), 0.05
MARGIN = 1e-4
# Change it with the model or the task only: one edge per line, in order of decision.
EXPECTED = Path(__file__).with_name("demo_circuit.txt")
BIN = Path(sys.executable).parent


def discover(*options: str) -> Circuit:
    with ServerProcess({}, *options) as process, Client(process.address) as client:
        return client.discover("demo", TASK, THRESHOLD)


def test_the_circuit_is_the_same_everywhere(client: Client) -> None:
    circuits = [client.discover("demo", TASK, THRESHOLD) for _ in range(2)]
    circuits += [discover("--threads", "2"), discover("--threads", "2", "--window", "1")]
    circuits += [discover("--threads", "1"), discover("--executor", "literal", "--window", "1")]
    expected = EXPECTED.read_text("utf-8").split()
    for circuit in circuits:
        assert [str(edge) for edge in circuit.edges] == expected
        assert circuit.num_evaluations == circuits[0].num_evaluations
        # No verdict is so close that another machine's rounding could turn it.
        assert min(abs(verdict.delta - THRESHOLD) for verdict in circuit.verdicts) >= MARGIN
    for same in (circuits[:2], circuits[2:4]):
        assert len({circuit.canonical_bytes() for circuit in same}) == 1


def test_the_circuit_does_the_task(client: Client) -> None:
    circuit = client.discover("demo", TASK, THRESHOLD)
    faithfulness = client.evaluate("demo", TASK, circuit).faithfulness
    assert faithfulness is not None
    assert faithfulness > 0.8
    differences = client.evaluate("demo", TASK, circuit, metric="logit_difference")
    assert differences.value < 0.5 * differences.full < 0 < differences.value - differences.full


needs_commands = pytest.mark.skipif(
    shutil.which("pahq", path=str(BIN)) is None, reason="needs an environment in which pahq is installed"
)


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]])}


@needs_commands
def test_the_script(tmp_path: Path, environment: dict[str, str]) -> None:
    command = [ROOT / "deploy" / "demo", tmp_path / "out"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    circuit = Circuit.load(tmp_path / "out" / "ioi.json")
    expected = EXPECTED.read_text("utf-8").split()
    assert [str(edge) for edge in circuit.edges] == expected
    lines = run.stdout.splitlines()
    assert f"# {len(expected)} of {NUM_EDGES} edges" in run.stdout
    assert not [edge for edge in expected if not any(line.startswith(f"{edge}\t") for line in lines)]
    assert (tmp_path / "out" / "ioi.dot").read_text("utf-8").startswith("digraph circuit {")
    assert (tmp_path / "out" / "ioi.html").read_text("utf-8").startswith("<!doctype html>")
    assert "stopping" in (tmp_path / "out" / "server.log").read_text("utf-8")


@needs_commands
def test_the_script_stops_its_server_when_interrupted(tmp_path: Path, environment: dict[str, str]) -> None:
    log = tmp_path / "out" / "server.log"
    command = [ROOT / "deploy" / "demo", tmp_path / "out"]
    with subprocess.Popen(command, env=environment, start_new_session=True) as script:
        while not (log.is_file() and "listening" in log.read_text("utf-8")):
            assert script.poll() is None
            time.sleep(0.05)
        os.killpg(script.pid, signal.SIGINT)
        assert script.wait() != 0
    while exists(script.pid):  # the limit is the test's own timeout
        time.sleep(0.05)


def exists(group: int) -> bool:
    """Whether anybody of a process group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@needs_commands
def test_the_script_fails_when_the_server_does(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "pahq-server").write_text("#!/bin/sh\necho no such luck >&2\nexit 3\n")
    (tmp_path / "pahq-server").chmod(0o755)
    environment["PATH"] = os.pathsep.join([str(tmp_path), environment["PATH"]])
    command = [ROOT / "deploy" / "demo", tmp_path / "out"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "no such luck" in run.stderr
