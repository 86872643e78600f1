"""Progress for people, and patience."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import grpc
import pytest

from pahq_client import Client, Event, EventKind, InvalidRequest, JobState, Progress, TlsConfig, Unavailable
from pahq_client.display.progress import reporter
from pahq_client.formatting import Speed, describe
from pahq_client.retries import Backoff, Deadline

from .fake_server import FakeServer

FIGURES = {"kept": 7, "metric": 0.03125, "evaluations": 40}
PROGRESS = Progress(40, 100, "edges", figures=FIGURES, eta_s=3725.4)
EVENT = Event(3, EventKind.PROGRESS, JobState.RUNNING, PROGRESS)


def test_words_beside_the_bar() -> None:
    assert describe(EVENT, 12.5) == "40/100 edges, 7 kept, metric 0.03125, 12 eval/s, 1:02:05 left"
    assert describe(Event(1, EventKind.STATE, JobState.QUEUED), None) == "queued"
    queued = Event(1, EventKind.STATE, JobState.QUEUED, Progress(0, 100, "edges"), queue_position=3)
    assert describe(queued, None) == "queued, number 3 in the queue"


def test_words_of_another_method() -> None:
    progress = Progress(3, 8, "prompts", "computing gradients", {"loss": 0.5})
    event = Event(3, EventKind.PROGRESS, JobState.RUNNING, progress)
    assert describe(event, 2.5) == "computing gradients, 3/8 prompts, loss 0.5, 2.5 prompts/s"
    assert (event.kept, event.metric, event.evaluations, progress.work) == (0, 0.0, 0, 3)


def test_words_of_node_pruning() -> None:
    """Messages hold figures in any order; the sizes end the line, where a narrow terminal cuts it off."""
    figures = {"size_mlp_hidden": 1952.6, "lambda": 0.0585, "size_heads": 15.6, "kl": 0.4459}
    expected = (
        "training, 118/150 steps, kl 0.4459, lambda 0.0585, 9.0 steps/s, 0:04 left, "
        "expected heads 16, mlp hidden 1,953"
    )
    for names in (sorted(figures), sorted(figures, reverse=True)):
        progress = Progress(118, 150, "steps", "training", {name: figures[name] for name in names}, 3.6)
        event = Event(3, EventKind.PROGRESS, JobState.RUNNING, progress)
        assert describe(event, 9.0) == expected


def test_speed_counts_from_the_first_event() -> None:
    times = iter([10.0, 10.0, 12.0])
    speed = Speed(lambda: next(times))
    assert [speed.update(n) for n in (100, 150, 200)] == [None, None, 50.0]


def test_the_bar_is_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with reporter(True) as report:
        report(Event(1, EventKind.STATE, JobState.QUEUED))
        report(EVENT)
    out, err = capsys.readouterr()
    assert out == ""
    assert "40/100" in err


def test_reporters(capsys: pytest.CaptureFixture[str]) -> None:
    for silent in (None, False):
        with reporter(silent) as report:
            report(EVENT)
    seen: list[Event] = []
    with reporter(seen.append) as report:
        report(EVENT)
    assert seen == [EVENT]
    assert capsys.readouterr() == ("", "")
    with pytest.raises(InvalidRequest, match="progress"):
        reporter("yes")  # type: ignore[arg-type]


def test_backoff_grows_and_ends() -> None:
    delays = list(Backoff(attempts=6, first_s=1.0, most_s=4.0).delays())
    for delay, most in zip(delays, [1, 2, 4, 4, 4, 4], strict=True):
        assert most / 2 <= delay <= most


def test_deadlines() -> None:
    assert Deadline(None).within(5.0) == 5.0
    assert Deadline(None).left is None
    assert not Deadline(None).passed
    past = Deadline.after(0)
    assert (past.passed, past.within(5.0), past.left) == (True, 0.0, 0.0)
    assert 0 < (Deadline.after(1000).left or 0) <= 1000


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_tls(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    files = ["-keyout", str(key), "-out", str(cert)]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(["openssl", "req", "-x509", *kind, *files, *names], check=True, capture_output=True)
    pair = (key.read_bytes(), cert.read_bytes())
    mutual = grpc.ssl_server_credentials([pair], pair[1], require_client_auth=True)
    with FakeServer(credentials=mutual) as server:
        config = TlsConfig(ca=str(cert), cert=str(cert), key=str(key))
        with Client(server.address, tls=config, token="t") as client:
            assert client.models()[0].name == "demo"
        for wrong in (TlsConfig(ca=str(cert)), True, None):
            with Client(server.address, tls=wrong) as client, pytest.raises(Unavailable):
                client.models()
