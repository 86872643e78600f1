"""``pahq`` as a process of its own: signals, pipes, what reaches the terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from pahq_client import Circuit

from .fake_server import FakeServer

DISCOVER = ["discover", "--model", "demo", "--task", "ioi", "--threshold", "0.1"]


def _environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "error"}


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pahq_client.cli", *arguments]


def test_interrupt_cancels_the_job(server: FakeServer) -> None:
    server.outcome = None
    process = subprocess.Popen(
        _command(*DISCOVER, "--server", server.address),
        env=_environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.watching.wait(60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "pahq: error: interrupted"
    assert "Traceback" not in err
    assert server.cancelled.is_set()


def test_one_line_on_stderr_in_a_real_process() -> None:
    done = subprocess.run(
        _command("models", "--server", "127.0.0.1:1"),
        env=_environ(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_leaves_is_no_error(circuit: Circuit, tmp_path: Path) -> None:
    circuit.save(tmp_path / "c.json")
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            _command("show", str(tmp_path / "c.json")),
            env=_environ(),
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
