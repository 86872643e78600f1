"""Servers that are killed, and what their logs of passes tell."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from e2e.process import ServerProcess

SCRIPT = Path(__file__).with_name("crashing_server.py")
PATIENCE_S = 120.0

# Of one process: batches, each with the passes of every job.
Life = list[dict[str, list[str]]]


class CrashingServer(ServerProcess):
    """A server of a data directory, which dies where it is told.

    Args:
        data: the data directory.
        passes: where it writes down what it was asked to score.
        audit: where it writes down what it does with paths.
        die_at: failpoint and how often it is reached, ``name:n``.
        options: further options of the command.
    """

    def __init__(
        self,
        data: Path,
        passes: Path | None = None,
        die_at: str = "",
        audit: Path | None = None,
        options: Sequence[str] = (),
    ):
        super().__init__(None, "--data-dir", str(data), "--no-result-cache", *options)
        script = [str(SCRIPT)] + ([f"--die-at={die_at}"] if die_at else [])
        script += [f"--passes={passes}"] if passes is not None else []
        script += [f"--audit={audit}"] if audit is not None else []
        python, _, _, *command = self._command
        self._command = [python, *script, *command]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.002)


def lives(passes: Path) -> list[Life]:
    """What each process was asked to score, in order."""
    by_process: dict[int, Life] = {}
    for line in passes.read_text("utf-8").splitlines() if passes.exists() else ():
        process, batch = json.loads(line)
        by_process.setdefault(process, []).append(batch)
    return list(by_process.values())


def num_batches(passes: Path) -> int:
    return passes.read_bytes().count(b"\n") if passes.exists() else 0


@dataclass
class Repeated:
    """What was scored again after crashes, of all jobs together.

    Args:
        batches: of each job and each process that died: how many of its batches had evaluations that a later
            process was asked for again.
        evaluations: that were asked for again.
        base_circuits: circuits that were measured again; that is no evaluation.
        passes: all that were asked for.
    """

    batches: list[int] = field(default_factory=list)
    evaluations: int = 0
    base_circuits: int = 0
    passes: int = 0


def repeated(passes: Path) -> Repeated:
    """Compares each life with those after it."""
    found, all_lives = Repeated(), lives(passes)
    for job in {job for life in all_lives for batch in life for job in batch}:
        later: Counter[str] = Counter()
        for life in reversed(all_lives):
            asked = [batch[job] for batch in life if job in batch]
            again = [[each for each in batch if each in later] for batch in asked]
            evaluations = [[each for each in batch if not each.startswith("base")] for batch in again]
            found.batches.append(sum(map(bool, evaluations)))
            found.evaluations += sum(map(len, evaluations))
            found.base_circuits += sum(map(len, again)) - sum(map(len, evaluations))
            found.passes += sum(map(len, asked))
            later.update(each for batch in asked for each in batch)
    return found
