"""A real server in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

READY = "pahq-server listening on "


class ServerProcess:
    """Runs ``pahq-server serve`` on a free port of this machine while the context lasts.

    Args:
        models: what to serve besides the demo model.
        options: further options of the command; without a data directory among them it gets one of its own.
    """

    def __init__(self, models: Mapping[str, Path] | None = None, *options: str) -> None:
        self._data: tempfile.TemporaryDirectory[str] | None = None
        if not {"--data-dir", "--ephemeral"} & set(options):
            self._data = tempfile.TemporaryDirectory(prefix="pahq-test-")
            # Equal discoveries are to be computed again: that is what most tests are about.
            options = (*options, "--data-dir", self._data.name, "--no-result-cache")
        served = [part for name, path in (models or {}).items() for part in ("--model", f"{name}={path}")]
        self._command = [sys.executable, "-m", "pahq_server", "serve", "--listen", "127.0.0.1:0"]
        self._command += [*served, *options]

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=self._log, text=True)
        try:
            self.address = self._read_address()
        except BaseException:
            self._end()
            raise
        return self

    def _read_address(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()  # empty if the server died
        assert line.startswith(READY), f"{line!r} is no address; the server's log:\n{self.log()}"
        return line.removeprefix(READY).strip()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.process.poll() is None:
                self.stop()
        finally:
            self._end()

    def _end(self) -> None:
        self.process.kill()  # no effect on one that has ended
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()
        if self._data is not None:
            self._data.cleanup()

    def stop(self) -> int:
        """Sends SIGTERM, waits for the end and returns the exit code."""
        self.process.terminate()
        return self.process.wait(60)

    def log(self) -> str:
        """What the server wrote to stderr so far."""
        # The server writes to the same open file: a seek here would move where its next line goes.
        file = self._log.fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode()
