"""Options about what is kept."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from pahq_server.cli import values
from pahq_server.store.opening import StorageConfig
from pahq_server.store.records import Retention

DAY_S = 86_400.0


def add(parser: argparse.ArgumentParser) -> None:
    add_data_dir(parser)
    parser.add_argument(
        "--ephemeral",
        action="store_true",
        help="keep nothing on disk: jobs and their results end with the server",
    )
    parser.add_argument(
        "--no-result-cache",
        action="store_true",
        help="compute every discovery, also one that equals an earlier one of the same user",
    )
    usual = Retention()
    parser.add_argument(
        "--keep-jobs",
        type=values.count,
        default=usual.jobs,
        metavar="N",
        help="finished discoveries that are kept of each user, the newest ones (default: %(default)s)",
    )
    parser.add_argument(
        "--keep-days",
        type=values.rate,
        metavar="DAYS",
        help="how long finished discoveries are kept at most (default: for ever)",
    )


def config(options: argparse.Namespace) -> StorageConfig:
    return StorageConfig(
        directory=None if options.ephemeral else options.data_dir,
        retention=Retention(options.keep_jobs, options.keep_days and options.keep_days * DAY_S),
        reuse=not options.no_result_cache,
    )


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir",
        type=values.directory,
        default=state_directory(os.environ),
        metavar="DIR",
        help="where jobs and tokens are kept (default: %(default)s)",
    )


def state_directory(environment: Mapping[str, str]) -> Path:
    """Where programs of this user keep what they need again."""
    state = environment.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "pahq"
