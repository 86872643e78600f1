"""The scripts, run: certificates that real connections accept, and a server for a lab by one command."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deploy.files import DEPLOY
from pahq_client import Client, TlsConfig, Unauthenticated
from pahq_server.cli import main


@pytest.mark.parametrize("name", ["pahq.lab", "10.0.0.7", "fe80::1", "localhost", "127.0.0.1", "::1"])
def test_clients_accept_the_certificate_by_every_name(certificates: Path, name: str) -> None:
    _shake_hands(certificates, name)


def test_clients_do_not_accept_it_by_another_name(certificates: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        _shake_hands(certificates, "elsewhere.lab")


def test_keys_are_for_their_owner_alone(certificates: Path) -> None:
    for name in ("ca.key", "tls.key"):
        assert (certificates / name).stat().st_mode & 0o077 == 0


def test_renewing_keeps_the_authority(tmp_path: Path) -> None:
    command = [str(DEPLOY / "certificates"), str(tmp_path), "pahq.lab"]
    files = ("ca.crt", "ca.key", "tls.crt", "tls.key")
    contents = []
    for _ in range(2):
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        contents.append({name: (tmp_path / name).read_bytes() for name in files})
    before, after = contents
    assert [name for name in files if before[name] == after[name]] == ["ca.crt", "ca.key"]
    _shake_hands(tmp_path, "pahq.lab")


def test_an_authority_whose_key_is_elsewhere_is_not_replaced(tmp_path: Path) -> None:
    command = [str(DEPLOY / "certificates"), str(tmp_path), "pahq.lab"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    before = (tmp_path / "ca.crt").read_bytes()
    (tmp_path / "ca.key").rename(tmp_path / "elsewhere")
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "not its ca.key" in refused.stderr
    assert (tmp_path / "ca.crt").read_bytes() == before
    (tmp_path / "elsewhere").rename(tmp_path / "ca.key")
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def _shake_hands(folder: Path, name: str) -> None:
    """A TLS handshake between a server with the certificate and a client that calls it by a name."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    calling = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            try:
                serving.wrap_socket(connection, server_side=True).close()
            except (ssl.SSLError, OSError):
                connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with (
                socket.create_connection(server.getsockname()) as plain,
                calling.wrap_socket(plain, server_hostname=name),
            ):
                pass
        finally:
            thread.join(30)


def test_a_lab_starts_with_one_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    scripts = tmp_path / "bin"
    scripts.mkdir()
    command = scripts / "pahq-server"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m pahq_server "$@"\n')
    command.chmod(0o755)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "PAHQ_", "OTEL_"))
    }
    environment |= {"HOME": str(home), "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    start = [str(DEPLOY / "start"), "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    process = subprocess.Popen(start, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip().removeprefix("pahq-server listening on ")
        assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
        authority = str(home / ".config/pahq/tls/ca.crt")
        assert main(["health", "--address", address, "--tls-ca", authority]) == 0
        assert _server_info(address, authority, (home / ".config/pahq/token").read_text().strip())
        with pytest.raises(Unauthenticated):
            _server_info(address, authority, "pahq_wrong")
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert capfd.readouterr().out.endswith("SERVING\n")
    for path in (home / ".config/pahq/token", home / ".config/pahq/tls/tls.key"):
        assert path.stat().st_mode & 0o077 == 0


def _server_info(address: str, authority: str, token: str) -> object:
    with Client(address, token=token, tls=TlsConfig(ca=authority)) as client:
        return client.server_info().version


@pytest.mark.parametrize("option", [["--data-dir", "elsewhere"], ["--data-dir=elsewhere"]])
def test_tokens_are_made_where_the_server_looks_for_them(tmp_path: Path, option: list[str]) -> None:
    environment = os.environ | {"HOME": str(tmp_path)}
    run = subprocess.run([str(DEPLOY / "start"), *option], capture_output=True, text=True, env=environment)
    assert run.returncode == 2
    assert "for another place, run pahq-server serve itself" in run.stderr
    assert list(tmp_path.iterdir()) == []
