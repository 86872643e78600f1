"""Derives the options of a command from a config dataclass, and makes the config from parsed arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

from pahq_server.config import options
from pahq_server.config.options import Option

Config = TypeVar("Config")


def add_options(parser: argparse.ArgumentParser, config: type) -> None:
    """Adds the options of a config and of those inside it to a parser, in the order of their fields."""
    for option in options.options_of(config):
        _add(parser, option)


def build(config: type[Config], given: argparse.Namespace) -> Config:
    """Makes a config from parsed arguments; a repeated option becomes a tuple."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(given).items()}
    made: Config = options.build(config, values)
    return made


def _add(parser: argparse.ArgumentParser, option: Option) -> None:
    if option.reader is None:
        action = "store_false" if option.default else "store_true"
        parser.add_argument(option.flag, dest=option.name, action=action, help=option.help)
        return
    settings: dict[str, Any] = {"type": _reported(option.reader.read), "help": _help(option)}
    if option.choices:
        settings["choices"] = option.choices
    else:
        settings["metavar"] = option.reader.metavar
    if option.positional:
        parser.add_argument(option.name, nargs="+" if option.repeated else None, **settings)
    elif option.repeated:
        parser.add_argument(
            option.flag, action=_Append, check=option.check, default=option.default, **settings
        )
    else:
        parser.add_argument(option.flag, default=option.default, **settings)


def _help(option: Option) -> str:
    """The help text with the default added, unless there is no default or the text mentions it."""
    if option.positional or option.default in (None, ()) or "(default: " in option.help:
        return option.help
    # Numbers without the zeros of a float: 300, not 300.0.
    default = "default: %(default)g" if isinstance(option.default, float) else "default: %(default)s"
    return f"{option.help} ({default})" if option.help else default


def _reported(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Wraps a reader so that argparse prints the text of its ValueError."""

    def report(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return report


class _Append(argparse.Action):
    """Collects the values of a repeated option in a tuple, checked each time."""

    def __init__(self, check: Callable[[tuple[Any, ...]], None] | None, **settings: Any) -> None:
        super().__init__(**settings)
        self._check = check

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        collected = (*getattr(namespace, self.dest), values)
        if self._check is not None:
            try:
                self._check(collected)
            except ValueError as error:
                raise argparse.ArgumentError(self, str(error)) from error
        setattr(namespace, self.dest, collected)
