"""Which settings of access a server starts with, and why it refuses the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.certificates import Authority

from pahq_server.cli import main, make_parser
from pahq_server.cli.flags import build
from pahq_server.config.server import ServerConfig


def parsed(options: Sequence[str]) -> ServerConfig:
    return build(ServerConfig, make_parser().parse_args(["serve", *options]))


@pytest.mark.parametrize("address", ["0.0.0.0:7300", "[::]:7300", "192.0.2.1:7300", "gpu-box:7300"])
def test_an_open_address_needs_a_word(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--listen", address]) == 2
    assert "is open to the network: calls would not be encrypted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tls-cert", "c"], "--tls-cert and --tls-key go together"),
        (["--tls-key", "k"], "--tls-cert and --tls-key go together"),
        (["--tls-client-ca", "a"], "--tls-client-ca needs --tls-cert and --tls-key"),
        (["--auth", "certificates"], "--auth certificates needs --tls-client-ca"),
        (["--certificate-admin", "ada"], "--certificate-admin needs --auth certificates"),
        (["--auth", "tokens", "--certificate-admin", "ada"], "--certificate-admin needs --auth certificates"),
        (["--ephemeral", "--auth", "tokens"], "--ephemeral keeps no tokens, so nobody could call"),
        (
            ["--auth", "none", "--listen", "0.0.0.0:0"],
            "0.0.0.0:0 is open to the network: calls would not be encrypted",
        ),
    ],
)
def test_options_of_access_that_do_not_go_together(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "auth"),
    [
        ("", "auto"),
        ("--insecure --listen 0.0.0.0:1", "auto"),
        ("TLS --listen 0.0.0.0:1", "tokens"),
        ("TLS", "auto"),
        ("TLS --insecure --auth none --listen [::]:1", "none"),
    ],
)
def test_how_callers_are_known(options: str, auth: str, tmp_path: Path) -> None:
    own = Authority(tmp_path).sign("server")
    files = f"--tls-cert {own.cert} --tls-key {own.key}"
    config = parsed(options.replace("TLS", files).split())
    assert config.refusal() is None
    assert config.access.config(config.network.listen).auth == auth


def test_an_admin_whom_no_certificate_can_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = Authority(tmp_path)
    own = authority.sign("server")
    options = ["--tls-cert", str(own.cert), "--tls-key", str(own.key), "--tls-client-ca", str(authority.cert)]
    options += ["--auth", "certificates", "--certificate-admin", "Ada Lovelace"]
    assert main(["serve", *options]) == 2
    assert "'Ada Lovelace' is no user name, so it fits no certificate" in capsys.readouterr().err


def test_an_open_address_needs_callers_that_are_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Authority(tmp_path).sign("server")
    options = [
        "--listen",
        "0.0.0.0:1",
        "--auth",
        "none",
        "--tls-cert",
        str(own.cert),
        "--tls-key",
        str(own.key),
    ]
    assert main(["serve", *options]) == 2
    assert "0.0.0.0:1 is open to the network: anybody could call" in capsys.readouterr().err


def test_a_certificate_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = str(tmp_path / "nothing.pem")
    assert main(["serve", "--tls-cert", nothing, "--tls-key", nothing]) == 2
    assert f"tls-cert: cannot read {nothing}: No such file or directory" in capsys.readouterr().err
