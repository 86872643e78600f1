"""The process dies at every step of every transaction: nothing that was acknowledged is lost.

A process of its own with real SQLite, but a made-up engine, so that there is time for all of them.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from pahq_server.store.database import FAILPOINTS

from .crashing import PATIENCE_S, repeated

SCRIPT = Path(__file__).with_name("light_server.py")
KEPT = 4  # jobs
# How often a place is passed before the process dies there: the first time may be too early to lose anything.
TIMES = {"create": 2, "advance": 9, "finish": 2}


class Dead(Exception):
    """The process did not answer."""


class LightServer:
    """Asks the process for one thing after another."""

    def __init__(self, folder: Path, die_at: str = "", keep: int = KEPT) -> None:
        settings = {
            "data": f"{folder / 'data'}",
            "passes": f"{folder / 'passes'}",
            "die_at": die_at,
            "keep": keep,
        }
        self._command = [sys.executable, str(SCRIPT), json.dumps(settings)]

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def ask(self, *command: Any) -> Any:
        """Raises Dead."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Dead from None
        answer = self.process.stdout.readline()
        if not answer.endswith("\n"):
            raise Dead
        return json.loads(answer)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.process.communicate(timeout=PATIENCE_S)
        finally:
            self.process.kill()
            self.process.wait()


# Request id, threshold, second token of the prompt.
JOBS = [("a", 2.0, 2), ("b", 1.0, 3), ("c", 3.0, 4), ("d", 0.5, 6), ("e", 1.5, 7), ("f", 2.5, 8)]


class Story:
    """What a client asks for, and what it knows when the server dies."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}  # by request id
        self.results: dict[str, list[Any]] = {}
        self.sequences: dict[str, int] = {}
        self.asked: set[str] = set()  # to be gone
        self.cancelled = ""

    def tell(self, server: LightServer) -> None:
        for job in JOBS[:4]:
            self.names[job[0]] = server.ask("create", *job)
        for name in self.names.values():
            self.results[name] = server.ask("result", name)
        pruned = self.names["a"]
        self.asked.add(pruned)
        self._cancel(server)
        server.ask("wait_forgotten", pruned)
        deleted = self.names["b"]
        self.asked.add(deleted)
        server.ask("delete", deleted)
        self.names["f"] = server.ask("create", *JOBS[5])
        self.results[self.names["f"]] = server.ask("result", self.names["f"])

    def _cancel(self, server: LightServer) -> None:
        server.ask("hold")
        self.names["e"] = server.ask("create", *JOBS[4])
        server.ask("cancel", self.names["e"])
        self.cancelled = self.names["e"]
        server.ask("release")
        server.ask("result", self.names["e"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results by request id; the story ends well if nobody dies."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with LightServer(folder) as server:
        Story().tell(server)
    assert server.process.returncode == 0
    (folder / "again").mkdir()
    with LightServer(folder / "again") as server:
        return {job[0]: server.ask("result", server.ask("create", *job))[2] for job in JOBS}


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_dying_at_every_step(failpoint: str, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    story = Story()
    place = f"{failpoint}:{TIMES.get(failpoint.split('.')[0], 1)}"
    with LightServer(tmp_path, place) as server, pytest.raises(Dead):
        story.tell(server)
    assert server.process.returncode == -signal.SIGKILL
    with LightServer(tmp_path, keep=100) as server:
        kept = server.ask("list")
        for key, name in story.names.items():
            if name in kept:
                assert server.ask("create", *next(job for job in JOBS if job[0] == key)) == name
            else:
                assert name in story.asked, "an acknowledged job is lost"
        ends = {name: server.ask("result", name) for name in kept}
        for name, (_, sequence, _) in story.results.items():
            assert name not in ends or ends[name] == story.results[name], (
                "a result that was seen is another one"
            )
            assert sequence > 0
        for name, (state, _, result) in ends.items():
            if name == story.cancelled:
                assert state == "CANCELLED"
            elif state != "CANCELLED":
                assert state == "SUCCEEDED"
                assert result in undisturbed.values()
        for key, name in story.names.items():
            assert ends.get(name, [0, 0, None])[2] in (None, undisturbed[key])
    assert server.process.returncode == 0
    assert max(repeated(tmp_path / "passes").batches) <= 1
