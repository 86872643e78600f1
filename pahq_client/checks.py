"""Type checks of arguments. Wrong types are refused here, wrong values by the server.

Every function raises InvalidRequest with the field it is given.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, TypeVar, cast

from pahq_client.errors import InvalidRequest

F = TypeVar("F", bound=Callable[..., Any])


# Arguments of earlier versions: what took their place, and how to say the same.
_REPLACED = {
    "gates": ("grouping", "'gates' (the default) for True, 'none' for False, or 'bisect'"),
}


class UnknownArgument(InvalidRequest, TypeError):
    """A function has no argument of the name ``field``, or takes it by name only.

    Also a TypeError, which Python would raise.
    """


def known_arguments(function: F) -> F:
    """Decorates a function to refuse unknown keyword arguments, and to suggest the one that was meant.

    An argument that is taken by name only, and is given without, is refused likewise.

    Raises (the function):
        UnknownArgument: it has no argument of a name, or takes it by name only.
    """
    parameters = inspect.signature(function).parameters
    names = [name for name in parameters if name not in ("self", "cls")]
    by_name = [name for name in names if parameters[name].kind is inspect.Parameter.KEYWORD_ONLY]
    most = len(parameters) - len(by_name)

    def check(arguments: Sequence[object], given: Mapping[str, object]) -> None:
        if len(arguments) > most and by_name:
            *first, last = (f"{name}=" for name in by_name)
            options = f"{', '.join(first)} or {last}" if first else last
            title = function.__qualname__.removesuffix(".__init__")
            detail = f"{title}() takes {options} by name, got {arguments[most]!r:.60} without one"
            raise UnknownArgument(by_name[0], detail)
        for name in given:
            if name not in names:
                if name in _REPLACED and _REPLACED[name][0] in names:
                    raise UnknownArgument(name, f"gave way to {_REPLACED[name][0]}: {_REPLACED[name][1]}")
                close = difflib.get_close_matches(name, names, 1, cutoff=0.5)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
                title = function.__qualname__.removesuffix(".__init__")
                raise UnknownArgument(name, f"is no argument of {title}(); {hint}")

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def asynchronous(*arguments: Any, **named: Any) -> Any:
            check(arguments, named)
            return await function(*arguments, **named)

        return cast(F, asynchronous)

    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def iterated(*arguments: Any, **named: Any) -> Any:
            check(arguments, named)
            async with contextlib.aclosing(function(*arguments, **named)) as values:
                async for value in values:
                    yield value

        return cast(F, iterated)

    @functools.wraps(function)
    def checked(*arguments: Any, **named: Any) -> Any:
        check(arguments, named)
        return function(*arguments, **named)

    return cast(F, checked)


def text(field: str, value: object) -> str:
    """A string that can be sent as UTF-8."""
    if not isinstance(value, str):
        raise InvalidRequest(field, f"must be a string, got {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(field, f"is not valid Unicode: {error.reason}") from None
    return value


def integer(field: str, value: object, bits: int = 64) -> int:
    """A signed integer of so many bits; numpy's and torch's count, booleans do not."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise InvalidRequest(field, f"must be an integer, got {_kind(value)}")
    if not -(1 << bits - 1) <= number < 1 << bits - 1:
        raise InvalidRequest(field, f"{number} does not fit into {bits} bits")
    return number


def number(field: str, value: object) -> float:
    """A float; NaN and infinity are for the server to refuse."""
    if isinstance(value, str | bytes | bool):
        raise InvalidRequest(field, f"must be a number, got {_kind(value)}")
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise InvalidRequest(field, f"must be a number, got {_kind(value)}") from None


def flag(field: str, value: object) -> bool:
    """A boolean."""
    if not isinstance(value, bool):
        raise InvalidRequest(field, f"must be True or False, got {_kind(value)}")
    return value


def items(field: str, value: object) -> tuple[Any, ...]:
    """The elements of a list, tuple, array or other ordered collection."""
    # A string is a collection of characters, a set has no order: both are mistakes here.
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | Set):
        try:
            return tuple(value)
        except TypeError:  # a zero-dimensional array is iterable in name only
            pass
    raise InvalidRequest(field, f"must be a list, got {_kind(value)}")


def _kind(value: object) -> str:
    return type(value).__name__
