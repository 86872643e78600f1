"""A server of one's own, for the time of one call."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import pahq_client
from pahq_client import Client, InvalidRequest, Task, Unavailable
from pahq_client.retries import Backoff

TASK = Task([[1, 2, 3], [4, 5]], [[4, 6, 3], [7, 5]])


def test_the_demo_needs_no_server_and_no_file(client: Client) -> None:
    task = Task.ioi(num_prompts=3)
    events: list[pahq_client.Event] = []
    circuit = pahq_client.discover("demo", task, 0.2, progress=events.append)
    assert circuit == client.discover("demo", task, 0.2)
    assert events[-1].kind == "END"


def test_a_directory_may_be_the_model(
    client: Client, plain_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    circuit = pahq_client.discover(plain_model, TASK, 0.01)
    assert list(tmp_path.iterdir()) == []  # it leaves nothing behind
    assert circuit == client.discover("plain", TASK, 0.01)
    assert circuit.provenance["run"]["model"] == "plain"


def test_errors_of_an_embedded_server_are_those_of_any(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="nonsense"):
        pahq_client.discover(tmp_path / "nonsense", TASK, 0.01)
    with pytest.raises(InvalidRequest) as error:
        pahq_client.discover("demo", Task([[1, 2]], [[1]]), 0.01)
    assert error.value.field == "task.corrupted[0]"


def test_it_does_not_outlive_a_killed_parent() -> None:
    code = """if True:
        import signal
        from pahq_client import Client, Task
        from pahq_client.embedded import EmbeddedServer
        with EmbeddedServer({}) as server, Client(server.address) as client:
            job = client.submit("demo", Task.ioi(num_prompts=64), 0, grouping="none")
            print(server.address, flush=True)
            signal.pause()
    """
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, Client(parent.stdout.readline().strip(), backoff=Backoff(0)) as client:
        assert len(client.jobs()) == 1
        parent.kill()
        while answers(client):  # the limit is the test's own timeout
            time.sleep(0.05)


def answers(client: Client) -> bool:
    try:
        client.server_info()
    except Unavailable:
        return False
    return True
