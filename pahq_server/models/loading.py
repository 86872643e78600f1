"""Loading a model and its tokenizer from a checkpoint directory or a hub id.

The order of the steps: find the directory (`files`), read and check its ``config.json`` (`config_fields`),
let the format's adapter read the architecture and then piece by piece the weights (`adapters`, `building`),
and refuse what nothing has read (`tensor_checks`). `load` keeps the weights as float32, `map_files` as views
of the files, `outline` only their shapes.
"""

from __future__ import annotations

from collections import Counter
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
from pahq_server.models.checkpoint import (
    Checkpoint,
    CheckpointHeaders,
    MappedCheckpoint,
    ScaleViews,
    revision_hash,
)
from pahq_server.models.files import CONFIG, WeightFiles, locate, read_json, weight_files
from pahq_server.models.tensor_checks import (
    check_embeddings,
    check_layer,
    refuse_leftovers,
    refuse_other_weights,
)
from pahq_server.models.tokenizer import load_tokenizer
from pahq_server.precision.policy import Format

_Checkpoint = TypeVar("_Checkpoint", bound=Checkpoint)


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer.

    Args:
        model: float32 on the CPU, unless `map_files` or a transform of `load` says otherwise.
        tokenizer: None if the model takes token ids only.
        revision: SHA-256 of configuration and weights, hexadecimal.
        directory: of the checkpoint.
        warnings: sentences about the checkpoint for the operator of the server.
        stored: the 8-bit formats in which the checkpoint holds weights; empty for one of floats.
        scales: what the codes of a mapped checkpoint are multiplied by, in the shapes of the model's weights;
            None unless `map_files` or `map_headers` has mapped one that has codes.
    """

    model: Model
    tokenizer: Tokenizer | None
    revision: str
    directory: Path = field(default=Path(), kw_only=True)
    warnings: tuple[str, ...] = field(default=(), kw_only=True)
    stored: frozenset[Format] = field(default=frozenset(), kw_only=True)
    scales: Weights | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Outline:
    """A model without the values of its weights.

    Args:
        model: what `load` would give, with all tensors on the device ``meta``.
        bytes_on_disk: size of the files with weights.
        dtypes: those in which the weights are stored.
    """

    model: Model
    bytes_on_disk: int
    dtypes: frozenset[torch.dtype]


def load(source: str, transform: Transform = PLAIN) -> LoadedModel:
    """Loads a checkpoint directory, or a hub id where there is a network.

    Args:
        source: directory or hub id.
        transform: what is kept of each piece of the model as soon as it has been read.

    Raises InvalidRequestError (field ``model``) for anything that is missing, damaged or unsupported.
    """
    directory = locate(source)
    model, checkpoint = _assemble(directory, Checkpoint, transform)
    return _loaded(model, directory, checkpoint)


def map_files(source: str) -> tuple[LoadedModel, MappedCheckpoint]:
    """Maps the files of a checkpoint instead of reading them.

    Returns:
        The model, whose tensors are views of the mapped files in the dtypes in which they are stored, so that
        they take no memory beyond the page cache; and the mapped checkpoint, which can tell whether the files
        have changed since.

    Raises InvalidRequestError as `load` does.
    """
    directory = locate(source)
    model, files = _assemble(directory, MappedCheckpoint, PLAIN)
    return replace(_loaded(model, directory, files), scales=_scales(directory, files)), files


def map_headers(source: str) -> LoadedModel:
    """Describes what `map_files` would give: the same dtypes and shapes, on the device ``meta``.

    The result has no tokenizer and no revision. Raises InvalidRequestError as `outline` does.
    """
    directory = locate(source)
    with torch.device("meta"):
        model, headers = _assemble(directory, lambda at: CheckpointHeaders(at, as_stored=True), PLAIN)
        scales = _scales(directory, headers)
    return LoadedModel(model, None, "", directory=directory, stored=_stored(headers), scales=scales)


def _scales(directory: Path, checkpoint: Checkpoint) -> Weights | None:
    """Returns `LoadedModel.scales` of a checkpoint that has been read."""
    if not checkpoint.quantized:
        return None
    return _assemble(directory, lambda _: ScaleViews(checkpoint), PLAIN)[0].weights


def _stored(checkpoint: Checkpoint) -> frozenset[Format]:
    return frozenset(tensor.form for tensor in checkpoint.quantized.values())


def outline(source: str, transform: Transform = PLAIN) -> Outline:
    """Describes what `load` would give, from the configuration and the headers of the weight files alone.

    Raises InvalidRequestError as `load` does, except for what is wrong with values or the tokenizer.
    """
    with torch.device("meta"):
        model, headers = _assemble(locate(source), CheckpointHeaders, transform)
    return Outline(model, headers.bytes_on_disk, frozenset(headers.dtypes))


@dataclass(frozen=True)
class Inspection:
    """How a checkpoint was read: which files, fields and tensors.

    Args:
        loaded: the model.
        files: the files that were read, and why these.
        computed: the fields of ``config.json`` that decide what is computed, with their values.
        ignored: names of the fields that have no effect on logits.
        read: number of tensors that were read.
        quantized: how many of them are stored in 8 bits, by format.
        buffers: names of the tensors that were only checked, since they follow from the configuration.
    """

    loaded: LoadedModel
    files: WeightFiles
    computed: Mapping[str, Any]
    ignored: tuple[str, ...]
    read: int
    quantized: Mapping[Format, int]
    buffers: tuple[str, ...]


def inspect(source: str) -> Inspection:
    """Loads a checkpoint and reports how each field, file and tensor was read. Raises as `load` does."""
    directory = locate(source)
    model, checkpoint = _assemble(directory, Checkpoint, PLAIN)
    raw = read_json(directory / CONFIG)
    ignored = [name for name in raw if _is_ignored(raw["model_type"], name)]
    unread = tuple(checkpoint.unread)
    return Inspection(
        loaded=_loaded(model, directory, checkpoint),
        files=weight_files(directory),
        computed={name: value for name, value in raw.items() if name not in ignored},
        ignored=tuple(ignored),
        read=sum(1 for _ in checkpoint) - len(unread),
        quantized=Counter(tensor.form for tensor in checkpoint.quantized.values()),
        buffers=unread,
    )


def _is_ignored(model_type: str, name: str) -> bool:
    if model_type == HOOKED:
        return name in IRRELEVANT
    return TRANSFORMERS_ADAPTERS[model_type].FIELDS.does_not_matter(name)


def _loaded(model: Model, directory: Path, checkpoint: Checkpoint) -> LoadedModel:
    warnings = list(weight_files(directory).warnings)
    if any(tensor.rounds_inputs for tensor in checkpoint.quantized.values()):
        warnings.append(
            "the checkpoint asks for inputs of linear maps that are rounded to 8 bits; here its weights are "
            "used, and a job's precision alone says what is rounded"
        )
    tokenizer = load_tokenizer(directory, warnings.append)
    return LoadedModel(
        model,
        tokenizer,
        revision_hash(directory),
        directory=directory,
        warnings=tuple(warnings),
        stored=_stored(checkpoint),
    )


def _assemble(
    directory: Path, open_checkpoint: Callable[[Path], _Checkpoint], transform: Transform
) -> tuple[Model, _Checkpoint]:
    """Reads the configuration and then the model, from a checkpoint opened by ``open_checkpoint``."""
    config = _config(directory)
    adapter = ADAPTERS[config.model_type]
    try:
        architecture = adapter.architecture(config)
    except (AttributeError, TypeError) as error:
        raise InvalidRequestError("model", f"config.json cannot be used: {error}") from error
    checkpoint = open_checkpoint(directory)
    refuse_other_weights(checkpoint)
    if checkpoint.quantized and config.model_type == HOOKED:
        name = min(checkpoint.quantized)
        raise InvalidRequestError("model", f"tensor {name!r} is quantised, which {HOOKED} is not read with")
    rotary: Rotary | None = None

    def embeddings() -> Weights:
        with _reshaping():
            found = adapter.embeddings(architecture, config, checkpoint)
        check_embeddings(architecture, found)
        nonlocal rotary
        rotary = found.rotary
        return found

    def layer(index: int) -> LayerWeights:
        with _reshaping():
            found = adapter.layer(architecture, config, index, checkpoint)
        check_layer(architecture, index, found)
        return found

    model = build(architecture, embeddings, layer, transform)
    declared = TRANSFORMERS_ADAPTERS.get(config.model_type)
    if declared is not None:  # the adapter `hooked` refuses leftovers itself
        refuse_leftovers(checkpoint, architecture, rotary, declared.PREFIX, declared.BUFFERS)
    return replace(model, parameters=checkpoint.parameters), checkpoint


@contextmanager
def _reshaping() -> Iterator[None]:
    """Turns errors of torch about shapes into InvalidRequestError (field ``model``)."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        detail = f"the tensors do not have the shapes that config.json asks for: {error}"
        raise InvalidRequestError("model", detail) from error


def _config(directory: Path) -> Any:
    """Reads and checks ``config.json``; never runs code of the checkpoint.

    Returns:
        The configuration of transformers with all defaults filled in, or for `HOOKED` a namespace of the
        fields.
    """
    raw = read_json(directory / CONFIG)
    if "model_type" not in raw:
        raise InvalidRequestError(
            "model", f"{CONFIG} has no model_type: it is no configuration of transformers"
        )
    if "configuration_files" in raw:
        # transformers would choose another file by its own version and read that instead.
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
        # Imported here because transformers takes 100 MB.
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:
        raise InvalidRequestError("model", f"config.json cannot be used: {error}") from error
    # transformers reads some configurations as another format than they name.
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
