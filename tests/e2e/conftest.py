"""One server process that most tests of this folder share, and clients of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.random_models import save_hooked
from safetensors.torch import save_file

from pahq_client import Client

from .cases import load_cases
from .process import ServerProcess


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAHQ_SERVER", "PAHQ_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, two heads, random weights, no tokenizer: 23 token ids, context 16, 7 outputs."""
    directory = tmp_path_factory.mktemp("models") / "plain"
    save_hooked(directory)
    return directory


@pytest.fixture(scope="session")
def overflowing_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its logits are finite, their squares are not."""
    directory = tmp_path_factory.mktemp("models") / "overflowing"
    tensors = save_hooked(directory)
    tensors["unembed.W_U"] *= 1e30
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.fixture(scope="session")
def server(plain_model: Path, overflowing_model: Path) -> Iterator[ServerProcess]:
    """Serves the models of all cases, ``plain``, ``overflowing`` and ``demo``."""
    models = {case.model: case.model_directory for case in load_cases()}
    with ServerProcess(models | {"plain": plain_model, "overflowing": overflowing_model}) as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as connected:
        yield connected
