"""A real server for tests: dies where it is told, and writes down what it has to score and what it opens.

Run as a script: ``crashing_server.py [--die-at FAILPOINT:N] [--passes FILE] [--audit FILE] serve …``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dying import die_at
from pass_log import LoggedEngine

import pahq_server.app
import pahq_server.assembly
from pahq_server.cli import main
from pahq_server.engine.engine import ModelEngine
from pahq_server.store.database import Database
from pahq_server.store.directory import StorageConfig


def install_death(place: str) -> None:
    original = pahq_server.app.opened

    def opened(config: StorageConfig) -> AbstractContextManager[Database]:
        return original(replace(config, failpoint=die_at(place)))

    pahq_server.app.opened = opened


def install_log(path: Path) -> None:
    class Engine(LoggedEngine, ModelEngine):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.log_into(path)

    pahq_server.assembly.ModelEngine = Engine  # type: ignore[misc]


def install_audit(path: Path) -> None:
    """Writes a line for everything that Python does with a path."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" or event.startswith(("os.", "shutil.", "sqlite3.connect", "glob.", "pathlib.")):
            paths = [
                os.fsdecode(value) for value in arguments if isinstance(value, (str, bytes, os.PathLike))
            ]
            os.write(file, (json.dumps([event, paths]) + "\n").encode())

    sys.addaudithook(hook)


def run(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--die-at")
    parser.add_argument("--passes", type=Path)
    parser.add_argument("--audit", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    if options.die_at:
        install_death(options.die_at)
    if options.passes:
        install_log(options.passes)
    if options.audit:
        install_audit(options.audit)
    return main(options.command)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
