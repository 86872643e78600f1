"""From a directory or hub id to a model with its tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from transformers import AutoConfig

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import Tokenizer
from pahq_server.models.adapters import gpt2, gpt_neo, hooked, llama
from pahq_server.models.architecture import Model
from pahq_server.models.checkpoint import Checkpoint, revision_hash
from pahq_server.models.shapes import check_shapes
from pahq_server.models.tokenizer import load_tokenizer

ADAPTERS: dict[str, ModuleType] = {
    "gpt2": gpt2,
    "gpt_neo": gpt_neo,
    "llama": llama,
    "hooked_transformer": hooked,
}
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be served: float32 on the CPU."""

    model: Model
    tokenizer: Tokenizer | None
    revision: str


def load(source: str) -> LoadedModel:
    """Loads a checkpoint directory, or a hub id where there is a network.

    Raises InvalidRequestError (field ``model``) for anything that is missing, damaged or unsupported.
    """
    directory = _directory(source)
    config = _config(directory)
    adapter = ADAPTERS[config.model_type]
    try:
        architecture = adapter.architecture(config)
    except (AttributeError, TypeError) as error:
        raise InvalidRequestError("model", f"config.json cannot be used: {error}") from error
    with Checkpoint(directory) as checkpoint:
        try:
            weights = adapter.weights(architecture, config, checkpoint)
        except (RuntimeError, ValueError) as error:
            detail = f"the tensors do not have the shapes that config.json asks for: {error}"
            raise InvalidRequestError("model", detail) from error
    check_shapes(architecture, weights)
    model = Model(architecture, weights, checkpoint.parameters)
    return LoadedModel(model, load_tokenizer(directory), revision_hash(directory))


def _directory(source: str) -> Path:
    path = Path(source)
    if path.is_dir():
        return path
    if path.is_absolute() or source.startswith(".") or source.count("/") > 1:
        raise InvalidRequestError("model", f"{source!r} is not a directory")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=_HUB_FILES))
    except Exception as error:
        raise InvalidRequestError(
            "model", f"{source!r} is not a directory and could not be had from the hub: {error}"
        ) from error


def _config(directory: Path) -> Any:
    """The configuration with the format's defaults filled in. Never runs code from the checkpoint."""
    try:
        raw = json.loads((directory / "config.json").read_text("utf-8"))
        model_type = raw["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidRequestError(
            "model", f"{directory.name!r} has no readable config.json: {error!r}"
        ) from error
    if not isinstance(model_type, str) or model_type not in ADAPTERS:
        known = ", ".join(sorted(ADAPTERS))
        raise InvalidRequestError(
            "model", f"config.json: architecture {model_type!r} is not supported; supported: {known}"
        )
    if model_type == "hooked_transformer":
        return SimpleNamespace(**raw)
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:
        raise InvalidRequestError("model", f"config.json cannot be used: {error}") from error
