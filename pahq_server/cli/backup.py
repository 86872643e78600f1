"""``pahq-server backup``: copies jobs and tokens, also while a server runs."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field

from pahq_server.cli.output import FAILED, OK, complain
from pahq_server.config.options import option
from pahq_server.config.server import DataDirOptions
from pahq_server.config.values import File
from pahq_server.core.errors import InvalidRequestError, ServerError
from pahq_server.store.backup import back_up


@dataclass(frozen=True)
class BackupOptions:
    """What to copy, and where to."""

    file: File = option(MISSING, "the copy; replaced if it is there; no file of DIR", positional=True)
    storage: DataDirOptions = field(default_factory=DataDirOptions)


def run(options: BackupOptions) -> int:
    """Copies the data directory's database; returns the exit code."""
    try:
        back_up(options.storage.data_dir, options.file)
    except InvalidRequestError as error:  # the path is wrong
        return complain(error.detail)
    except ServerError as error:  # the path is right, but the copy cannot be made now
        return complain(str(error), FAILED)
    return OK
