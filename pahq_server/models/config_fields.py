"""Accounts for every field of a ``config.json``."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pahq_server.core.errors import InvalidRequestError

# The largest size that the protocol can tell: its sizes are int32.
INT32_MAX = 2**31 - 1
# The deepest published models have some 130 layers. Above this a list per layer is an attack on memory.
MAX_LAYERS = 4096
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


@dataclass(frozen=True)
class Kind:
    """What a field may hold.

    Args:
        allowed: says it in words, to follow "must be".
        accepts: tells whether a value as JSON gives it is allowed.
    """

    allowed: str
    accepts: Callable[[Any], bool]


def integer(low: int = 1, high: int = INT32_MAX) -> Kind:
    return Kind(f"an integer from {low} to {high}", lambda x: _is_integer(x) and low <= x <= high)


def number(low: float = 0.0, high: float = math.inf, *, above: bool = False) -> Kind:
    """A finite number of at least ``low``, or of more than it where it must be ``above``."""
    bounds = f"greater than {low:g}" if above else f"of at least {low:g}"
    if math.isfinite(high):
        bounds += f" and at most {high:g}"
    return Kind(
        f"a number {bounds}", lambda x: _is_number(x) and (x > low if above else x >= low) and x <= high
    )


def one_of(*values: object) -> Kind:
    words = " or ".join(as_json(value) for value in values)
    return Kind(words, lambda x: any(same(x, value) for value in values))


def list_of(kind: Kind, longest: int = MAX_LAYERS) -> Kind:
    return Kind(
        f"a list of at most {longest} values, each {kind.allowed}",
        lambda x: isinstance(x, list) and len(x) <= longest and all(map(kind.accepts, x)),
    )


def nullable(kind: Kind) -> Kind:
    return Kind(f"{kind.allowed}, or null", lambda x: x is None or kind.accepts(x))


def check_value(name: str, value: object, kind: Kind) -> None:
    """Raises InvalidRequestError (field ``model``) with a field's name, its value, and what is allowed."""
    if not kind.accepts(value):
        raise InvalidRequestError("model", f"config.json: {name} must be {kind.allowed}, got {shown(value)}")


def same(one: object, other: object) -> bool:
    """Whether two values of JSON are equal: true is not 1, but 1.0 is."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return one == other


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def as_json(value: object) -> str:
    """A value of JSON for a message."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def shown(value: object) -> str:
    """A value for a message, cut where it is long or deep."""
    return _SHORT.repr(value)


FLAG = one_of(True, False)
NAME = Kind("a name", lambda x: isinstance(x, str))
SIZE = integer()
LAYERS = integer(1, MAX_LAYERS)
EPSILON = number(0, 1)
# Left to transformers or to a check of its own, which knows more than the type.
ANYTHING = Kind("anything", lambda x: True)


# Fields that say that the weights are quantised, in whichever library's words.
_QUANTIZATION = ("quantization_config", "compression_config", "quantization")
_MAX_LABELS = 1 << 20
_NOTHING = object()


class FurtherChecks(Protocol):
    """Checks of fields that belong together, beyond what each of them may hold.

    Both methods raise InvalidRequestError (field ``model``).
    """

    def check_file(self, model_type: str, raw: Mapping[str, Any]) -> None:
        """Checks the fields of a ``config.json`` before transformers sees them."""
        ...

    def check_config(self, raw: Mapping[str, Any], config: Any) -> None:
        """Checks what transformers made of them."""
        ...


@dataclass(frozen=True)
class Fields:
    """What an adapter knows of its format's configuration.

    Args:
        architectures: classes of transformers whose weights the adapter reads.
        computed: fields that decide what is computed, by what they may hold.
        fixed: fields that would change what is computed, by the values with which they don't.
        ignored: fields without effect on the logits of an unpadded prompt in evaluation mode.
        multiples: pairs of fields of which the first is a multiple of the second, with why.
        rope: checks of the fields of rotary positions; None for formats without them.
    """

    architectures: tuple[str, ...]
    computed: Mapping[str, Kind]
    fixed: Mapping[str, tuple[object, ...]]
    ignored: Collection[str]
    multiples: Mapping[tuple[str, str], str] = field(default_factory=dict)
    rope: FurtherChecks | None = None

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
        if self.rope is not None:
            self.rope.check_file(model_type, raw)

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
        if self.rope is not None:
            self.rope.check_config(raw, config)

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
