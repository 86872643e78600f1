"""The embedded server: a child process on loopback, for the time of one call."""

from __future__ import annotations

import importlib.util
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pahq_client import checks
from pahq_client.errors import InvalidRequest, NoEmbeddedServer, NotFound
from pahq_client.retries import Deadline

DEMO = "demo"
# Short names of models that people use, and their owners on the hub.
_HUB_OWNERS = (
    (r"gpt2(-medium|-large|-xl)?", "openai-community"),
    (r"distilgpt2", "distilbert"),
    (r"gpt-neo-.*|gpt-neox-.*|pythia-.*", "EleutherAI"),
    (r"opt-.*", "facebook"),
    (r"(meta-)?llama-.*", "meta-llama"),
    (r"mi[sx]tral-.*", "mistralai"),
    (r"qwen.*", "Qwen"),
)
_READY = re.compile(r"pahq-server listening on (\S+:\d+)")
_STOP_SECONDS = 10.0
_TAIL_BYTES = 4000


def served_model(model: str | os.PathLike[str]) -> tuple[str, dict[str, str]]:
    """Returns the name under which an embedded server serves a model, and the models that it must load.

    A directory or a hub id (``owner/name``) is loaded under the last part of its name; anything else is the
    name of a model that every server has, such as ``demo``.

    Raises:
        InvalidRequest: the model is a path at which there is no directory, or neither a path nor text.
    """
    source = checks.text("model", os.fspath(model) if isinstance(model, os.PathLike) else model)
    if source == DEMO:
        return source, {}
    if "\0" in source:
        raise InvalidRequest("model", f"cannot contain a NUL character, got {source!r}")
    try:
        path = Path(source).expanduser()
    except RuntimeError:  # ~ of a user who is not known here
        raise InvalidRequest("model", f"there is no directory {source!r}") from None
    if source and path.is_dir():
        resolved = path.resolve()
        return _name(resolved.name), {_name(resolved.name): str(resolved)}
    if path.is_absolute() or source.startswith(("~", ".")) or isinstance(model, os.PathLike):
        raise InvalidRequest("model", f"there is no directory {source!r}")
    return (_name(path.name), {_name(path.name): source}) if "/" in source else (source, {})


def check_served(name: str) -> None:
    """Refuses a model that an embedded server would not have, before one is started.

    Args:
        name: name of a model for which nothing is to be loaded.

    Raises:
        NotFound: it is not the demo model; the error says what may have been meant.
    """
    if name == DEMO:
        return
    owners = [owner for pattern, owner in _HUB_OWNERS if re.fullmatch(pattern, name, re.IGNORECASE)]
    if owners:
        hint = f"did you mean the hub's '{owners[0]}/{name}'?"
    else:
        hint = "give a directory or a hub id such as 'openai-community/gpt2'."
    raise NotFound(
        name,
        f"model {name!r} not found: a server started for this call has {DEMO!r} only; {hint} To use a "
        "server that has it, pass server= or set $PAHQ_SERVER",
    )


def _name(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]", "-", text) or "model"
    return f"{name}-local" if name == DEMO else name


class EmbeddedServer:
    """Starts the server on entry and stops it on exit, whatever happens in between.

    Args:
        models: what to load besides the demo model: names to directories or hub ids.
        deadline: until when the server must be ready.

    Raises (on entry):
        NoEmbeddedServer: the server is not installed here, or died at once.
        TimeoutError: it was not ready in time.
    """

    def __init__(self, models: Mapping[str, str], deadline: Deadline | None = None) -> None:
        self._models = models
        self._deadline = deadline or Deadline(None)
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._log: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self.address = ""

    def __enter__(self) -> Self:
        _check_installed()
        try:
            self._start()
            self.address = self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _start(self) -> None:
        models = [part for name, path in self._models.items() for part in ("--model", f"{name}={path}")]
        command = [sys.executable, "-m", "pahq_server", "serve", "--listen", "127.0.0.1:0"]
        command += ["--parent-watch", "--ephemeral"]  # no other process will know its jobs
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by _stop)
        self._process = subprocess.Popen(
            [*command, *models],
            stdin=subprocess.PIPE,  # closed by the system when this process dies: then the server ends
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is for this process, which cancels before it stops the server
        )
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, stdout: IO[bytes]) -> None:
        """Reads to the end, so that the server never blocks on a full pipe."""
        with stdout:
            for line in stdout:
                self._lines.put(line.decode(errors="replace"))
        self._lines.put(None)

    def _wait_until_ready(self) -> str:
        while True:
            try:
                line = self._lines.get(timeout=self._deadline.within(threading.TIMEOUT_MAX))
            except queue.Empty:
                raise TimeoutError("the embedded server was not ready in time") from None
            if line is None:
                raise self._start_error()
            match = _READY.search(line)
            if match is not None:
                return match[1]

    def _start_error(self) -> NoEmbeddedServer:
        """Returns the error with the last line of the log, usually the reason, and the rest as a note."""
        log = self._tail()
        reason = log.splitlines()[-1] if log else "it said nothing"
        error = NoEmbeddedServer("embedded", f"the embedded server did not start: {reason}")
        error.add_note(f"Its log:\n{log}")
        return error

    def _tail(self) -> str:
        assert self._log is not None
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _TAIL_BYTES))
        return self._log.read().decode(errors="replace").strip()

    def _stop(self) -> None:
        if self._process is not None:
            _end(self._process)
        if self._reader is not None:
            self._reader.join(_STOP_SECONDS)
        if self._log is not None:
            self._log.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks the server to stop by closing its input, and kills it if it does not."""
    assert process.stdin is not None
    try:
        with suppress(OSError):
            process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    finally:  # also when Ctrl-C comes again
        process.kill()
        process.wait()


def _check_installed() -> None:
    missing = [name for name in ("pahq_server", "torch") if importlib.util.find_spec(name) is None]
    if missing:
        raise NoEmbeddedServer(
            "embedded",
            f"no server was named and none can be started here ({' and '.join(missing)} not installed): pass "
            "server=, set PAHQ_SERVER, or pip install '.[server]' in a checkout of PAHQ",
        )
