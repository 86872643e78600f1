"""Codebooks as an artifact, and as a file: the artifact of a job with the job's provenance.

A file is a safetensors file with arrays of one dimension. ``codes`` (float32, codes x width), ``encoder``
(float32: alpha, W row by row, b, scale and shift of the norm) and ``history`` (float32, steps x 3) are what
was learned. ``sizes`` (int64) and ``distances`` (float64) have a number for each code. ``top_codes``,
``top_tokens`` and ``top_counts`` (int64) are the most frequent tokens of codes; ``context_codes``,
``context_texts``, ``context_positions`` and ``context_at`` (int64) where codes occur, with the token ids
from ``context_offsets[i]`` until before ``context_offsets[i + 1]`` of ``context_ids``. ``named`` are the ids
of all of these tokens; the layout's ``names`` says how the vocabulary writes them. The metadata is that of
files of scores. Servers are not trusted: what is read fits together, or is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pahq_client import artifact_file
from pahq_client.circuit_file import JsonObject
from pahq_client.errors import InvalidCodebookFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pahq_client.codebook import Codebook, Concept

KIND, VERSION = "codebook", 1
# More than any server allows: larger numbers come from damage or malice.
MOST_CODES, MOST_WIDTH, MOST_STEPS, MOST_NUMBER = 1 << 20, 1 << 16, 1 << 24, 1 << 53
INTEGERS = (
    *("codes", "neighbours", "steps", "batch", "decoder_layers", "decoder_heads", "seed"),
    *("max_states", "skip"),
)
NUMBERS = ("temperature", "learning_rate")
_LEARNED = ("codes", "encoder", "history")
_FIGURES = ("perplexity", "decoded_error", "variance", "commitment")
_CONTEXT = ("codes", "texts", "positions", "at")


def encode(found: Codebook, origin: str, run: bool = True) -> bytes:
    """The file of a codebook.

    Args:
        found: the codebook.
        origin: what to name in errors.
        run: whether to include ``provenance.run``.

    Raises:
        InvalidCodebookFile: the provenance holds what JSON cannot express.
    """
    import numpy as np
    from safetensors.numpy import save

    top = [(concept.number, token) for concept in found.concepts for token in concept.tokens]
    contexts = [(concept.number, each) for concept in found.concepts for each in concept.contexts]
    names = {token.id: token.text for _, token in top}
    for _, each in contexts:
        names |= dict(zip(each.ids, (*each.before, each.token, *each.after), strict=True))
    named = sorted(names)
    layout: dict[str, Any] = {
        "kind": KIND,
        "version": VERSION,
        **{name: getattr(found, name) for name in ("low", "high", "layers", "width", "tokens")},
        **{name: getattr(found, name) for name in (*_FIGURES, "measured_tokens", "partial")},
        **found.settings,
        "names": [names[token] for token in named],
        "provenance": {part: value for part, value in found.provenance.items() if run or part != "run"},
    }
    integers = {
        "sizes": [concept.size for concept in found.concepts],
        "named": named,
        "top_codes": [code for code, _ in top],
        "top_tokens": [token.id for _, token in top],
        "top_counts": [token.count for _, token in top],
        "context_codes": [code for code, _ in contexts],
        "context_texts": [each.text for _, each in contexts],
        "context_positions": [each.position for _, each in contexts],
        "context_at": [len(each.before) for _, each in contexts],
        "context_ids": [token for _, each in contexts for token in each.ids],
        "context_offsets": np.cumsum([0, *(len(each.ids) for _, each in contexts)]),
    }
    arrays: dict[str, NDArray[Any]] = {
        **{name: np.ascontiguousarray(getattr(found, name), np.float32).ravel() for name in _LEARNED},
        "distances": np.array([concept.distance for concept in found.concepts], np.float64),
        **{name: np.array(values, np.int64) for name, values in integers.items()},
    }
    return save(arrays, artifact_file.metadata(layout, "codebook", origin, InvalidCodebookFile))


def decode(data: bytes, origin: str) -> Codebook:
    """The codebook of a file.

    Raises:
        InvalidCodebookFile: it is not such a file, is damaged, or has an unknown version.
    """
    # Imported here, since it imports this module.
    from pahq_client.codebook import Codebook

    return artifact_file.decode(data, KIND, Codebook, "a codebook", origin, InvalidCodebookFile)


def read(
    layout: JsonObject,
    arrays: Mapping[str, NDArray[Any]],
    provenance: Mapping[str, Any],
    partial: bool,
) -> Codebook:
    """Reads the codebook of an artifact, or of a file.

    Raises ValueError for arrays or numbers that do not fit together.
    """
    from pahq_client.codebook import Codebook

    layers, width = _integer(layout, "layers", 1, MOST_NUMBER), _integer(layout, "width", 1, MOST_WIDTH)
    high = _integer(layout, "high", 0, layers)
    settings: dict[str, Any] = {name: _integer(layout, name, 0, MOST_NUMBER) for name in INTEGERS}
    settings |= {name: _number(layout, name) for name in NUMBERS}
    settings["memory"] = layout.get("memory", str)
    if settings["memory"] not in ("quantized", "continuous"):
        raise ValueError(f"its decoder attends to {settings['memory'][:100]!r}")
    codes, steps = settings["codes"], settings["steps"]
    if not 1 <= codes <= MOST_CODES or not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"it has {codes} codes and {steps} steps of training")
    tokens = _integer(layout, "tokens", 1, MOST_NUMBER)
    return Codebook(
        low=_integer(layout, "low", 0, high),
        high=high,
        layers=layers,
        width=width,
        concepts=_read_concepts(layout, arrays, codes, tokens),
        codes=_finite(arrays, "codes", codes * width).reshape(codes, width),
        encoder=_finite(arrays, "encoder", width * width + 3 * width + 1),
        history=_finite(arrays, "history", 3 * steps).reshape(steps, 3),
        tokens=tokens,
        **{name: _number(layout, name) for name in _FIGURES},
        measured_tokens=_integer(layout, "measured_tokens", 1, tokens),
        settings=settings,
        provenance=provenance,
        partial=partial,
    )


def _read_concepts(
    layout: JsonObject, arrays: Mapping[str, NDArray[Any]], codes: int, tokens: int
) -> tuple[Concept, ...]:
    import numpy as np

    from pahq_client._responses import text
    from pahq_client.artifacts import array_of
    from pahq_client.codebook import Concept, ConceptContext, ConceptToken

    sizes, distances = (
        array_of(arrays, "sizes", "int64", codes),
        array_of(arrays, "distances", "float64", codes),
    )
    if (sizes < 0).any() or int(sizes.sum()) != tokens:
        raise ValueError(f"its codes do not have {tokens} states together")
    if not np.isfinite(distances).all() or (distances < 0).any():
        raise ValueError("'distances' holds a number that is no distance")
    named, names = array_of(arrays, "named", "int64", None), layout.get("names", list)
    if len(names) != len(named) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"it does not have a name for each of {len(named)} tokens")
    texts = {int(token): text(name) for token, name in zip(named, names, strict=True)}

    top = [array_of(arrays, f"top_{name}", "int64", None).tolist() for name in ("codes", "tokens", "counts")]
    of_codes: list[list[ConceptToken]] = [[] for _ in range(codes)]
    if len(set(map(len, top))) != 1:
        raise ValueError("its most frequent tokens do not fit together")
    for code, token, count in zip(*top, strict=True):
        if not 0 <= code < codes or token not in texts or count < 1:
            raise ValueError(f"it has a frequent token of code {code} that cannot be right")
        of_codes[code].append(ConceptToken(token, texts[token], count))
    for code, found in enumerate(of_codes):
        counts = [token.count for token in found]
        if counts != sorted(counts, reverse=True) or sum(counts) > sizes[code]:
            raise ValueError(f"the frequent tokens of code {code} are more than its states, or out of order")

    ids, offsets = (
        array_of(arrays, f"context_{name}", "int64", None).tolist() for name in ("ids", "offsets")
    )
    count = len(offsets) - 1
    if count < 0 or offsets[0] != 0 or offsets[-1] != len(ids) or offsets != sorted(offsets):
        raise ValueError("'context_offsets' does not divide the tokens of contexts")
    columns = [array_of(arrays, f"context_{name}", "int64", count).tolist() for name in _CONTEXT]
    contexts: list[list[ConceptContext]] = [[] for _ in range(codes)]
    for number, (code, place, position, at) in enumerate(zip(*columns, strict=True)):
        own = ids[offsets[number] : offsets[number + 1]]
        fits = 0 <= code < codes and place >= 0 and 0 <= at <= position and at < len(own)
        if not fits or any(token not in texts for token in own):
            raise ValueError(f"it has a context of code {code} that cannot be right")
        said = tuple(texts[token] for token in own)
        contexts[code].append(
            ConceptContext(place, position, said[:at], said[at], said[at + 1 :], tuple(own))
        )
    return tuple(
        Concept(code, size, distance, tuple(of_codes[code]), tuple(contexts[code]))
        for code, (size, distance) in enumerate(zip(sizes.tolist(), distances.tolist(), strict=True))
    )


def _finite(arrays: Mapping[str, NDArray[Any]], name: str, length: int) -> NDArray[np.float32]:
    import numpy as np

    from pahq_client.artifacts import array_of

    array: NDArray[np.float32] = array_of(arrays, name, "float32", length)
    if not np.isfinite(array).all():
        raise ValueError(f"{name!r} holds a number that is not finite")
    return array


def _integer(layout: JsonObject, name: str, least: int, most: int) -> int:
    value: int = layout.get(name, int)
    if not least <= value <= most:
        raise ValueError(f"its {name} is {value}, not from {least} to {most}")
    return value


def _number(layout: JsonObject, name: str) -> float:
    value = float(layout.get(name, int, float))
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"its {name} is {value:g}")
    return value
