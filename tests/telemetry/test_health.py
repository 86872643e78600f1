"""``pahq-server health`` against a real server."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.api_server import RunningServer
from helpers.fake_engine import FakeEngine

from pahq_server.cli import main


def test_a_server_that_serves(capsys: pytest.CaptureFixture[str]) -> None:
    with RunningServer(FakeEngine()) as server:
        assert main(["health", "--address", f"127.0.0.1:{server.port}"]) == 0
    assert capsys.readouterr().out == "SERVING\n"


def test_a_server_without_workers(capsys: pytest.CaptureFixture[str]) -> None:
    engine = FakeEngine()
    engine.why_unavailable = "no worker is left"
    with RunningServer(engine) as server:
        address = ["--address", f"127.0.0.1:{server.port}"]
        assert main(["health", *address]) == 1
        assert main(["health", "--alive", *address]) == 0
        assert main(["health", "--resumed", *address]) == 0
    assert capsys.readouterr().out.split() == ["NOT_SERVING", "SERVING", "SERVING"]


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # nobody listens
        assert main(["health", "--address", f"127.0.0.1:{probe.getsockname()[1]}"]) == 1
    assert "UNAVAILABLE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tls-cert", "c.pem"], "go together"),
        (["--tls-cert", "c.pem", "--tls-key", "k.pem"], "need --tls-ca"),
        (["--tls-name", "lab"], "need --tls-ca"),
        (["--alive", "--resumed"], "ask one at a time"),
        (["--tls-ca", "/nowhere/ca.pem"], "cannot read /nowhere/ca.pem"),
    ],
)
def test_usage(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", *options]) == 2
    assert message in capsys.readouterr().err


def test_it_does_not_load_what_takes_seconds(tmp_path: Path) -> None:
    """It is started anew for every check."""
    code = """if True:
        import sys
        from pahq_server.cli import main
        main(["health", "--address", "127.0.0.1:9", "--timeout", "0.1"])
        assert not {"torch", "transformers"} & sys.modules.keys()
    """
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
