"""The command ``pahq``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pahq_client import errors
from pahq_client.cli.output import one_line, warnings_on_stderr
from pahq_client.cli.parser import make_parser

# The first that fits decides.
EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (errors.InvalidRequest, 2),
    (errors.NotFound, 2),
    (errors.Conflict, 2),
    (errors.Unavailable, 3),
    (errors.VersionMismatch, 3),
    (errors.ResourceExhausted, 3),
    (errors.Unauthenticated, 4),
    (errors.PermissionDenied, 4),
    (errors.PahqError, 1),
    (errors.PahqWarning, 1),  # only where $PYTHONWARNINGS makes it an error
    (TimeoutError, 1),  # before OSError, which it is a kind of
    (OSError, 2),
)
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0 done, 1 job failed, 2 invalid request, 3 unreachable or wrong version, 4 access, 130 interrupted.

    Raises:
        SystemExit: usage errors (2), --help and --version (0).
    """
    arguments = make_parser().parse_args(argv)
    try:
        with warnings_on_stderr():
            arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return _report("interrupted", INTERRUPTED)
    except (errors.PahqError, errors.PahqWarning, OSError) as error:
        return _report(error, next(code for kind, code in EXIT_CODES if isinstance(error, kind)))
    return 0


def _report(error: object, code: int) -> int:
    notes = (note for note in getattr(error, "__notes__", ()) if "\n" not in note)  # no logs
    text = "; ".join([str(error), *notes])
    print(f"pahq: error: {one_line(text)}", file=sys.stderr)  # parts come from the server or from files
    return code
