"""Connections that do not come about because of encryption say so; clients of both kinds."""

from __future__ import annotations

import asyncio
import copy
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.api_server import RunningServer
from helpers.certificates import DAY, Authority
from helpers.fake_engine import FakeEngine

from pahq_client import AsyncClient, Client, InvalidRequest, TlsConfig, Unavailable
from pahq_client.cli import main
from pahq_server.access.tls import TlsContents, TlsFiles
from pahq_server.access.tls import read_tls_files as read


class Lab:
    """An authority, a stranger to it, and files of both.

    Args:
        folder: for the files.
    """

    def __init__(self, folder: Path) -> None:
        self.authority, self.stranger = Authority(folder), Authority(folder, "stranger")
        self.own = self.authority.sign("server")
        self.expired = self.authority.sign("old", valid_for=-DAY)
        self.odd = self.stranger.sign("ada")

    @property
    def trusting(self) -> TlsConfig:
        return TlsConfig(ca=str(self.authority.cert))

    @contextmanager
    def server(self, kind: str) -> Iterator[str]:
        """Address of a server: ``plain``, ``tls``, ``mtls`` (asks for certificates) or ``old`` (expired)."""
        files = TlsFiles(self.own.cert, self.own.key, self.authority.cert if kind == "mtls" else None)
        tls = {
            "plain": lambda: None,
            "old": lambda: TlsContents(self.expired.cert_pem, self.expired.key_pem, None),
        }.get(kind, lambda: read(files))()
        with RunningServer(FakeEngine(), api={"tls": tls}) as running:
            yield f"127.0.0.1:{running.port}"


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def ask(address: str, tls: bool | TlsConfig | None) -> list[str]:
    with Client(address, tls=tls, timeout=60) as client:
        return [model.name for model in client.models()]


def ask_async(address: str, tls: bool | TlsConfig | None) -> list[str]:
    async def asked() -> list[str]:
        async with AsyncClient(address, tls=tls, timeout=60) as client:
            return [model.name for model in await client.models()]

    return asyncio.run(asked())


CASES: list[tuple[str, Callable[[Lab], bool | TlsConfig | None], list[str]]] = [
    (
        "tls",
        lambda lab: None,
        ["encrypts its connections, and this client does not", "tls=TlsConfig", "--tls-ca"],
    ),
    ("mtls", lambda lab: None, ["encrypts its connections, and this client does not"]),
    ("plain", lambda lab: lab.trusting, ["does not encrypt its connections: leave out tls="]),
    ("plain", lambda lab: True, ["does not encrypt its connections: leave out tls="]),
    (
        "tls",
        lambda lab: True,
        ["signed by no authority that gRPC knows by itself", "TlsConfig(ca=...)", "--tls-ca"],
    ),
    (
        "tls",
        lambda lab: TlsConfig(ca=str(lab.stranger.cert)),
        ["signed by no authority that the certificates in", "stranger.pem"],
    ),
    ("old", lambda lab: lab.trusting, ["has expired", "must renew it"]),
    ("mtls", lambda lab: lab.trusting, ["ask clients for a certificate", "cert=", "--tls-cert"]),
    (
        "mtls",
        lambda lab: TlsConfig(str(lab.authority.cert), str(lab.odd.cert), str(lab.odd.key)),
        ["does not accept the certificate in", "ada.cert.pem"],
    ),
]
IDS = [
    "plain to tls",
    "plain to mtls",
    "tls to plain",
    "public to plain",
    "public",
    "stranger",
    "old",
    "none",
    "odd",
]


