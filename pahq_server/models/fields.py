"""Accounts for every field of a ``config.json``: what is computed with, what does not matter, nothing else.

transformers gives a model all fields of its file, also those that the format's configuration class has not
heard of: ``is_causal``, for one, changes the mask of most models. Forks add fields of their own. So an
adapter declares which fields it computes with and which have no effect on logits; what is left is refused by
name unless it has the value that the library takes without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pahq_server.core.errors import InvalidRequestError
from pahq_server.models.kinds import Kind, as_json, check_value, integer, nullable, same, shown
from pahq_server.models.rope import check_rope_config, check_rope_file

# Fields that say that the weights are quantised, in whichever library's words.
_QUANTIZATION = ("quantization_config", "compression_config", "quantization")
_MAX_LABELS = 1 << 20
_NOTHING = object()


@dataclass(frozen=True)
class Fields:
    """What an adapter knows of its format's configuration.

    Args:
        architectures: classes of transformers whose weights the adapter reads.
        computed: fields that decide what is computed, by what they may hold.
        fixed: fields that would change what is computed, by the values with which they don't.
        ignored: fields without effect on the logits of an unpadded prompt in evaluation mode.
        multiples: pairs of fields of which the first is a multiple of the second, with why.
        rope_share: what the rotated share of a head may be; None for formats without rotary positions.
    """

    architectures: tuple[str, ...]
    computed: Mapping[str, Kind]
    fixed: Mapping[str, tuple[object, ...]]
    ignored: Collection[str]
    multiples: Mapping[tuple[str, str], str] = field(default_factory=dict)
    rope_share: Kind | None = None

    def check_file(self, model_type: str, raw: Mapping[str, Any]) -> None:
        """Checks a ``config.json`` before transformers sees it.

        Raises InvalidRequestError (field ``model``) for the first field that is not accounted for, or that
        holds what it may not hold.
        """
        for name in _QUANTIZATION:
            if raw.get(name) is not None:
                refuse_quantized(name, raw[name])
        self._check_classes(model_type, raw)
        aliases, defaults = _format(model_type)
        # Without effect, but transformers makes a name for each of so many.
        check_value("num_labels", raw.get("num_labels"), nullable(integer(0, _MAX_LABELS)))
        for name, value in raw.items():
            own_name = aliases.get(name, name)
            if own_name in self.computed:
                check_value(name, value, self.computed[own_name])
            elif own_name in self.fixed:
                _check_fixed(model_type, name, value, self.fixed[own_name])
            elif not self.does_not_matter(own_name) and not same(value, defaults.get(own_name, _NOTHING)):
                detail = (
                    f"{model_type} with {name}={shown(value)} is not supported: nothing here computes with "
                    f"this field, and it may change what the model computes. Remove it from config.json if "
                    "the model is the same without it"
                )
                raise InvalidRequestError("model", detail)
        self._check_multiples(defaults | {aliases.get(name, name): value for name, value in raw.items()})
        if self.rope_share is not None:
            check_rope_file(model_type, raw, self.rope_share)

    def check_config(self, raw: Mapping[str, Any], config: Any) -> None:
        """Checks what transformers made of a ``config.json``, with all defaults filled in.

        Raises InvalidRequestError (field ``model``) like `check_file`.
        """
        # Old spellings are gone by now, and some attributes exist only where the file has them.
        found = vars(config)
        for name, kind in self.computed.items():
            if name in found:
                check_value(name, found[name], kind)
        for name, allowed in self.fixed.items():
            if name in found:
                _check_fixed(config.model_type, name, found[name], allowed)
        self._check_multiples(found)
        if self.rope_share is not None:
            check_rope_config(raw, config)

    def _check_multiples(self, values: Mapping[str, Any]) -> None:
        for (name, other), why in self.multiples.items():
            whole, part = values.get(name), values.get(other)
            # Null stands for a value that fits; a default may not be known before transformers fills it in.
            if whole is not None and part is not None and whole % part:
                detail = f"config.json: {name}={whole} is not a multiple of {other}={part}, so {why}"
                raise InvalidRequestError("model", detail)

    def does_not_matter(self, name: str) -> bool:
        """Whether any value of a field, by the format's own name for it, gives the same logits."""
        # Token ids say what generation starts and stops with; padding ids matter to padded prompts only.
        return name in self.ignored or name.endswith("_token_id") or name in ("model_type", *_QUANTIZATION)

    def _check_classes(self, model_type: str, raw: Mapping[str, Any]) -> None:
        """Weights of another class are those of another function, and code of a checkpoint is never run."""
        classes = raw.get("architectures")
        if classes is not None and not (
            isinstance(classes, list) and all(name in self.architectures for name in classes)
        ):
            detail = (
                f"config.json: architectures is {shown(classes)}; of {model_type} only "
                f"{' and '.join(self.architectures)} are supported"
            )
            raise InvalidRequestError("model", detail)
        code = raw.get("auto_map")
        if code is not None and not (isinstance(code, dict) and code.keys() <= {"AutoTokenizer"}):
            detail = (
                f"config.json: auto_map={shown(code)} asks for code of the checkpoint, which is never run. "
                f"Remove the field if the model is a plain {model_type}"
            )
            raise InvalidRequestError("model", detail)


def refuse_quantized(name: str, value: object) -> None:
    """Raises InvalidRequestError (field ``model``) with the name of the scheme."""
    found = value if isinstance(value, dict) else {}
    scheme = found.get("quant_method") or found.get("quant_type") or found.get("format")
    if scheme is None:
        bits = [bits for bits in (4, 8) if found.get(f"load_in_{bits}bit")]
        scheme = f"bitsandbytes, {bits[0]} bits" if bits else shown(value)
    detail = (
        f"config.json: {name} says that the weights are quantised ({scheme!s:.40}), and quantised "
        "checkpoints are not read. Serve the original model (--weights int8 rounds it to 8 bits), or "
        "dequantise this one, save it, and remove the field"
    )
    raise InvalidRequestError("model", detail)


def _check_fixed(model_type: str, name: str, value: object, allowed: tuple[object, ...]) -> None:
    if not any(same(value, one) for one in allowed):
        only = " or ".join(as_json(one) for one in allowed)
        detail = f"{model_type} with {name}={shown(value)} is not supported, only {only}"
        raise InvalidRequestError("model", detail)


def _format(model_type: str) -> tuple[Mapping[str, str], dict[str, object]]:
    """Other names of fields, and the defaults, of a format's configuration class."""
    # Imported where it is needed, as all of transformers: 100 MB.
    from transformers import CONFIG_MAPPING

    found: Any = CONFIG_MAPPING[model_type]
    fields = dataclasses.fields(found) if dataclasses.is_dataclass(found) else ()
    return found.attribute_map, {one.name: one.default for one in fields}
