"""Accounts for every field of a ``config.json``: it is used, known to have no effect, or refused.

transformers accepts any field in a configuration, also those that the format's configuration class does not
know. Some change what a model computes (``is_causal`` changes the attention mask of most models), and forks
add fields of their own. So each adapter declares, as `Fields`, which fields it computes with and which have
no effect on logits. A field that it does not declare is refused by name, unless it has its default value.

What a field may hold is a `FieldType`, built from `integer`, `number`, `one_of`, `list_of` and `nullable`.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pahq_server.core.errors import InvalidRequestError

# Sizes are int32 in the protocol.
INT32_MAX = 2**31 - 1
# Bounds the memory of lists with an entry per layer. The deepest published models have some 130 layers.
MAX_LAYERS = 4096
_MAX_LABELS = 1 << 20
# Fields by which libraries mark weights as quantised.
_QUANTIZATION = ("quantization_config", "compression_config", "quantization")
_NO_DEFAULT = object()
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


# What a field may hold


@dataclass(frozen=True)
class FieldType:
    """What a field of a JSON file may hold.

    Args:
        allowed: the allowed values in words; messages put it after "must be".
        accepts: whether a value, as the json module gives it, is allowed.
    """

    allowed: str
    accepts: Callable[[Any], bool]


def integer(low: int = 1, high: int = INT32_MAX) -> FieldType:
    """An integer from ``low`` to ``high``, both included."""
    return FieldType(f"an integer from {low} to {high}", lambda x: is_integer(x) and low <= x <= high)


def number(low: float = 0.0, high: float = math.inf, *, above: bool = False) -> FieldType:
    """A finite number from ``low`` to ``high``, both included; with ``above``, ``low`` itself is excluded."""
    bounds = f"greater than {low:g}" if above else f"of at least {low:g}"
    if math.isfinite(high):
        bounds += f" and at most {high:g}"
    return FieldType(
        f"a number {bounds}", lambda x: _is_number(x) and (x > low if above else x >= low) and x <= high
    )


def one_of(*values: object) -> FieldType:
    """One of these values, compared as JSON: true is not 1."""
    words = " or ".join(as_json(value) for value in values)
    return FieldType(words, lambda x: any(same(x, value) for value in values))


def list_of(item: FieldType, longest: int = MAX_LAYERS) -> FieldType:
    """A list of at most ``longest`` items."""
    return FieldType(
        f"a list of at most {longest} values, each {item.allowed}",
        lambda x: isinstance(x, list) and len(x) <= longest and all(map(item.accepts, x)),
    )


def nullable(value: FieldType) -> FieldType:
    """A value of this type, or null."""
    return FieldType(f"{value.allowed}, or null", lambda x: x is None or value.accepts(x))


def check_value(name: str, value: object, allowed: FieldType) -> None:
    """Raises InvalidRequestError (field ``model``) with the field's name, its value, and what is allowed."""
    if not allowed.accepts(value):
        raise InvalidRequestError(
            "model", f"config.json: {name} must be {allowed.allowed}, got {shown(value)}"
        )


