"""Options about what is kept."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    add_data_dir(parser)


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=state_directory(os.environ),
        metavar="DIR",
        help="where jobs and tokens are kept (default: %(default)s)",
    )


def state_directory(environment: Mapping[str, str]) -> Path:
    """Where programs of this user keep what they need again."""
    state = environment.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "pahq"
