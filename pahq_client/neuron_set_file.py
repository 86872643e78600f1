"""Neuron sets as an artifact, and as a file: the artifact of a job with the job's provenance.

A file is a safetensors file. Its arrays have one number per neuron, first those that are raised, then those
that are lowered, each the largest differences first: ``number`` (int64, layer * d_mlp + unit), ``delta``,
``positive_share``, ``negative_share``, ``mean`` and ``q95`` (float64). ``context_value`` (float64),
``context_text`` and ``context_position`` (int64) have as many numbers for each neuron as the layout's
``contexts`` says; -inf, -1 and -1 where there were fewer tokens. The metadata is that of files of scores.
Servers are not trusted: what is read are neurons of the model that the layout describes, or it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pahq_client import artifact_file
from pahq_client.circuit_file import JsonObject
from pahq_client.errors import InvalidNeuronSetFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pahq_client.neuron_set import Neuron, NeuronSet
    from pahq_client.task import Prompt

KIND, VERSION = "neuron_set", 1
# More neurons than any model has, and more tokens than any job runs.
MOST_NEURONS, MOST_TOKENS = 1 << 40, 1 << 53
MOST_CONTEXTS = 1000
# The largest percentile that histograms of activations tell apart.
MOST_Q95 = 3.0
_SHARES = ("positive_share", "negative_share")
_FIGURES = ("delta", *_SHARES, "mean", "q95")
# By which a difference may differ from that of the two shares, all of them rounded.
_ROUNDING = 1e-9


def encode(found: NeuronSet, origin: str, run: bool = True) -> bytes:
    """The file of a neuron set.

    Args:
        found: the set.
        origin: what to name in errors.
        run: whether to include ``provenance.run``.

    Raises:
        InvalidNeuronSetFile: the provenance holds what JSON cannot express.
    """
    import numpy as np
    from safetensors.numpy import save

    neurons = [*found.raised, *found.lowered]
    contexts = max((len(neuron.places) for neuron in neurons), default=0)
    layout: dict[str, Any] = {
        "kind": KIND,
        "version": VERSION,
        **{name: getattr(found, name) for name in ("layers", "d_mlp", "counted", "top_k", "min_delta")},
        "raised": len(found.raised),
        "contexts": contexts,
        **{name: list(getattr(found, name)) for name in ("texts", "tokens")},
        **{name: getattr(found, name) for name in ("control", "partial")},
        "provenance": {part: value for part, value in found.provenance.items() if run or part != "run"},
    }
    if found.prompts is not None and run:
        layout["prompts"] = [
            [prompt if isinstance(prompt, str) else list(prompt) for prompt in side] for side in found.prompts
        ]
    if any(found.token_texts) and run:
        layout["token_texts"] = [
            {str(text): list(tokens) for text, tokens in side.items()} for side in found.token_texts
        ]
    arrays: dict[str, NDArray[Any]] = {
        "number": found.numbers(neurons),
        **{name: np.array([getattr(each, name) for each in neurons], np.float64) for name in _FIGURES},
        "context_value": np.full((len(neurons), contexts), -np.inf),
        "context_text": np.full((len(neurons), contexts), -1, np.int64),
        "context_position": np.full((len(neurons), contexts), -1, np.int64),
    }
    for row, neuron in enumerate(neurons):
        for column, place in enumerate(neuron.places):
            for name in ("value", "text", "position"):
                arrays[f"context_{name}"][row, column] = getattr(place, name)
    flat = {name: array.ravel() for name, array in arrays.items()}
    return save(flat, artifact_file.metadata(layout, "neuron set", origin, InvalidNeuronSetFile))


def decode(data: bytes, origin: str) -> NeuronSet:
    """The neuron set of a file.

    Raises:
        InvalidNeuronSetFile: it is not such a file, is damaged, or has an unknown version.
    """
    # Imported here, since it imports this module.
    from pahq_client.neuron_set import NeuronSet

    return artifact_file.decode(data, KIND, NeuronSet, "a neuron set", origin, InvalidNeuronSetFile)


def read(
    layout: JsonObject,
    arrays: Mapping[str, NDArray[Any]],
    provenance: Mapping[str, Any],
    partial: bool,
) -> NeuronSet:
    """Reads the neuron set of an artifact, or of a file.

    Raises ValueError for arrays or numbers that do not fit together.
    """
    from pahq_client._responses import text
    from pahq_client.neuron_set import NeuronSet

    layers, d_mlp = (_integer(layout, name, 1, MOST_NEURONS) for name in ("layers", "d_mlp"))
    if layers * d_mlp > MOST_NEURONS:
        raise ValueError("its numbers of layers and neurons are not those of a model")
    texts, tokens = (_pair(layout, name) for name in ("texts", "tokens"))
    control = layout.get("control", int, type(None)) if "control" in layout else None
    if control is not None and control < 0:
        raise ValueError(f"the seed of its control is {control}")
    sides = _read_neurons(layout, arrays, layers, d_mlp, texts)
    return NeuronSet(
        layers=layers,
        d_mlp=d_mlp,
        raised=sides[0],
        lowered=sides[1],
        texts=texts,
        tokens=tokens,
        counted=text(layout.get("counted", str)),
        top_k=layout.get("top_k", int),
        min_delta=layout.number("min_delta"),
        prompts=_read_prompts(layout, provenance, texts),
        token_texts=_read_token_texts(layout, texts),
        control=control,
        provenance=provenance,
        partial=partial,
    )


def _read_neurons(
    layout: JsonObject,
    arrays: Mapping[str, NDArray[Any]],
    layers: int,
    d_mlp: int,
    texts: tuple[int, int],
) -> tuple[tuple[Neuron, ...], tuple[Neuron, ...]]:
    import numpy as np

    from pahq_client.artifacts import array_of
    from pahq_client.neuron_set import Neuron

    numbers = array_of(arrays, "number", "int64", None)
    count = len(numbers)
    raised = _integer(layout, "raised", 0, count)
    if ((numbers < 0) | (numbers >= layers * d_mlp)).any() or len(np.unique(numbers)) != count:
        raise ValueError(f"its neurons are not some of the model's {layers * d_mlp}, each once")
    figures = {name: array_of(arrays, name, "float64", count) for name in _FIGURES}
    if not all(np.isfinite(array).all() for array in figures.values()):
        raise ValueError("it holds a figure of a neuron that is not finite")
    _check_figures(figures, raised, layout)
    places = _read_places(layout, arrays, raised, count, texts)
    columns = [figures[name].tolist() for name in _FIGURES]
    layer, unit = np.divmod(numbers, d_mlp)
    neurons = tuple(Neuron(*row) for row in zip(layer.tolist(), unit.tolist(), *columns, places, strict=True))
    return neurons[:raised], neurons[raised:]


def _check_figures(figures: Mapping[str, NDArray[np.float64]], raised: int, layout: JsonObject) -> None:
    """Refuses figures that contradict each other, or what was asked for."""
    delta, q95 = figures["delta"], figures["q95"]
    for name in _SHARES:
        if ((figures[name] < 0) | (figures[name] > 1)).any():
            raise ValueError(f"it holds a {name} that is not from 0 to 1")
    if (abs(delta - (figures["positive_share"] - figures["negative_share"])) > _ROUNDING).any():
        raise ValueError("it holds a delta that is not the difference of its shares")
    if ((q95 < 0) | (q95 > MOST_Q95)).any():
        raise ValueError(f"it holds a q95 that is not from 0 to {MOST_Q95:g}")
    top_k, least = _integer(layout, "top_k", 1, MOST_NEURONS), layout.number("min_delta")
    if not 0 < least <= 1:
        raise ValueError(f"its min_delta is {least:g}, not above 0 and at most 1")
    for side, sign in ((delta[:raised], 1), (-delta[raised:], -1)):
        if len(side) > top_k or (side < least).any():
            raise ValueError("it holds other neurons than were asked for by top_k and min_delta")
        if (side[1:] > side[:-1]).any():
            words = "raised" if sign > 0 else "lowered"
            raise ValueError(f"its {words} neurons are not in the order of their delta")


def _read_places(
    layout: JsonObject,
    arrays: Mapping[str, NDArray[Any]],
    raised: int,
    count: int,
    texts: tuple[int, int],
) -> list[tuple[Any, ...]]:
    import numpy as np

    from pahq_client.artifacts import array_of
    from pahq_client.neuron_set import TokenPlace

    each = _integer(layout, "contexts", 0, MOST_CONTEXTS)
    size = count * each
    value = array_of(arrays, "context_value", "float64", size).reshape(count, each)
    text, position = (
        array_of(arrays, f"context_{name}", "int64", size).reshape(count, each)
        for name in ("text", "position")
    )
    there = text >= 0
    most = np.where(np.arange(count) < raised, *texts)[:, None]
    if ((text < -1) | (text >= most) | ((position >= 0) != there) | (position < -1)).any():
        raise ValueError("it has a neuron that is active in a text that there is not")
    if (np.isfinite(value) != there).any() or not (np.isneginf(value) | there).all():
        raise ValueError("it holds an activation that is not finite")
    if (value[:, 1:] > value[:, :-1]).any():
        raise ValueError("its most active tokens are not in the order of their activations")
    counts = there.sum(1).tolist()  # what lacks is at the end, as -inf is the smallest
    rows = zip(text.tolist(), position.tolist(), value.tolist(), counts, strict=True)
    return [
        tuple(TokenPlace(*place) for place in zip(t[:n], p[:n], v[:n], strict=True)) for t, p, v, n in rows
    ]


def _read_prompts(
    layout: JsonObject, provenance: Mapping[str, Any], texts: tuple[int, int]
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]] | None:
    """The texts, where a file or the provenance of a job tells them."""
    if "prompts" in layout:
        told = layout.get("prompts", list)
        if len(told) != 2 or [len(side) if isinstance(side, list) else -1 for side in told] != list(texts):
            raise ValueError("its prompts are not as many as its texts")
        positive, negative = (tuple(map(_read_prompt, side)) for side in told)
        return positive, negative
    run = provenance.get("run")
    about = run.get("prompts") if isinstance(run, Mapping) else None
    clean = about.get("clean") if isinstance(about, Mapping) else None
    if not isinstance(clean, list) or len(clean) != sum(texts):
        return None
    prompts = tuple(map(_read_prompt, clean))
    return prompts[: texts[0]], prompts[texts[0] :]


def _read_prompt(value: object) -> Prompt:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(type(token) is int and token >= 0 for token in value):
        raise ValueError("it has a prompt that is neither text nor token ids")
    return tuple(value)


def _read_token_texts(
    layout: JsonObject, texts: tuple[int, int]
) -> tuple[Mapping[int, tuple[str, ...]], Mapping[int, tuple[str, ...]]]:
    if "token_texts" not in layout:
        return {}, {}
    told = layout.get("token_texts", list)
    if len(told) != 2:
        raise ValueError("its token texts are not those of two sides")
    positive, negative = (_read_side(side, count) for side, count in zip(told, texts, strict=True))
    return positive, negative


def _read_side(side: object, count: int) -> Mapping[int, tuple[str, ...]]:
    if not isinstance(side, dict):
        raise ValueError("its token texts must be objects")
    found = {}
    for key, tokens in side.items():
        if not key.isascii() or not key.isdecimal() or len(key) > 18 or int(key) >= count:
            raise ValueError(f"it has token texts of a text {key[:100]!r}")
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise ValueError("it has token texts that are no texts")
        found[int(key)] = tuple(tokens)
    return found


def _integer(layout: JsonObject, name: str, least: int, most: int) -> int:
    value: int = layout.get(name, int)
    if not least <= value <= most:
        raise ValueError(f"its {name} is {value}, not from {least} to {most}")
    return value


def _pair(layout: JsonObject, name: str) -> tuple[int, int]:
    value = layout.get(name, list)
    if len(value) != 2 or not all(type(each) is int and 1 <= each <= MOST_TOKENS for each in value):
        raise ValueError(f"its {name} are not two numbers above 0")
    return value[0], value[1]
