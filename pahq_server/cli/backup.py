"""``pahq-server backup``: copy jobs and tokens, also while a server runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from pahq_server.cli.options import storage
from pahq_server.cli.output import FAILED, OK, complain
from pahq_server.core.errors import InvalidRequestError, ServerError
from pahq_server.store.backup import back_up


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="the copy; replaced if it is there; no file of DIR"
    )
    storage.add_data_dir(parser)


def run(options: argparse.Namespace) -> int:
    try:
        back_up(options.data_dir, options.file)
    except InvalidRequestError as error:  # what was asked for is wrong
        return complain(error.detail)
    except ServerError as error:  # it is right, but cannot be done here and now
        return complain(str(error), FAILED)
    return OK
