"""From a directory or hub id to a model with its tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import Tokenizer
from pahq_server.models.adapters.hooked_config import IRRELEVANT
from pahq_server.models.adapters.registry import ADAPTERS, HOOKED, REASONS, TRANSFORMERS_ADAPTERS
from pahq_server.models.architecture import LayerWeights, Model, Rotary, Weights
from pahq_server.models.building import PLAIN, Transform, build
from pahq_server.models.checkpoint import Checkpoint, Headers, Mapped, revision_hash
from pahq_server.models.files import CONFIG, WeightFiles, locate, read_json, weight_files
from pahq_server.models.tensor_checks import check_ends, check_layer, refuse_leftovers, refuse_other_weights
from pahq_server.models.tokenizer import load_tokenizer

_Checkpoint = TypeVar("_Checkpoint", bound=Checkpoint)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be served: float32 unless it is of `map_files`, on the CPU unless it was placed.

    Args:
        model: the model.
        tokenizer: None for a model that takes token ids only.
        revision: SHA-256 of configuration and weights, hexadecimal.
        directory: of the checkpoint.
        warnings: sentences about the checkpoint that whoever serves it should read.
    """

    model: Model
    tokenizer: Tokenizer | None
    revision: str
    directory: Path = field(default=Path(), kw_only=True)
    warnings: tuple[str, ...] = field(default=(), kw_only=True)


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
    directory = locate(source)
    model, _ = _assemble(directory, Checkpoint, transform)
    return _loaded(model, directory)


def map_files(source: str) -> tuple[LoadedModel, Mapped]:
    """The plain model that `load` would give, with its tensors as they are stored: views of mapped files.

    They take no memory beyond the page cache. With them comes what says whether the files are still the same.

    Raises InvalidRequestError as `load` does.
    """
    directory = locate(source)
    model, files = _assemble(directory, Mapped, PLAIN)
    return _loaded(model, directory), files


def outline(source: str, transform: Transform = PLAIN) -> Outline:
    """What `load` would give, from the configuration and the headers of the weights alone.

    Raises InvalidRequestError as `load` does, except for what is wrong with values or the tokenizer.
    """
    with torch.device("meta"):
        model, headers = _assemble(locate(source), Headers, transform)
    return Outline(model, headers.bytes_on_disk, frozenset(headers.dtypes))


@dataclass(frozen=True)
class Inspection:
    """What loading a checkpoint made of each of its parts.

    Args:
        loaded: the model.
        files: that were read, and what decided so.
        computed: fields of ``config.json`` that decide what is computed, with their values.
        ignored: names of fields that are there and have no effect on logits.
        read: number of tensors that were read.
        buffers: names of tensors beside them, which hold what follows from the configuration.
    """

    loaded: LoadedModel
    files: WeightFiles
    computed: Mapping[str, Any]
    ignored: tuple[str, ...]
    read: int
    buffers: tuple[str, ...]


def inspect(source: str) -> Inspection:
    """Loads a checkpoint and tells what became of each field, file and tensor. Raises as `load` does."""
    directory = locate(source)
    model, checkpoint = _assemble(directory, Checkpoint, PLAIN)
    raw = read_json(directory / CONFIG)
    ignored = [name for name in raw if _is_ignored(raw["model_type"], name)]
    unread = tuple(checkpoint.unread)
    return Inspection(
        loaded=_loaded(model, directory),
        files=weight_files(directory),
        computed={name: value for name, value in raw.items() if name not in ignored},
        ignored=tuple(ignored),
        read=sum(1 for _ in checkpoint) - len(unread),
        buffers=unread,
    )


def _is_ignored(model_type: str, name: str) -> bool:
    if model_type == HOOKED:
        return name in IRRELEVANT
    return TRANSFORMERS_ADAPTERS[model_type].FIELDS.does_not_matter(name)


def _loaded(model: Model, directory: Path) -> LoadedModel:
    warnings = list(weight_files(directory).warnings)
    tokenizer = load_tokenizer(directory, warnings.append)
    return LoadedModel(
        model, tokenizer, revision_hash(directory), directory=directory, warnings=tuple(warnings)
    )


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
    declared = TRANSFORMERS_ADAPTERS.get(config.model_type)
    if declared is not None:  # the other adapter looks for leftovers itself
        refuse_leftovers(checkpoint, architecture, rotary, declared.PREFIX, declared.BUFFERS)
    return replace(model, parameters=checkpoint.parameters), checkpoint


@contextmanager
def _reshaping() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        detail = f"the tensors do not have the shapes that config.json asks for: {error}"
        raise InvalidRequestError("model", detail) from error


def _config(directory: Path) -> Any:
    """The configuration with the format's defaults filled in. Never runs code from the checkpoint."""
    raw = read_json(directory / CONFIG)
    if "model_type" not in raw:
        raise InvalidRequestError(
            "model", f"{CONFIG} has no model_type: it is no configuration of transformers"
        )
    if "configuration_files" in raw:
        # transformers would read another file instead, by its own version.
        raise InvalidRequestError(
            "model", f"{CONFIG} with configuration_files is not supported: remove the field"
        )
    model_type = raw["model_type"]
    _check_supported(model_type)
    if model_type == HOOKED:
        return SimpleNamespace(**raw)
    fields = TRANSFORMERS_ADAPTERS[model_type].FIELDS
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
