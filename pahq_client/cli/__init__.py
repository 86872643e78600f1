"""The command ``pahq``."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from pahq_client import errors
from pahq_client.cli.output import warnings_on_stderr
from pahq_client.cli.parser import make_parser
from pahq_client.formatting import one_line

# The first class that an error is an instance of decides.
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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that does not know a character gets its number, instead of an error after the work.
            stream.reconfigure(errors="backslashreplace")
    arguments = make_parser().parse_args(argv)
    try:
        with warnings_on_stderr():
            arguments.run(arguments)
        if sys.stdout is not None:  # None: it was closed before this began
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        _drop_output()
    except KeyboardInterrupt:
        return _report("interrupted", INTERRUPTED)
    except MemoryError:
        return _report("there is not enough memory on this machine", 1)
    except (errors.PahqError, OSError) as error:
        code = _report(error, next(code for kind, code in EXIT_CODES if isinstance(error, kind)))
        try:
            sys.stdout.flush()
        except (OSError, AttributeError):  # a full disk: what is left would be tried again at the end
            _drop_output()
        return code
    return 0


def _drop_output() -> None:
    """Lets nothing more be written to stdout, which takes nothing more."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: object, code: int) -> int:
    notes = (note for note in getattr(error, "__notes__", ()) if "\n" not in note)  # no logs
    text = "; ".join([str(error), *notes])
    print(f"pahq: error: {one_line(text)}", file=sys.stderr)  # parts come from the server or from files
    return code
