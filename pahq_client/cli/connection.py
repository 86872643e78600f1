"""The server that the options of a command name."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager

from pahq_client.client import Client
from pahq_client.discover import connect
from pahq_client.embedded import DEMO
from pahq_client.endpoint import TlsConfig


@contextmanager
def connection(arguments: Namespace, model: str = DEMO) -> Iterator[tuple[Client, str]]:
    """A client, and the model's name on its server, which is started if none is named."""
    with connect(model, arguments.server, arguments.token, tls(arguments)) as connected:
        yield connected


def tls(arguments: Namespace) -> bool | TlsConfig:
    """Whether and how to encrypt."""
    config = TlsConfig(arguments.tls_ca, arguments.tls_cert, arguments.tls_key)
    return bool(arguments.tls) if config == TlsConfig() else config
