"""Writes the log: lines of text, or a JSON object per line. Nothing that clients sent gets into it.

Exceptions are written with their frames. Their message is written only if their type is trusted not to quote
a request; otherwise just the type is written.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import sys
import threading
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import IO

from pahq_server.core import errors
from pahq_server.core.context import current

logger = logging.getLogger(__name__)

# Attributes of records that say what a line is about, in the order in which they are written.
ATTRIBUTES = ("request_id", "method", "user", "job")

_QUOTING = (errors.InvalidRequestError, errors.NotFoundError, errors.AlreadyExistsError, errors.ConflictError)
_TRUSTED = (errors.ServerError, OSError, MemoryError, RuntimeError, sqlite3.Error, ImportError)


def configure(level: str, format: str, stream: IO[str] | None = None) -> None:
    """Sends everything that is logged in this process to one stream, in one format.

    That includes warnings, and exceptions that nobody caught. Has no effect where logging is set up already.

    Args:
        level: name of the lowest level that is written.
        format: format of the lines, ``text`` or ``json``.
        stream: where the lines are written; None for stderr.
    """
    if logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(ContextFilter())
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, trace: _uncaught("the process ends", error)
    threading.excepthook = lambda args: _uncaught("a thread has ended", args.exc_value)


def writes_json() -> bool:
    """Whether every line of this process's log is a JSON object."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


def _uncaught(text: str, error: BaseException | None) -> None:
    if not isinstance(error, KeyboardInterrupt | SystemExit):
        logger.critical(text, exc_info=error)


class ContextFilter(logging.Filter):
    """Adds what `core.context` says to every record, as attributes `ATTRIBUTES`. Drops no record."""

    def filter(self, record: logging.LogRecord) -> bool:
        about = current()
        for name in ATTRIBUTES:
            value = getattr(about, name)
            if value and not hasattr(record, name):
                setattr(record, name, value)
        return True


class TextFormatter(logging.Formatter):
    """Writes ``time level logger: message [job=… user=…]``, then the exception."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        # With a line break, part of a message would look like a line of its own.
        line = super().formatMessage(record).replace("\r", "\\r").replace("\n", "\\n")
        about = " ".join(f"{name}={value}" for name, value in _attributes(record))
        return f"{line} [{about}]" if about else line

    def formatException(self, ei: object) -> str:
        assert isinstance(ei, tuple)
        return describe(ei[1]) if isinstance(ei[1], BaseException) else ""


class JsonFormatter(logging.Formatter):
    """Writes an object: time (RFC 3339, UTC), level, logger, message, `ATTRIBUTES` that apply, exception."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **dict(_attributes(record)),
        }
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line["exception"] = describe(error)
        return json.dumps(line, ensure_ascii=False)


def describe(error: BaseException) -> str:
    """Writes an exception and its causes, the first cause first: frames, types, and messages if trusted."""
    return "\n".join(
        "".join(traceback.format_tb(link.__traceback__)) + _headline(link)
        for link in reversed(list(_chain(error)))
    )


def _headline(error: BaseException) -> str:
    name = type(error).__qualname__
    trusted = isinstance(error, _TRUSTED) and not isinstance(error, _QUOTING)
    return f"{name}: {error}" if trusted else f"{name} (its text may quote a request and is left out)"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _attributes(record: logging.LogRecord) -> Iterator[tuple[str, str]]:
    for name in ATTRIBUTES:
        value = getattr(record, name, "")
        if value:
            yield name, str(value)