@pytest.mark.parametrize("asking", [ask, ask_async], ids=["blocking", "async"])
@pytest.mark.parametrize(("kind", "tls", "words"), CASES, ids=IDS)
def test_what_is_wrong_is_said(
    kind: str,
    tls: Callable[[Lab], bool | TlsConfig | None],
    words: list[str],
    asking: Callable[[str, bool | TlsConfig | None], list[str]],
    lab: Lab,
) -> None:
    with lab.server(kind) as address, pytest.raises(Unavailable) as raised:
        asking(address, tls(lab))
    for part in (*words, address):
        assert part in str(raised.value)
    assert "no PAHQ server is reachable" not in str(raised.value)
    assert raised.value.detail  # gRPC's own words are there, too
    again = copy.copy(raised.value)  # as pickle does: from its arguments
    assert (str(again), vars(again)) == (str(raised.value), vars(raised.value))


def test_a_certificate_of_another_name(tmp_path: Path) -> None:
    """It bears 127.0.0.1 and localhost; the server is called by another address of this machine."""
    authority = Authority(tmp_path)
    own = authority.sign("server")
    tls = read(TlsFiles(own.cert, own.key))
    with RunningServer(FakeEngine(), api={"tls": tls}) as running, forwarded(running.port) as address:
        with pytest.raises(Unavailable, match="is for other names") as raised:
            ask(address, TlsConfig(ca=str(authority.cert)))
        assert address in str(raised.value)


