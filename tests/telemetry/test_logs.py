from __future__ import annotations

import io
import json
import logging
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from pahq_server.core.context import current, log_context
from pahq_server.core.errors import InvalidRequestError, NotFoundError, ResourceExhaustedError
from pahq_server.telemetry.logs import ContextFilter, JsonFormatter, TextFormatter

SECRET = "Mary gave the ball to"


def written(formatter: logging.Formatter, write: Callable[[logging.Logger], None]) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(ContextFilter())
    handler.setFormatter(formatter)
    logger = logging.Logger("test")
    logger.addHandler(handler)
    write(logger)
    return stream.getvalue()


def as_json(write: Callable[[logging.Logger], None]) -> dict[str, Any]:
    (line,) = written(JsonFormatter(), write).splitlines()
    fields: dict[str, Any] = json.loads(line)
    return fields


def failing(error: Exception, cause: Exception | None = None) -> Callable[[logging.Logger], None]:
    def write(logger: logging.Logger) -> None:
        try:
            raise error from cause
        except Exception:
            logger.exception("it failed")

    return write


def test_a_line_is_one_object() -> None:
    fields = as_json(lambda logger: logger.info("two\nlines of %s", "text"))
    assert fields.keys() == {"time", "level", "logger", "message"}
    assert fields["time"].endswith("Z")
    assert datetime.fromisoformat(fields["time"]).tzinfo is not None
    assert (fields["level"], fields["logger"]) == ("info", "test")
    assert fields["message"] == "two\nlines of text"


def test_lines_say_what_they_are_about() -> None:
    def write(logger: logging.Logger) -> None:
        with (
            log_context(request_id="r1", method="S/M", user="ada"),
            log_context(job="users/ada/jobs/1"),
        ):
            logger.info("working")

    fields = as_json(write)
    assert fields["request_id"] == "r1"
    assert fields["method"] == "S/M"
    assert fields["user"] == "ada"
    assert fields["job"] == "users/ada/jobs/1"
    assert (
        written(TextFormatter(), write)
        .strip()
        .endswith("working [request_id=r1 method=S/M user=ada job=users/ada/jobs/1]")
    )
    assert current().job == ""


def test_what_a_call_names_wins_over_the_context() -> None:
    def write(logger: logging.Logger) -> None:
        with log_context(job="outer"):
            logger.info("working", extra={"job": "inner"})

    assert as_json(write)["job"] == "inner"


def test_a_text_line_cannot_pretend_to_be_two() -> None:
    text = written(TextFormatter(), lambda logger: logger.warning("a\n2026-01-01 ERROR fake\r"))
    assert text.count("\n") == 1
    assert "\r" not in text


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
@pytest.mark.parametrize(
    "error",
    [ValueError(SECRET), KeyError(SECRET), InvalidRequestError("task", SECRET), NotFoundError(SECRET)],
)
def test_exceptions_that_may_quote_a_request_are_named_only(
    formatter: logging.Formatter, error: Exception
) -> None:
    for link in (failing(error), failing(RuntimeError("outer"), error)):
        text = written(formatter, link)
        assert type(error).__qualname__ in text
        assert __file__.rpartition("/")[2] in text
        assert "Mary" not in text


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left"), sqlite3.DatabaseError("malformed"), ResourceExhaustedError("full", 1)],
)
def test_what_operators_need_is_written(error: Exception) -> None:
    fields = as_json(failing(error))
    assert fields["message"] == "it failed"
    assert str(error) in fields["exception"]
    assert "in write" in fields["exception"]


def test_exceptions_in_a_circle_end() -> None:
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    text = as_json(lambda logger: logger.error("x", exc_info=one))["exception"]
    assert text.count("RuntimeError: one") == 1


def test_what_nobody_caught_is_in_the_log_too() -> None:
    code = f"""if True:
        import threading, warnings
        from pahq_server.telemetry.logs import configure
        configure("info", "json")
        def fail():
            raise ValueError({SECRET!r})
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        warnings.warn("beware")
        fail()
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["message"] for line in lines][::2] == ["a thread has ended", "the process ends"]
    assert "beware" in lines[1]["message"]
    assert all("in fail" in lines[i]["exception"] for i in (0, 2))
    assert "Mary" not in done.stderr
