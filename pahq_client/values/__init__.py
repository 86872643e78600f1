"""Texts that show values: a small example data set, and a reader of larger ones.

A file holds a JSON object per line: the name of a ``value``, a ``pole`` (``positive`` for a text that shows
it, ``negative`` for one that shows its opposite) and a ``text``. `schwartz_values` reads ``schwartz.jsonl``:
the four higher-order dimensions of Schwartz's theory of basic human values (Advances in Experimental Social
Psychology 25, 1992), in situations that were written for this package, a dozen for each pole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from pahq_client import checks, files
from pahq_client.errors import InvalidRequest

POLES = ("positive", "negative")


@dataclass(frozen=True)
class ValueTexts:
    """Texts that show a value, and texts that show its opposite, for `Client.locate_neurons`.

    Args:
        positive: show the value.
        negative: show its opposite.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]


def schwartz_values() -> Mapping[str, ValueTexts]:
    """Returns texts for four values, a dozen for each pole: enough for a first look, not for a study.

    The values are ``openness_to_change``, ``conservation``, ``self_enhancement`` and ``self_transcendence``.
    """
    data = resources.files(__name__).joinpath("schwartz.jsonl").read_bytes()
    return _read("schwartz.jsonl", data)


@checks.known_arguments
def load_values(path: str | os.PathLike[str]) -> Mapping[str, ValueTexts]:
    """Reads values from a file of JSON Lines, in the order in which they are first named.

    Args:
        path: of the file; each line is an object with ``value``, ``pole`` and ``text``.

    Raises:
        InvalidRequest: the path is none, or a line is no such object, or a value has texts of one pole only.
        OSError: the file cannot be read.
    """
    return _read(files.path_text("path", path), files.read(path))


def _read(name: str, data: bytes) -> Mapping[str, ValueTexts]:
    found: dict[str, dict[str, list[str]]] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(name, f"line {number} is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise InvalidRequest(name, f"line {number} must be an object, got {type(fields).__name__}")
        value, text = (_text(f"line {number}", name, key, fields.get(key)) for key in ("value", "text"))
        pole = fields.get("pole")
        if pole not in POLES:
            detail = f"line {number} needs a pole, one of {', '.join(POLES)}, got {pole!r:.100}"
            raise InvalidRequest(name, detail)
        found.setdefault(value, {each: [] for each in POLES})[pole].append(text)
    if not found:
        raise InvalidRequest(name, "holds no texts: give an object with value, pole and text in each line")
    for value, poles in found.items():
        for pole in POLES:
            if not poles[pole]:
                raise InvalidRequest(name, f"has no {pole} text of {value!r}: each value needs both poles")
    return {value: ValueTexts(*(tuple(poles[pole]) for pole in POLES)) for value, poles in found.items()}


def _text(line: str, name: str, key: str, given: object) -> str:
    if not isinstance(given, str) or not given.strip():
        raise InvalidRequest(name, f"{line} needs a {key} that is a text, got {given!r:.100}")
    return given