def same(one: object, other: object) -> bool:
    """Whether two JSON values are equal: true is not 1, but 1.0 is."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return one == other


def is_integer(value: object) -> bool:
    """Whether a JSON value is an integer; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def as_json(value: object) -> str:
    """Writes a JSON value for messages."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def shown(value: object) -> str:
    """Quotes a value for messages, shortened where it is long or deeply nested."""
    return _SHORT.repr(value)


FLAG = one_of(True, False)
NAME = FieldType("a name", lambda x: isinstance(x, str))
SIZE = integer()
LAYERS = integer(1, MAX_LAYERS)
EPSILON = number(0, 1)
# For fields that transformers, or a check of their own, judges by more than a type.
ANYTHING = FieldType("anything", lambda x: True)


# Which fields a format has


class FurtherChecks(Protocol):
    """Checks of fields that depend on each other, beyond what each of them may hold.

    Both methods raise InvalidRequestError (field ``model``).
    """

    def check_file(self, model_type: str, raw: Mapping[str, Any]) -> None:
        """Checks the fields of a ``config.json`` before transformers reads them."""
        ...

    def check_config(self, raw: Mapping[str, Any], config: Any) -> None:
        """Checks the configuration that transformers has made of the fields."""
        ...


@dataclass(frozen=True)
class Fields:
    """What an adapter knows about its format's configuration.

    Args:
        architectures: the classes of transformers whose weights the adapter reads.
        computed: fields that decide what is computed, with what each may hold.
        fixed: fields that would change what is computed, with the values at which they do not.
        ignored: fields without effect on the logits of an unpadded prompt in evaluation mode.
        multiples: pairs of fields (a, b) for which a must be a multiple of b, with the reason.
        rope: checks of the fields of rotary positions; None for formats without them.
    """

    architectures: tuple[str, ...]
    computed: Mapping[str, FieldType]
    fixed: Mapping[str, tuple[object, ...]]
    ignored: Collection[str]
    multiples: Mapping[tuple[str, str], str] = field(default_factory=dict)
    rope: FurtherChecks | None = None

    def check_file(self, model_type: str, raw: Mapping[str, Any]) -> None:
        """Checks a ``config.json`` before transformers reads it.

        Args:
            model_type: of the file.
            raw: all fields of the file.

        Raises InvalidRequestError (field ``model``) for the first field that is not accounted for, or that
        holds a value that is not allowed.
        """
        for name in _QUANTIZATION:
            if raw.get(name) is not None and not _is_torchao(name, raw[name]):
                refuse_quantized(name, raw[name])
        self._check_classes(model_type, raw)
        aliases, defaults = _aliases_and_defaults(model_type)
        # num_labels has no effect, but transformers makes up a name for each label, which takes memory.
        check_value("num_labels", raw.get("num_labels"), nullable(integer(0, _MAX_LABELS)))
        for name, value in raw.items():
            own_name = aliases.get(name, name)
            if own_name in self.computed:
                check_value(name, value, self.computed[own_name])
            elif own_name in self.fixed:
                _check_fixed(model_type, name, value, self.fixed[own_name])
            elif not self.does_not_matter(own_name) and not same(value, defaults.get(own_name, _NO_DEFAULT)):
                detail = (
                    f"{model_type} with {name}={shown(value)} is not supported: nothing here computes with "
                    f"this field, and it may change what the model computes. Remove it from config.json if "
                    "the model is the same without it"
                )
                raise InvalidRequestError("model", detail)
        self._check_multiples(defaults | {aliases.get(name, name): value for name, value in raw.items()})
        if self.rope is not None:
            self.rope.check_file(model_type, raw)

    def check_config(self, raw: Mapping[str, Any], config: Any) -> None:
        """Checks the configuration that transformers made of a ``config.json``, with all defaults filled in.

        Raises InvalidRequestError (field ``model``) like `check_file`.
        """
        # transformers has replaced old spellings. Some attributes exist only where the file has the field.
        found = vars(config)
        for name, allowed in self.computed.items():
            if name in found:
                check_value(name, found[name], allowed)
        for name, values in self.fixed.items():
            if name in found:
                _check_fixed(config.model_type, name, found[name], values)
        self._check_multiples(found)
        if self.rope is not None:
            self.rope.check_config(raw, config)

    def _check_multiples(self, values: Mapping[str, Any]) -> None:
        for (name, other), why in self.multiples.items():
            whole, part = values.get(name), values.get(other)
            # Null stands for a value that fits; some defaults are known only after transformers filled them
            # in.
            if whole is not None and part is not None and whole % part:
                detail = f"config.json: {name}={whole} is not a multiple of {other}={part}, so {why}"
                raise InvalidRequestError("model", detail)

    def does_not_matter(self, name: str) -> bool:
        """Whether the logits are the same for any value of a field, given by the format's own name for it."""
        # Token ids say where generation starts and stops; padding ids matter to padded prompts only.
        return name in self.ignored or name.endswith("_token_id") or name in ("model_type", *_QUANTIZATION)

    def _check_classes(self, model_type: str, raw: Mapping[str, Any]) -> None:
        """Refuses weights of classes that compute something else, and checkpoints with code of their own."""
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
    """Raises InvalidRequestError (field ``model``) for a field ``name`` that says the weights are quantised.

    The message names the scheme, as far as ``value`` tells it.
    """
    found = value if isinstance(value, dict) else {}
    scheme = found.get("quant_method") or found.get("quant_type") or found.get("format")
    if scheme is None:
        bits = [bits for bits in (4, 8) if found.get(f"load_in_{bits}bit")]
        scheme = f"bitsandbytes, {bits[0]} bits" if bits else shown(value)
    detail = (
        f"config.json: {name} says that the weights are quantised ({scheme!s:.40}), and of quantised "
        "checkpoints only those of torchao are read, in int8 or float8 (e4m3) with one scale per row. Serve "
        "the original model (--weights int8 rounds it to 8 bits), or dequantise this one, save it, and "
        "remove the field"
    )
    raise InvalidRequestError("model", detail)


def _is_torchao(name: str, value: object) -> bool:
    """Whether a field says that torchao has quantised weights: then `quantized_tensors` judges the scheme."""
    return (
        name == "quantization_config" and isinstance(value, dict) and value.get("quant_method") == "torchao"
    )


def _check_fixed(model_type: str, name: str, value: object, allowed: tuple[object, ...]) -> None:
    if not any(same(value, one) for one in allowed):
        only = " or ".join(as_json(one) for one in allowed)
        detail = f"{model_type} with {name}={shown(value)} is not supported, only {only}"
        raise InvalidRequestError("model", detail)


def _aliases_and_defaults(model_type: str) -> tuple[Mapping[str, str], dict[str, object]]:
    """Returns other names of fields, and their default values, from a format's configuration class."""
    # Imported here because transformers takes 100 MB.
    from transformers import CONFIG_MAPPING

    found: Any = CONFIG_MAPPING[model_type]
    fields = dataclasses.fields(found) if dataclasses.is_dataclass(found) else ()
    return found.attribute_map, {one.name: one.default for one in fields}
