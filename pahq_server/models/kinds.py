"""What a field of a JSON file may hold: kinds of values, and messages about others."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
