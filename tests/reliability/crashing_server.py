"""A real server for tests: dies where it is told, and writes down which rows it was asked to score.

Run as a script: ``crashing_server.py [--die-at FAILPOINT:N] [--rows FILE] serve …``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dying import die_at
from row_log import LoggedEngine

import pahq_server.app
from pahq_server.app import ServerConfig
from pahq_server.cli import main, serve
from pahq_server.engine.engine import ModelEngine


def install_death(place: str) -> None:
    original = serve._config

    def config(options: argparse.Namespace) -> ServerConfig:
        made = original(options)
        return replace(made, storage=replace(made.storage, failpoint=die_at(place)))

    serve._config = config


def install_log(path: Path) -> None:
    class Engine(LoggedEngine, ModelEngine):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.log_into(path)

    pahq_server.app.ModelEngine = Engine  # type: ignore[misc]


def run(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--die-at")
    parser.add_argument("--rows", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    if options.die_at:
        install_death(options.die_at)
    if options.rows:
        install_log(options.rows)
    return main(options.command)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
