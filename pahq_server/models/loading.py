"""From a directory or hub id to a model with its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

import torch

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import Tokenizer
from pahq_server.models.adapters import gpt2, gpt_neo, gpt_neox, hooked, llama, mistral, opt, qwen2, qwen3
from pahq_server.models.architecture import LayerWeights, Model, Rotary, Weights
from pahq_server.models.building import PLAIN, Transform, build
from pahq_server.models.checkpoint import PICKLES, Checkpoint, revision_hash
from pahq_server.models.fields import Fields
from pahq_server.models.headers import Headers
from pahq_server.models.leftovers import refuse_leftovers, refuse_other_weights
from pahq_server.models.mapped import Mapped
from pahq_server.models.shapes import check_ends, check_layer
from pahq_server.models.tokenizer import load_tokenizer
from pahq_server.models.unsupported import REASONS

ADAPTERS: dict[str, ModuleType] = {
    "gpt2": gpt2,
    "gpt_neo": gpt_neo,
    "gpt_neox": gpt_neox,
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "opt": opt,
    "hooked_transformer": hooked,
}
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_Checkpoint = TypeVar("_Checkpoint", bound=Checkpoint)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be served: float32 unless it is of `map_files`, on the CPU unless it was placed."""

    model: Model
    tokenizer: Tokenizer | None
    revision: str


@dataclass(frozen=True)
class Outline:
    """A model without values.

    Args:
        model: what `load` would give, with its tensors on the device ``meta``.
        bytes_on_disk: of the files with weights.
        dtypes: of the tensors that would be read, as they are stored.
    """

    model: Model
    bytes_on_disk: int
    dtypes: frozenset[torch.dtype]


def load(source: str, transform: Transform = PLAIN) -> LoadedModel:
    """Loads a checkpoint directory, or a hub id where there is a network.

    Args:
        source: directory or hub id.
        transform: what is kept of each layer as soon as it has been read.

    Raises InvalidRequestError (field ``model``) for anything that is missing, damaged or unsupported.
    """
    directory = _directory(source)
    model, _ = _assemble(directory, Checkpoint, transform)
    return LoadedModel(model, load_tokenizer(directory), revision_hash(directory))


def map_files(source: str) -> tuple[LoadedModel, Mapped]:
    """The plain model that `load` would give, with its tensors as they are stored: views of mapped files.

    They take no memory beyond the page cache. With them comes what says whether the files are still the same.

    Raises InvalidRequestError as `load` does.
    """
    directory = _directory(source)
    model, files = _assemble(directory, Mapped, PLAIN)
    return LoadedModel(model, load_tokenizer(directory), revision_hash(directory)), files


def outline(source: str, transform: Transform = PLAIN) -> Outline:
    """What `load` would give, from the configuration and the headers of the weights alone.

    Raises InvalidRequestError as `load` does, except for what is wrong with values or the tokenizer.
    """
    with torch.device("meta"):
        model, headers = _assemble(_directory(source), Headers, transform)
    return Outline(model, headers.bytes_on_disk, frozenset(headers.dtypes))


def _assemble(
    directory: Path, open_checkpoint: Callable[[Path], _Checkpoint], transform: Transform
) -> tuple[Model, _Checkpoint]:
    config = _config(directory)
    adapter = ADAPTERS[config.model_type]
    try:
        architecture = adapter.architecture(config)
    except (AttributeError, TypeError) as error:
        raise InvalidRequestError("model", f"config.json cannot be used: {error}") from error
    checkpoint = open_checkpoint(directory)
    refuse_other_weights(checkpoint)
    rotary: Rotary | None = None

    def ends() -> Weights:
        with _reshaping():
            found: Weights = adapter.ends(architecture, config, checkpoint)
        check_ends(architecture, found)
        nonlocal rotary
        rotary = found.rotary
        return found

    def layer(index: int) -> LayerWeights:
        with _reshaping():
            found: LayerWeights = adapter.layer(architecture, config, index, checkpoint)
        check_layer(architecture, index, found)
        return found

    model = build(architecture, ends, layer, transform)
    if hasattr(adapter, "BUFFERS"):  # others look for leftovers themselves
        refuse_leftovers(checkpoint, architecture, rotary, adapter.PREFIX, adapter.BUFFERS)
    return replace(model, parameters=checkpoint.parameters), checkpoint


@contextmanager
def _reshaping() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        detail = f"the tensors do not have the shapes that config.json asks for: {error}"
        raise InvalidRequestError("model", detail) from error


def _directory(source: str) -> Path:
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists() or path.is_absolute() or source.startswith(".") or source.count("/") > 1:
        hint = "; pickle files are never loaded" if path.suffix in PICKLES else ""
        raise InvalidRequestError("model", f"{source!r} is not a directory{hint}")
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
    _check_supported(model_type)
    if model_type == "hooked_transformer":
        return SimpleNamespace(**raw)
    fields: Fields = ADAPTERS[model_type].FIELDS
    fields.check_file(model_type, raw)
    try:
        # Imported where it is needed, as all of transformers: 100 MB.
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:
        raise InvalidRequestError("model", f"config.json cannot be used: {error}") from error
    # Some configurations are those of another format than they say.
    _check_supported(config.model_type)
    fields.check_config(raw, config)
    return config


def _check_supported(model_type: object) -> None:
    if not isinstance(model_type, str):
        raise InvalidRequestError("model", f"config.json: model_type is {model_type!r}, not a name")
    if model_type not in ADAPTERS:
        reason = f": {REASONS[model_type]}" if model_type in REASONS else ""
        known = ", ".join(sorted(ADAPTERS))
        raise InvalidRequestError(
            "model", f"config.json: architecture {model_type!r} is not supported{reason}; supported: {known}"
        )
