"""A server in this process over real models, which starts at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from helpers.api_server import RunningServer
from pahq_client import Client
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.generation.transformers_backend import TransformersBackend
from pahq_server.models.loading import load


class _Engine(ModelEngine):
    def release(self) -> None:
        """A `RunningServer` calls it at its end."""


@contextmanager
def client_of_models(models: Mapping[str, Path]) -> Iterator[Client]:
    """Serves models, which also generate text, while the context lasts; gives a client.

    Args:
        models: names to directories.
    """
    loaded = {name: load(str(folder)) for name, folder in models.items()}
    engine = _Engine(loaded, generation=TransformersBackend())
    try:
        with RunningServer(engine) as server, Client(f"127.0.0.1:{server.port}") as client:  # type: ignore[arg-type]
            yield client
    finally:
        engine.stop()
