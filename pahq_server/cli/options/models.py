"""Options about models and the memory beside them."""

from __future__ import annotations

import argparse
from typing import Any

from pahq_server.cli import values
from pahq_server.demo import model_path

DEMO = "demo"
# What weights can be kept in, with the policy that rounds them so; None for full precision.
WEIGHTS = {"fp32": None, "bf16": "bf16", "int8": "pahq-int8", "fp8": "pahq-fp8"}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        type=values.model,
        action=_AddModel,
        default=[],
        metavar="NAME=PATH_OR_HUB_ID",
        help="a model to serve, besides the built-in 'demo'; may be repeated",
    )
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="NAME",
        help="what models are kept and computed on: cpu, cuda or cuda:1 (default: %(default)s)",
    )
    parser.add_argument(
        "--memory",
        type=values.size,
        metavar="SIZE",
        help="what jobs and sessions may take beside the models, such as 4GiB or 1500MB; never changes "
        "a result (default: half of what the models leave of the device's memory)",
    )
    parser.add_argument(
        "--weights",
        choices=tuple(WEIGHTS),
        default="fp32",
        help="what weights are kept in: %(choices)s (default: %(default)s); unless fp32, only rounded "
        "weights are in memory, and full precision is read from the checkpoint's files when it is used",
    )


class _AddModel(argparse.Action):
    """Adds a model to those that were named before; a name stands for one model only."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        (name, source), before = values, getattr(namespace, self.dest)
        if name == DEMO:
            raise argparse.ArgumentError(
                self, f"{DEMO!r} is the built-in model's name: choose another one, as in mine={source}"
            )
        if name in dict(before):
            both = f"{dict(before)[name]} and {source}"
            raise argparse.ArgumentError(self, f"two models are named {name!r}, {both}: choose another name")
        setattr(namespace, self.dest, [*before, (name, source)])


def sources(options: argparse.Namespace) -> dict[str, str]:
    """Directory or hub id by the name that clients use."""
    return {DEMO: str(model_path())} | dict(options.model)
