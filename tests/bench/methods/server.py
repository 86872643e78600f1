"""A server of one thread whose CPU time and memory are measured from outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from e2e.process import ServerProcess

from pahq_client import Client

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What a server spent on something.

    Args:
        cpu_seconds: of all its threads.
        peak_mib: its largest resident memory meanwhile, above what it had resident before.
    """

    cpu_seconds: float
    peak_mib: float


class MeasuredServer(ServerProcess):
    """Runs a server, with a client for it, while the context lasts. It computes equal jobs again.

    Args:
        models: what to serve besides the demo model.
    """

    def __init__(self, models: Mapping[str, Path]) -> None:
        super().__init__(models, "--threads", "1")

    def __enter__(self) -> Self:
        super().__enter__()
        self.client = Client(self.address)
        # What is loaded and prepared at the first job of a process is no cost of a method.
        self.client.check_task("demo", "ioi")
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.close()
        super().__exit__(*exc)  # type: ignore[arg-type]

    def measured(self, work: Callable[[], T]) -> tuple[T, Cost]:
        """Does a piece of work that asks this server for something; returns its result and the cost."""
        process = Path("/proc") / str(self.process.pid)
        (process / "clear_refs").write_text("5", "ascii")  # the peak begins anew (man 5 proc)
        resident, cpu = self._kib("VmRSS"), self._cpu_seconds()
        result = work()
        return result, Cost(self._cpu_seconds() - cpu, (self._kib("VmHWM") - resident) / 1024)

    def _cpu_seconds(self) -> float:
        # The clock of another process by its number, as clock_getcpuclockid(3) makes it: to the nanosecond.
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def _kib(self, field: str) -> int:
        status = (Path("/proc") / str(self.process.pid) / "status").read_text("ascii")
        return int(status.partition(f"{field}:")[2].split()[0])