@contextmanager
def forwarded(port: int) -> Iterator[str]:
    """An address in front of a port of 127.0.0.1."""

    async def serve(ready: Callable[[int], None], stop: asyncio.Event) -> None:
        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(pump(reader, back_writer), pump(back_reader, writer))

        async with await asyncio.start_server(forward, "127.0.0.2", 0) as front:
            ready(front.sockets[0].getsockname()[1])
            await stop.wait()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

    ports: queue.SimpleQueue[int] = queue.SimpleQueue()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(ports.put, stop),))
    thread.start()
    yield f"127.0.0.2:{ports.get(timeout=60)}"
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Passes bytes on until one side has had enough."""
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


def test_a_connection_that_works(lab: Lab) -> None:
    good = lab.authority.sign("good")
    with lab.server("mtls") as address:
        tls = TlsConfig(str(lab.authority.cert), str(good.cert), str(good.key))
        assert ask(address, tls) == ask_async(address, tls) == ["toy"]


def test_nobody_there_is_still_said_in_the_old_words(lab: Lab) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens
        address = f"127.0.0.1:{free.getsockname()[1]}"
        for tls in (None, lab.trusting):
            with pytest.raises(Unavailable, match=f"no PAHQ server is reachable at {address}") as raised:
                ask(address, tls)
            assert raised.value.explanation == ""


def test_a_server_that_hangs_up_is_not_taken_for_one_that_encrypts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as rude:

        def hang_up() -> None:
            while True:
                try:
                    rude.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        with pytest.raises(Unavailable, match="no PAHQ server is reachable"):
            ask(f"127.0.0.1:{rude.getsockname()[1]}", None)
        rude.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("which", "field", "detail"),
    [
        ("ca is a key", "tls.ca", "holds no certificate"),
        ("ca is text", "tls.ca", "holds no certificate"),
        ("another's key", "tls.cert", "is not the key of"),
        ("cert is text", "tls.cert", "are no certificate with an unencrypted key"),
        ("locked", "tls.cert", "are no certificate with an unencrypted key"),
    ],
)
def test_files_of_something_else(which: str, field: str, detail: str, lab: Lab, tmp_path: Path) -> None:
    text = tmp_path / "text.pem"
    text.write_text("not PEM")
    ca, locked = str(lab.authority.cert), lab.authority.sign("locked", password=b"secret")
    config = {
        "ca is a key": TlsConfig(ca=str(lab.own.key)),
        "ca is text": TlsConfig(ca=str(text)),
        "another's key": TlsConfig(ca, str(lab.own.cert), str(lab.odd.key)),
        "cert is text": TlsConfig(ca, str(text), str(lab.own.key)),
        "locked": TlsConfig(ca, str(locked.cert), str(locked.key)),
    }[which]
    with pytest.raises(InvalidRequest, match=detail) as raised:
        Client("127.0.0.1:1", tls=config)
    assert raised.value.field == field


# What gRPC's core writes to stderr


def pahq(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environ}
    command = [sys.executable, "-m", "pahq_client.cli", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_one_line_on_stderr_and_none_of_grpcs(lab: Lab) -> None:
    with lab.server("tls") as address:
        wrong = pahq("models", "--server", address, "--tls")
        assert (wrong.returncode, wrong.stdout) == (3, "")
        assert len(wrong.stderr.splitlines()) == 1
        assert wrong.stderr.startswith("pahq: error: the certificate of the server at")
        # Who wants to see them does.
        loud = pahq("models", "--server", address, "--tls", GRPC_VERBOSITY="INFO")
        assert "Handshake failed" in loud.stderr
        right = pahq("models", "--server", address, "--tls-ca", str(lab.authority.cert))
        assert (right.returncode, right.stderr) == (0, "")


@pytest.mark.parametrize("variable", [None, "GRPC_VERBOSITY", "GRPC_TRACE"])
def test_the_environment_is_left_as_it_was(variable: str | None) -> None:
    code = "import os, pahq_client; print([os.environ.get(n) for n in ('GRPC_VERBOSITY', 'GRPC_TRACE')])"
    env = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    env |= {} if variable is None else {variable: "ERROR" if variable == "GRPC_VERBOSITY" else "http"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=True
    )
    assert run.stdout.strip() == str([env.get("GRPC_VERBOSITY"), env.get("GRPC_TRACE")])


# What is taken from the environment


def test_the_server_and_the_token_are_taken_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, lab: Lab
) -> None:
    with lab.server("plain") as address:
        monkeypatch.setenv("PAHQ_SERVER", address)
        monkeypatch.setenv("PAHQ_TOKEN", "s3cret")
        with Client() as client:
            assert client.address == address
            assert client._endpoint.metadata[-1] == ("authorization", "Bearer s3cret")
            assert [model.name for model in client.models()] == ["toy"]
        with Client("127.0.0.1:1", token="other") as client:
            assert client.address == "127.0.0.1:1"
            assert client._endpoint.metadata[-1] == ("authorization", "Bearer other")

        async def asked() -> str:
            async with AsyncClient() as client:
                await client.models()
                return client.address

        assert asyncio.run(asked()) == address


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("value", [None, ""])
def test_no_server_at_all(
    kind: type[Client] | type[AsyncClient], value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PAHQ_SERVER", raising=False)
    if value is not None:
        monkeypatch.setenv("PAHQ_SERVER", value)
    with pytest.raises(InvalidRequest, match=r"\$PAHQ_SERVER") as raised:
        kind()
    assert raised.value.field == "server"
    assert "pahq_client.discover()" in raised.value.detail


def test_faults_of_the_environment_name_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAHQ_SERVER", "7300")
    with pytest.raises(InvalidRequest, match=r"must be HOST:PORT.*\(it is \$PAHQ_SERVER\)"):
        Client()
    monkeypatch.setenv("PAHQ_TOKEN", "a\nb")
    with pytest.raises(InvalidRequest, match=r"printable ASCII text \(it is \$PAHQ_TOKEN\)"):
        Client("127.0.0.1:1")
    monkeypatch.setenv("PAHQ_TOKEN", "s3cret")
    with pytest.raises(InvalidRequest, match=r"in the clear: pass tls=, too \(it is \$PAHQ_TOKEN\)"):
        Client("gpu-box:7300")
    monkeypatch.setenv("PAHQ_TOKEN", "")
    assert len(Client("gpu-box:7300")._endpoint.metadata) == 1


def test_the_command_takes_them_too(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with lab.server("tls") as address:
        monkeypatch.setenv("PAHQ_SERVER", address)
        monkeypatch.setenv("PAHQ_TOKEN", "s3cret")
        assert main(["models", "--tls-ca", str(lab.authority.cert)]) == 0
        assert "toy" in capsys.readouterr().out
        assert main(["models"]) == 3
        assert "encrypts its connections" in capsys.readouterr().err
