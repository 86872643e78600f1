"""Finding a checkpoint and choosing its files, before a library opens any of them.

The weights are chosen as transformers 5 chooses them (``_get_resolved_checkpoint_files``), so that a
directory is the same model in both: the file that ``transformers_weights`` in ``config.json`` names, else
``model.safetensors``, else the shards that ``model.safetensors.index.json`` names. Pickle files are never
chosen.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pahq_server.core.errors import InvalidRequestError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
INDEX = f"model{INDEX_SUFFIX}"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# Formats of weights that are not read, by the ending of their files.
_OTHER_FORMATS = {".gguf": "GGUF", ".msgpack": "Flax", ".h5": "TensorFlow", ".onnx": "ONNX"}
# Files of a hub repository that are downloaded before its weights: they decide which weights are chosen.
_HUB_TEXTS = ["*.json", "*.txt", "*.model", "*.jinja"]
# Larger JSON files are refused. An index, the largest of them, takes about 100 bytes per tensor.
_MAX_JSON_BYTES = 64 << 20
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class WeightFiles:
    """The files with weights that were chosen.

    Args:
        paths: safetensors files, sorted by name.
        chosen_by: the file or the field of ``config.json`` that decided.
        warnings: sentences about weight files that are not read.
    """

    paths: tuple[Path, ...]
    chosen_by: str
    warnings: tuple[str, ...] = ()


def locate(source: str) -> Path:
    """Finds the directory of a checkpoint.

    Args:
        source: a directory, or a hub id ``owner/name`` or ``owner/name@revision``. What a hub id names is
            downloaded unless it is in the hub's cache.

    Raises InvalidRequestError (field ``model``).
    """
    # Names that are too long for the file system or contain NUL raise an error.
    try:
        path = Path(source)
        if path.is_dir():
            _refuse_special_files(path)
            return path
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise InvalidRequestError("model", f"{source!r} is not a directory: {error}") from None
    repository, at, revision = source.partition("@")
    local = exists or path.is_absolute() or source.startswith(".") or repository.count("/") > 1
    if local or (at and (not repository or not revision)):
        hint = "; pickle files are never loaded" if path.suffix in PICKLES else ""
        if at and Path(repository).is_dir():
            hint = "; only hub ids have revisions (owner/name@revision)"
        raise InvalidRequestError("model", f"{source!r} is not a directory{hint}")
    return _download(source, repository, revision or None)


def _download(source: str, repository: str, revision: str | None) -> Path:
    """Downloads a hub repository: first its text files, then the weights that these choose."""
    from huggingface_hub import snapshot_download

    try:
        directory = Path(snapshot_download(repository, revision=revision, allow_patterns=_HUB_TEXTS))
        names = wanted_weights(directory)
        directory = Path(
            snapshot_download(repository, revision=revision, allow_patterns=[*_HUB_TEXTS, *names])
        )
    except InvalidRequestError:
        raise
    except Exception as error:
        detail = f"{source!r} is not a directory and could not be had from the hub: {error}"
        raise InvalidRequestError("model", detail) from error
    if not any((directory / name).is_file() for name in names):
        detail = f"the hub's {source!r} has none of {names}{_in_other_formats(_listed(repository, revision))}"
        raise InvalidRequestError("model", detail)
    return directory


def wanted_weights(directory: Path) -> list[str]:
    """Returns names of files that `weight_files` may choose, as far as a checkpoint's text files tell."""
    named = _named_weights(directory)
    if named is None:
        index = directory / INDEX
        return [WEIGHTS, *(_shard_names(index) if index.is_file() else [])]
    return [named, *(_shard_names(directory / named) if named.endswith(INDEX_SUFFIX) else [])]


def weight_files(directory: Path) -> WeightFiles:
    """Chooses the files with weights of a checkpoint directory.

    Raises InvalidRequestError (field ``model``) if there are none, if one is missing, is not a regular file
    or is only a pointer of Git LFS, if an index is broken, and for adapters such as LoRA, which are no
    models.
    """
    if (directory / "adapter_config.json").exists():
        detail = (
            f"{directory.name!r} has an adapter_config.json: it is a PEFT adapter such as LoRA, or a model "
            "with one beside it. Merge the adapter into its model (merge_and_unload() of peft), save that, "
            "and serve it"
        )
        raise InvalidRequestError("model", detail)
    named = _named_weights(directory)
    if named is not None:
        chosen_by, first = f"transformers_weights of {CONFIG}", directory / named
    elif (directory / WEIGHTS).is_file():
        chosen_by, first = WEIGHTS, directory / WEIGHTS
    elif (directory / INDEX).is_file():
        chosen_by, first = INDEX, directory / INDEX
    else:
        chosen_by, first = WEIGHTS, directory / WEIGHTS
        check_regular(first, _in_other_formats([entry.name for entry in directory.iterdir()]))
    if first.name.endswith(INDEX_SUFFIX):
        paths = [directory / name for name in _shard_names(first)]
    else:
        paths = [first]
    for path in paths:
        check_regular(path, "" if path == first else f"; {first.name} names it")
    warnings = []
    unread = sorted({path.name for path in directory.glob("*.safetensors")} - {path.name for path in paths})
    if first.name != INDEX and (directory / INDEX).is_file():
        unread.append(INDEX)
    if unread:
        warnings.append(f"not read, because {chosen_by} comes first: {', '.join(unread)}")
    return WeightFiles(tuple(paths), chosen_by, tuple(warnings))


