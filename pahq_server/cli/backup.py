"""``pahq-server backup``: copy jobs and tokens, also while a server runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from pahq_server.cli.options import storage
from pahq_server.cli.output import FAILED, OK, complain
from pahq_server.core.errors import ServerError
from pahq_server.store.backup import back_up


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the copy; replaced if it is there")
    storage.add_data_dir(parser)


def run(options: argparse.Namespace) -> int:
    try:
        back_up(options.data_dir, options.file)
    except ServerError as error:
        return complain(str(error), FAILED)
    return OK
