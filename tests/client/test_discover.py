"""`pahq_client.discover`: which server it uses, and the embedded one. The server here is a stand-in."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

import pahq_client
from pahq_client import InvalidRequest, NoEmbeddedServer, TlsConfig, Unavailable, discover
from pahq_client.embedded import EmbeddedServer, served_model
from pahq_client.retries import Deadline

from .fake_server import FakeServer

STAND_IN = """
import os, signal, sys
from pathlib import Path
here = Path(__file__).parent.parent
(here / "arguments").write_text("\\n".join(sys.argv[1:]))
(here / "pid").write_text(str(os.getpid()))
mode = (here / "mode").read_text()
if mode == "die":
    print("noise\\nno memory for the model", file=sys.stderr)
    sys.exit(3)
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
from client.fake_server import FakeServer
with FakeServer() as server:
    print("loading", flush=True)
    if mode != "silent":
        print(f"pahq-server listening on {server.address}", flush=True)
    print("x" * 200_000, flush=True)  # more than a pipe holds
    sys.stdin.read()
    if mode in ("stubborn", "silent"):
        signal.pause()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for package in ("pahq_server", "torch"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "pahq_server" / "__main__.py").write_text(STAND_IN)
    (tmp_path / "mode").write_text("serve")
    paths = [str(tmp_path), str(Path(__file__).parent), *(os.path.abspath(p) for p in sys.path)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.delenv("PAHQ_SERVER", raising=False)
    monkeypatch.chdir(tmp_path)  # `python -m` looks there first
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    return tmp_path


def _gone(stand_in: Path) -> bool:
    try:
        os.kill(int((stand_in / "pid").read_text()), 0)
    except ProcessLookupError:
        return True
    return False


def test_named_server(server: FakeServer) -> None:
    assert len(discover("demo", "ioi", server=server.address).edges) == 2


def test_server_of_the_environment(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAHQ_SERVER", server.address)
    pahq_client.discover("demo", "ioi", token="t")
    assert server.calls[0][2]["authorization"] == "Bearer t"


def test_a_path_is_sent_to_a_named_server_as_it_is(server: FakeServer, tmp_path: Path) -> None:
    discover(tmp_path, "ioi", server=server.address)  # for the server to refuse
    assert server.called("CreateJob")[0].spec.objective.model == str(tmp_path)


def test_embedded_server(stand_in: Path) -> None:
    assert len(discover("demo", "ioi", threshold=0.1).edges) == 2
    arguments = (stand_in / "arguments").read_text().splitlines()
    assert arguments == ["serve", "--listen", "127.0.0.1:0", "--parent-watch", "--ephemeral"]
    assert _gone(stand_in)


def test_embedded_server_with_a_model(stand_in: Path) -> None:
    (stand_in / "my model").mkdir()
    discover("my model", "ioi")
    arguments = (stand_in / "arguments").read_text().splitlines()
    assert arguments[5:] == ["--model", f"my-model={stand_in / 'my model'}"]


@pytest.mark.parametrize("mode", ["serve", "stubborn"])
def test_embedded_server_ends_with_an_error(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    (stand_in / "mode").write_text(mode)
    monkeypatch.setattr("pahq_client.embedded._STOP_SECONDS", 0.2)
    with pytest.raises(ZeroDivisionError):
        discover("demo", "ioi", progress=lambda event: 1 / 0)
    assert _gone(stand_in)


def test_embedded_server_that_dies_tells_why(stand_in: Path) -> None:
    (stand_in / "mode").write_text("die")
    with pytest.raises(NoEmbeddedServer, match="start: no memory for the model") as raised:
        discover("demo", "ioi")
    assert raised.value.__notes__ == ["Its log:\nnoise\nno memory for the model"]
    assert isinstance(raised.value, Unavailable)
    assert _gone(stand_in)


def test_embedded_server_that_is_not_ready_in_time(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (stand_in / "mode").write_text("silent")
    monkeypatch.setattr("pahq_client.embedded._STOP_SECONDS", 0.2)
    with pytest.raises(TimeoutError), EmbeddedServer({}, Deadline.after(1)):
        pass
    assert not (stand_in / "pid").exists() or _gone(stand_in)


@pytest.mark.parametrize("missing", ["pahq_server", "torch"])
def test_no_server_installed(stand_in: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(NoEmbeddedServer) as raised:
        discover("demo", "ioi")
    for word in (missing, "server=", "PAHQ_SERVER", "pip install '.[server]' in a checkout of PAHQ"):
        assert word in str(raised.value)


def test_an_embedded_server_has_no_tls(stand_in: Path) -> None:
    with pytest.raises(InvalidRequest, match="tls"):
        discover("demo", "ioi", tls=TlsConfig())


def test_served_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "plain"):
        (tmp_path / name).mkdir()
    assert served_model("demo") == ("demo", {})
    assert served_model("./demo") == ("demo-local", {"demo-local": str(tmp_path / "demo")})
    assert (
        served_model("plain")
        == served_model(tmp_path / "plain")
        == ("plain", {"plain": str(tmp_path / "plain")})
    )
    assert served_model("openai-community/gpt2") == ("gpt2", {"gpt2": "openai-community/gpt2"})
    assert served_model("nobody-knows") == ("nobody-knows", {})
    for path in ("./none", "/none", "~/none-of-this", Path("none")):
        with pytest.raises(InvalidRequest, match="no directory"):
            served_model(path)
