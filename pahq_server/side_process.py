"""A process that the server starts beside itself: its log, and its end with all that it has started."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO

import psutil

# Lines of the log that are kept to explain the end.
KEPT_LINES = 30
# Seconds in which a process that is about to end does so by itself.
CLOSE_S = 5.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LEVEL = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b")


class SideProcess:
    """Runs a function of this package in a Python process of its own.

    The process gets a session of its own: it can be ended with all that it starts, and Ctrl-C does not reach
    it.

    Args:
        name: for the log.
        main: the function, as ``module:function``. It finds in ``sys.argv`` the number of its end of a pipe,
            this process's id, and ``arguments``.
        arguments: further ones.
        environment: of the process; this package is found in any.
        logger: what the process writes is logged here. What it warns of is logged as a warning once it has
            started, all else for debugging.

    Attributes:
        connection: to the process.
        started: whether it has started, see ``logger``. To be set by whoever knows.
    """

    def __init__(
        self,
        name: str,
        main: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        logger: logging.Logger,
    ) -> None:
        self._name, self._logger, self.started = name, logger, False
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        module, _, function = main.partition(":")
        path = [str(Path(__file__).parents[1]), environment.get("PYTHONPATH")]
        self.connection: Connection
        self.connection, theirs = Pipe()
        # Only its own arguments and environment decide what is imported, not the current directory.
        python = [sys.executable, "-P", "-c", f"from {module} import {function} as main; main()"]
        with theirs:
            self._process = subprocess.Popen(
                [*python, str(theirs.fileno()), str(os.getpid()), *arguments],
                env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, path))},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read_log, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    @property
    def id(self) -> int:
        return self._process.pid

    def wait(self) -> None:
        """Gives the process some seconds to end by itself."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_S)

    def kill(self) -> None:
        """Ends the process at once, with all that it has started; returns when they have ended."""
        end_session(self.id)

    def end(self) -> tuple[str, list[str]]:
        """Ends the process as `kill` does; returns how it has ended, and the last lines that it wrote."""
        self.kill()
        code = self._process.wait()
        self._reader.join(CLOSE_S)
        return signal.Signals(-code).name if code < 0 else f"exit code {code}", list(self._lines)

    def _read_log(self, stream: IO[bytes]) -> None:
        with stream:
            for raw in stream:
                line = _COLOUR.sub("", raw.decode("utf-8", "replace")).rstrip()
                self._lines.append(line)
                found = _LEVEL.search(line)
                level = getattr(logging, found[1]) if found and self.started else logging.DEBUG
                self._logger.log(level, "%s: %s", self._name, line)


def end_session(leader: int) -> None:
    """Kills all processes of a session, except this one. Returns when they have ended.

    Processes may put others into groups of their own, as Ray does, but do not put them into sessions.

    Args:
        leader: id of the process that the session was made for; it may have ended.
    """
    while alive := _in_session(leader):
        for process in alive:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)


def _in_session(leader: int) -> list[int]:
    found = []
    for process in psutil.pids():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            other = process != os.getpid() and os.getsid(process) == leader
            if other and psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
