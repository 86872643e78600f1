from __future__ import annotations

import argparse
import copy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.files import DEPLOY
from pahq_server.cli.flags import build
from pahq_server.config.server import ServerConfig


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `deploy/certificates` makes."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("certificates") / "tls"
    command = [str(DEPLOY / "certificates"), str(folder), "pahq.lab", "10.0.0.7", "fe80::1", "localhost"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return folder


@pytest.fixture
def refusal(certificates: Path) -> Callable[[argparse.Namespace], str | None]:
    """Why a server would not start with options, if their files were there."""

    def refusal(options: argparse.Namespace) -> str | None:
        there = copy.copy(options)
        for name, file in (("tls_cert", "tls.crt"), ("tls_key", "tls.key"), ("tls_client_ca", "ca.crt")):
            if getattr(there, name) is not None:
                setattr(there, name, certificates / file)
        return build(ServerConfig, there).refusal()

    return refusal
