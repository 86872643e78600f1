"""Samples as an artifact, and as a file: the artifact of a job with the job's provenance.

A file is a safetensors file whose arrays any reader of safetensors can read: ``ids`` (int64) of all samples,
sample i from ``offsets[i]`` to ``offsets[i + 1]``; ``logprobs`` (float32, as long as ``ids``) if they were
asked for; per sample ``prompt``, ``index`` (int32) and ``finish`` (uint8, a position in the layout's
``finishes``); ``prompt_ids`` and ``prompt_offsets`` (int64) of the prompts; ``text`` (uint8, UTF-8) and
``text_offsets`` (int64) for models with a tokenizer. The metadata is that of files of scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pahq_client import artifact_file
from pahq_client.circuit_file import JsonObject
from pahq_client.errors import InvalidSamplesFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pahq_client.samples import Samples
    from pahq_client.task import Prompt

KIND, VERSION = "samples", 1
FINISHES = ("", "stop", "length")


def encode(samples: Samples, origin: str) -> bytes:
    """The file of samples.

    Args:
        samples: the samples.
        origin: what to name in errors.

    Raises:
        InvalidSamplesFile: the provenance holds what JSON cannot express.
    """
    import numpy as np
    from safetensors.numpy import save

    items = samples.items
    prompt_ids: dict[int, tuple[int, ...]] = {each.prompt_number: each.prompt_ids for each in items}
    prompts = [prompt_ids.get(number, ()) for number in range(len(samples.prompts))]
    texts = [sample.text.encode() for sample in items]
    arrays: dict[str, NDArray[Any]] = {
        "ids": _flat([sample.ids for sample in items]),
        "offsets": _offsets([len(sample.ids) for sample in items]),
        "finish": np.array([FINISHES.index(sample.finish_reason) for sample in items], np.uint8),
        "prompt": np.array([sample.prompt_number for sample in items], np.int32),
        "index": np.array([sample.index for sample in items], np.int32),
        "prompt_ids": _flat(prompts),
        "prompt_offsets": _offsets(list(map(len, prompts))),
        "text": np.frombuffer(b"".join(texts), np.uint8),
        "text_offsets": _offsets(list(map(len, texts))),
    }
    if any(sample.logprobs for sample in items):
        arrays["logprobs"] = np.array([each for sample in items for each in sample.logprobs], np.float32)
    layout = {
        "kind": KIND,
        "version": VERSION,
        "n": max((sample.index + 1 for sample in items), default=0),
        "finishes": list(FINISHES),
        "prompts": [prompt if isinstance(prompt, str) else list(prompt) for prompt in samples.prompts],
        "provenance": dict(samples.provenance),
        "partial": samples.partial,
    }
    return save(arrays, artifact_file.metadata(layout, "samples", origin, InvalidSamplesFile))


def decode(data: bytes, origin: str) -> Samples:
    """The samples of a file.

    Raises:
        InvalidSamplesFile: it is not a file of samples, is damaged, or has an unknown version.
    """
    # Imported here, since it imports this module.
    from pahq_client.samples import Samples

    return artifact_file.decode(data, KIND, Samples, "samples", origin, InvalidSamplesFile)


def read(
    layout: JsonObject,
    arrays: Mapping[str, NDArray[Any]],
    provenance: Mapping[str, Any],
    partial: bool,
) -> Samples:
    """Reads the samples of an artifact, or of a file.

    Raises ValueError for arrays whose types, lengths or values do not fit together.
    """
    from pahq_client.samples import Sample, Samples

    ids = _array(arrays, "ids", "int64")
    bounds = _bounds(arrays, "offsets", len(ids), None)
    count = len(bounds)
    numbers = _array(arrays, "prompt", "int32", count).tolist()
    indices = _array(arrays, "index", "int32", count).tolist()
    finish = _array(arrays, "finish", "uint8", count).tolist()
    prompt_ids = _array(arrays, "prompt_ids", "int64")
    prompt_bounds = _bounds(arrays, "prompt_offsets", len(prompt_ids), None)
    if (ids < 0).any() or (prompt_ids < 0).any():
        raise ValueError("it holds a token id that is negative")
    places = list(zip(numbers, indices, strict=True))
    if any(not 0 <= number < len(prompt_bounds) or index < 0 for number, index in places):
        raise ValueError("it has a sample of a prompt that it does not have")
    if any(a >= b for a, b in pairwise(places)):
        raise ValueError("its samples are not in order, or one of them is there twice")
    finishes = layout.get("finishes", list)
    if not all(isinstance(each, str) for each in finishes) or any(
        code >= len(finishes) or finishes[code] not in ("stop", "length") for code in finish
    ):
        raise ValueError("it has a sample that ended for a reason that this client does not know")
    texts = _texts(arrays, count)
    logprobs = _logprobs(arrays, len(ids))
    of_prompts = [tuple(prompt_ids[first:last].tolist()) for first, last in prompt_bounds]
    prompts = _prompts(layout, provenance, of_prompts)
    return Samples(
        prompts=prompts,
        items=tuple(
            Sample(
                prompt=prompts[number],
                prompt_ids=of_prompts[number],
                prompt_number=number,
                index=index,
                ids=tuple(ids[first:last].tolist()),
                text=text,
                finish_reason=finishes[code],
                logprobs=tuple(logprobs[first:last].tolist()) if logprobs is not None else (),
            )
            for (number, index), (first, last), code, text in zip(places, bounds, finish, texts, strict=True)
        ),
        provenance=provenance,
        partial=partial,
    )


def _prompts(
    layout: JsonObject, provenance: Mapping[str, Any], ids: Sequence[tuple[int, ...]]
) -> tuple[Prompt, ...]:
    """The prompts as they were given, where a file or the provenance tells them; else their token ids."""
    told = layout.get("prompts", list) if "prompts" in layout else None
    if told is None:
        run = provenance.get("run")
        about = run.get("prompts") if isinstance(run, Mapping) else None
        told = about.get("clean") if isinstance(about, Mapping) else None
    if not isinstance(told, list) or len(told) != len(ids):
        return tuple(ids)
    return tuple(given if isinstance(given, str) else known for given, known in zip(told, ids, strict=True))


def _texts(arrays: Mapping[str, NDArray[Any]], count: int) -> Iterable[str]:
    if "text" not in arrays:
        return [""] * count
    data = _array(arrays, "text", "uint8").tobytes()
    # UnicodeDecodeError is a ValueError.
    return [data[first:last].decode() for first, last in _bounds(arrays, "text_offsets", len(data), count)]


def _logprobs(arrays: Mapping[str, NDArray[Any]], length: int) -> NDArray[Any] | None:
    import numpy as np

    if "logprobs" not in arrays:
        return None
    logprobs = _array(arrays, "logprobs", "float32", length)
    if not np.isfinite(logprobs).all():
        raise ValueError("it holds a log-probability that is not finite")
    return logprobs


def _array(
    arrays: Mapping[str, NDArray[Any]], name: str, dtype: str, length: int | None = None
) -> NDArray[Any]:
    from pahq_client.artifacts import array_of

    return array_of(arrays, name, dtype, length)


def _bounds(
    arrays: Mapping[str, NDArray[Any]], name: str, total: int, count: int | None
) -> list[tuple[int, int]]:
    """Reads where parts begin and end: ascending, from 0 to ``total``."""
    offsets = _array(arrays, name, "int64", None if count is None else count + 1).tolist()
    pairs = list(pairwise(offsets))
    if not offsets or offsets[0] != 0 or offsets[-1] != total or any(a > b for a, b in pairs):
        raise ValueError(f"{name!r} does not divide {total} numbers into parts")
    return pairs


def _flat(lists: Sequence[Sequence[int]]) -> NDArray[Any]:
    import numpy as np

    return np.array([token for ids in lists for token in ids], np.int64)


def _offsets(lengths: Sequence[int]) -> NDArray[Any]:
    import numpy as np

    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
