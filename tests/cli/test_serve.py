from __future__ import annotations

import socket

import pytest

from pahq_server.cli import make_parser
from pahq_server.cli.flags import build
from pahq_server.cli.serve import client_command
from pahq_server.config.server import ServerConfig


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--listen 0.0.0.0:1 --insecure", "pahq discover --server HERE:1 DEMO"),
        ("--listen [::]:1 TLS", "PAHQ_TOKEN=TOKEN pahq discover --server HERE:1 DEMO --tls-ca CA.crt"),
        ("--auth none TLS", "pahq discover --server 127.0.0.1:1 DEMO --tls-ca CA.crt"),
        (
            "--auth certificates --tls-client-ca x TLS",
            "pahq discover --server 127.0.0.1:1 DEMO --tls-ca CA.crt --tls-cert YOURS.crt "
            "--tls-key YOURS.key",
        ),
    ],
)
def test_the_line_for_clients_goes_with_the_options(options: str, line: str) -> None:
    words = options.replace("TLS", "--tls-cert c --tls-key k").split()
    config = build(ServerConfig, make_parser().parse_args(["serve", *words]))
    expected = line.replace("HERE", socket.gethostname())
    expected = expected.replace("DEMO", "--model demo --task ioi --threshold 0.05")
    assert client_command(config.network.listen.replace("7300", "1"), config) == expected
