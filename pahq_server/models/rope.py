"""Rotary positions: the fields of a ``config.json`` that describe them, and the frequencies that follow.

transformers computes the frequencies. What is checked here is that the file does not contradict itself: there
are two names for the dictionary of settings and up to three for each setting, and transformers silently
prefers one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pahq_server.core.errors import InvalidRequestError
from pahq_server.models.architecture import Rotary
from pahq_server.models.config_fields import (
    FLAG,
    SIZE,
    FieldType,
    check_value,
    nullable,
    number,
    one_of,
    same,
    shown,
)

_DICTIONARIES = ("rope_parameters", "rope_scaling")
_POSITIVE = number(above=True)
_THETA = _POSITIVE
# The supported types of rotary positions, whose frequencies do not depend on the length of the prompt, with
# the settings that each must have, and those that it may have.
_REQUIRED: dict[str, dict[str, FieldType]] = {
    "default": {},
    "linear": {"factor": _POSITIVE},
    "llama3": {"factor": _POSITIVE, "low_freq_factor": _POSITIVE, "high_freq_factor": _POSITIVE},
    "yarn": {"factor": _POSITIVE},
}
_OPTIONAL: dict[str, dict[str, FieldType]] = {
    "default": {},
    "linear": {},
    "llama3": {"original_max_position_embeddings": SIZE},
    "yarn": {
        "original_max_position_embeddings": SIZE,
        "truncate": FLAG,
        **dict.fromkeys(
            ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"), nullable(_POSITIVE)
        ),
    },
}
# Fields outside the dictionary, each with the entry of the dictionary that means the same.
_BESIDE = {
    "rope_theta": "rope_theta",
    "rotary_emb_base": "rope_theta",
    "partial_rotary_factor": "partial_rotary_factor",
    "rotary_pct": "partial_rotary_factor",
    "original_max_position_embeddings": "original_max_position_embeddings",
}


@dataclass(frozen=True)
class RopeFields:
    """The fields of a ``config.json`` that describe rotary positions: `config_fields.FurtherChecks`.

    Args:
        share: what ``partial_rotary_factor``, the rotated share of each head, may be.
    """

    share: FieldType

    @property
    def computed(self) -> dict[str, FieldType]:
        """The fields and what each may hold, for `Fields.computed`."""
        dictionary = FieldType("an object, or null", lambda x: x is None or isinstance(x, dict))
        return {
            **dict.fromkeys(_DICTIONARIES, dictionary),
            "rope_theta": _THETA,
            "partial_rotary_factor": nullable(self.share),
            "original_max_position_embeddings": SIZE,
        }

    def check_file(self, model_type: str, raw: Mapping[str, Any]) -> None:
        """Checks that the dictionaries of a ``config.json`` are of a known type and agree with each other."""
        given = {name: raw[name] for name in _DICTIONARIES if raw.get(name)}
        for name, found in given.items():
            _check_dictionary(model_type, name, found, self.share)
        if len(given) == 2 and not same(*given.values()):
            detail = "config.json: rope_scaling and rope_parameters contradict each other; remove one of them"
            raise InvalidRequestError("model", detail)

    def check_config(self, raw: Mapping[str, Any], config: Any) -> None:
        """Checks that no field of the file contradicts what transformers has taken from it."""
        taken = config.rope_parameters
        said = [(name, raw[name], entry) for name, entry in _BESIDE.items() if raw.get(name) is not None]
        for dictionary in _DICTIONARIES:
            entries = (raw.get(dictionary) or {}).items()
            said += [(f"{dictionary}.{name}", value, name) for name, value in entries]
        for name, value, entry in said:
            found = taken.get("rope_type" if entry == "type" else entry)
            if found is None and entry == "partial_rotary_factor":
                found = 1.0
            if not same(value, found):
                detail = (
                    f"config.json: {name} is {shown(value)}, but transformers goes by {entry}={shown(found)} "
                    "for this file: let both say the same, or remove the one that is not meant"
                )
                raise InvalidRequestError("model", detail)


# Formats whose models rotate a share of each head, and those that rotate all of it.
PARTIAL_ROPE = RopeFields(number(0, 1, above=True))
WHOLE_ROPE = RopeFields(one_of(1.0))


def _check_dictionary(model_type: str, where: str, found: Mapping[str, Any], share: FieldType) -> None:
    names = [found[name] for name in ("rope_type", "type") if name in found]
    rope = names[0] if names else "default"
    if not isinstance(rope, str) or rope not in _REQUIRED:
        detail = f"{model_type} with rope_type={shown(rope)} is not supported, only {tuple(_REQUIRED)}"
        raise InvalidRequestError("model", detail)
    if len(set(map(str, names))) > 1:
        raise InvalidRequestError("model", f"config.json: {where} has two types, {shown(names)}")
    for name in _REQUIRED[rope]:
        if name not in found:
            raise InvalidRequestError("model", f"config.json: {where} of type {rope!r} needs {name}")
    settings = {"rope_theta": _THETA, "partial_rotary_factor": share} | _REQUIRED[rope] | _OPTIONAL[rope]
    for name, value in found.items():
        if name in ("rope_type", "type"):
            continue
        if name not in settings:
            detail = (
                f"{model_type} with {where}.{name}={shown(value)} is not supported: rope_type={rope!r} "
                f"has no such parameter, only {sorted(settings)}"
            )
            raise InvalidRequestError("model", detail)
        check_value(f"{where}.{name}", value, settings[name])
    if rope == "llama3" and found["low_freq_factor"] >= found["high_freq_factor"]:
        detail = (
            f"config.json: {where}.low_freq_factor must be less than high_freq_factor, got "
            f"{found['low_freq_factor']} and {found['high_freq_factor']}"
        )
        raise InvalidRequestError("model", detail)


def rotary(embedding: Callable[[Any], Any], config: Any, d_head: int) -> Rotary:
    """Computes the frequencies of rotary positions with a module of transformers.

    Args:
        embedding: class of the module.
        config: from which the module is made.
        d_head: width of a head, in features.

    Raises InvalidRequestError (field ``model``) for frequencies that are not finite or too many.
    """
    try:
        with torch.device("cpu"):
            made = embedding(config)
            inv_freq, scaling = made.inv_freq.float(), float(made.attention_scaling)
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
        detail = f"config.json: no rotary positions follow from {shown(config.rope_parameters)}: {error!r}"
        raise InvalidRequestError("model", detail) from error
    if not bool(inv_freq.isfinite().all()) or not math.isfinite(scaling):
        detail = f"config.json: rotary positions from {shown(config.rope_parameters)} are not finite"
        raise InvalidRequestError("model", detail)
    if 2 * len(inv_freq) > d_head:
        detail = (
            f"config.json: rotary positions turn {2 * len(inv_freq)} features of a head, which has {d_head}: "
            "the width of a head must be even"
        )
        raise InvalidRequestError("model", detail)
    return Rotary(inv_freq.to(torch.get_default_device()), scaling)