def read_json(path: Path) -> Mapping[str, Any]:
    """Reads a file with a JSON object. Raises InvalidRequestError (field ``model``)."""
    unreadable = f"{path.parent.name!r} has no readable {path.name}"
    if not path.exists() and not path.is_symlink():
        raise InvalidRequestError("model", f"{unreadable}: there is no such file")
    check_regular(path)
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes, at most {_MAX_JSON_BYTES} are read")
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRequestError("model", f"{unreadable}: {error!r}") from error
    if not isinstance(value, dict):
        raise InvalidRequestError("model", f"{unreadable}: it holds no JSON object but {value!r:.60}")
    return value


def check_regular(path: Path, hint: str = "") -> None:
    """Raises InvalidRequestError (field ``model``) unless a path is a regular file and no Git LFS pointer.

    Args:
        path: of the file.
        hint: is added to the message if the file is missing.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise InvalidRequestError("model", f"{path.name} is not a regular file but {_kind(mode)}")
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except FileNotFoundError:
        gone = "a link to a file that is not there" if path.is_symlink() else "missing"
        raise InvalidRequestError("model", f"{path.name} is {gone} in {path.parent.name!r}{hint}") from None
    except OSError as error:
        raise InvalidRequestError("model", f"{path.name} cannot be read: {error}") from error
    if start == _LFS_POINTER:
        detail = (
            f"{path.name} is a pointer of Git LFS, not the file itself: run `git lfs pull` in the checkout"
        )
        raise InvalidRequestError("model", detail)


def _refuse_special_files(directory: Path) -> None:
    """Refuses a directory with FIFOs, sockets or devices.

    Libraries open files that are not chosen here, and would wait for ever for a writer to a FIFO.
    """
    for entry in directory.iterdir():
        try:
            mode = entry.stat().st_mode
        except OSError:  # a broken link: the same as a missing file
            continue
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise InvalidRequestError("model", f"{entry.name} is not a regular file but {_kind(mode)}")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a directory"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _named_weights(directory: Path) -> str | None:
    """Returns the file that ``transformers_weights`` in the configuration names; None without this field."""
    name = read_json(directory / CONFIG).get("transformers_weights")
    if name is None:
        return None
    if not isinstance(name, str) or not name.endswith((".safetensors", INDEX_SUFFIX)):
        detail = f"{CONFIG}: transformers_weights is {name!r}, not the name of a safetensors file or index"
        raise InvalidRequestError("model", detail)
    return _inside(name, CONFIG)


def _shard_names(index: Path) -> list[str]:
    """Returns the names of the files that an index lists, sorted."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise InvalidRequestError("model", f"{index.name} has no weight_map from tensors to files")
    return [_inside(name, index.name) for name in sorted(set(found.values()))]


def _inside(name: str, origin: str) -> str:
    """Returns a file's name if it is inside the checkpoint and no pickle file; ``origin`` has given it.

    Raises InvalidRequestError (field ``model``) otherwise.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or os.sep * 2 in name:
        raise InvalidRequestError("model", f"{origin} names {name!r}, which is not inside the checkpoint")
    if path.suffix in PICKLES:
        raise InvalidRequestError("model", f"{origin} names {name!r}: pickle files are never loaded")
    return name


def _listed(repository: str, revision: str | None) -> list[str]:
    """Returns the names of a hub repository's files; [] if the hub does not answer."""
    from huggingface_hub import list_repo_files

    try:
        return list(list_repo_files(repository, revision=revision))
    except Exception:  # noqa: BLE001 - it only adds to the message of an error
        return []


def _in_other_formats(names: list[str]) -> str:
    """Returns the end of a message that no weights were found, which says what other weights there are."""
    pickles = sorted(name for name in names if Path(name).suffix in PICKLES)
    if pickles:
        return (
            f"; {pickles} are pickle files, which are never loaded: convert them, for example with "
            "save_pretrained() of transformers"
        )
    for suffix, kind in _OTHER_FORMATS.items():
        found = sorted(name for name in names if name.endswith(suffix))
        if found:
            return f"; {found} are {kind} files, which are not read: only safetensors are"
    found = sorted(name for name in names if name.endswith(".safetensors"))
    return (
        f"; of {found} none has this name, which transformers_weights in {CONFIG} could give" if found else ""
    )
