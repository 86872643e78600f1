"""Declares that a field of a config is an option of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

_METADATA = "option"


@dataclass(frozen=True)
class Reader:
    """How text becomes a value of a type: ``Annotated[int, Reader(count, "N")]``.

    Args:
        read: returns the value, or raises ValueError with a full explanation of what is wrong with the text.
        metavar: what stands for the value in the help, such as ``SIZE``.
    """

    read: Callable[[str], Any]
    metavar: str


@dataclass(frozen=True)
class Option:
    """An option as it was declared on a field.

    Args:
        name: name of the field.
        help: one sentence for operators. The default is added to it unless it mentions one.
        default: default of the field, or `MISSING` for an argument that must be given.
        reader: reader of the field's type; None for a bool.
        choices: the only values that are allowed; empty for any.
        positional: whether it is given by position rather than by ``--name``.
        repeated: whether it may be given several times; its values are then a tuple.
        check: looks at the values of a repeated option so far, and raises ValueError where they do not go
            together.
    """

    name: str
    help: str
    default: Any
    reader: Reader | None
    choices: Sequence[str]
    positional: bool
    repeated: bool
    check: Callable[[tuple[Any, ...]], None] | None

    @property
    def flag(self) -> str:
        """``--name``, or ``--no-name`` for a bool that is true by default."""
        negated = "no-" if self.reader is None and self.default else ""
        return f"--{negated}{self.name.replace('_', '-')}"


def option(
    default: Any,
    help: str = "",
    *,
    factory: Callable[[], Any] | None = None,
    choices: Sequence[str] = (),
    positional: bool = False,
    check: Callable[[tuple[Any, ...]], None] | None = None,
) -> Any:
    """Declares a field of a frozen dataclass as an option.

    Args:
        default: default of the field; `MISSING` if it must be given or has a ``factory``.
        help, choices, positional, check: as in `Option`.
        factory: gives the default where it depends on the environment.
    """
    metadata = {_METADATA: (help, choices, positional, check)}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def options_of(config: type) -> Iterator[Option]:
    """The options of a config and of the configs inside it, in the order of the fields."""
    hints = get_type_hints(config, include_extras=True)
    for each in fields(config):
        if _METADATA in each.metadata:
            yield _declared(each, hints[each.name])
        elif (inner := _config_type(each)) is not None:
            yield from options_of(inner)


def build(config: type[Any], values: dict[str, Any]) -> Any:
    """Makes a config of the values of its options.

    Args:
        config: type of the config.
        values: values by the names of options. Options of other configs are ignored, and missing ones keep
            their defaults.
    """
    arguments: dict[str, Any] = {}
    for each in fields(config):
        if _METADATA in each.metadata:
            if each.name in values:
                arguments[each.name] = values[each.name]
        elif (inner := _config_type(each)) is not None:
            arguments[each.name] = build(inner, values)
    return config(**arguments)


def _config_type(each: Field[Any]) -> type | None:
    """The type of the config that a field holds; None for a field that holds none."""
    factory = each.default_factory
    return factory if isinstance(factory, type) and hasattr(factory, "__dataclass_fields__") else None


def _declared(each: Field[Any], hint: Any) -> Option:
    help, choices, positional, check = each.metadata[_METADATA]
    default = each.default if each.default_factory is MISSING else each.default_factory()
    value_type = _without_none(hint)
    repeated = get_origin(value_type) is tuple
    if repeated:
        value_type = get_args(value_type)[0]
    return Option(
        each.name, help, default, _reader(value_type, each.name), choices, positional, repeated, check
    )


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (part for part in get_args(hint) if part is not NoneType)
    return hint


def _reader(value_type: Any, name: str) -> Reader | None:
    if value_type is bool:
        return None
    if get_origin(value_type) is Annotated:
        return next(part for part in get_args(value_type) if isinstance(part, Reader))
    if value_type is str:
        return Reader(str, name.upper())
    raise TypeError(f"{name}: no Reader says how text becomes {value_type}")
