"""The operating system refuses memory for a moment: no job fails for it, and no broken server goes on."""

from __future__ import annotations

import resource
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from e2e.process import ServerProcess

from pahq_client import Client, PahqError, Task

PATIENCE_S = 120.0
SHORTAGE_S = 2.0


def address_space(pid: int) -> int:
    """Bytes that a process has mapped."""
    lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    (size,) = (line for line in lines if line.startswith("VmSize"))
    return int(size.split()[1]) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are Linux's")
def test_jobs_outlive_a_moment_without_memory(tmp_path: Path) -> None:
    specs = [(Task.ioi(num_prompts=2, seed=seed), 0.02) for seed in range(3)]
    options = ("--threads", "1", "--data-dir", str(tmp_path), "--no-result-cache")
    with ServerProcess(None, *options) as server, Client(server.address, timeout=5) as client:
        expected = [client.discover("demo", *spec).canonical_bytes() for spec in specs]
        jobs = [client.submit("demo", *spec).name for spec in specs]
        pid = server.process.pid
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(pid, resource.RLIMIT_AS, (address_space(pid), resource.RLIM_INFINITY))
        time.sleep(SHORTAGE_S)
        with suppress(ProcessLookupError):  # it may have ended already
            resource.prlimit(pid, resource.RLIMIT_AS, unlimited)
        outcome = end_or_health(server, client)
    # Either it has recovered, or it has ended, so that whoever supervises it starts it again: by itself, with
    # exit code 1, or by a signal where a library did not look at what it was refused.
    assert outcome == "works" or outcome == 1 or outcome in (-signal.SIGSEGV, -signal.SIGABRT)
    with ServerProcess(None, *options) as server, Client(server.address) as client:
        found = [client.job(name).result(timeout=PATIENCE_S).canonical_bytes() for name in jobs]
    assert found == expected


def end_or_health(server: ServerProcess, client: Client) -> object:
    """The exit code of a server that ends, or "works" if it finds another circuit."""
    for _ in range(int(PATIENCE_S)):
        code = server.process.poll()
        if code is not None:
            return code
        try:
            client.discover("demo", Task.ioi(num_prompts=1, seed=9), 0.5, timeout=5.0)
            return "works"
        except (PahqError, TimeoutError):
            time.sleep(1.0)
    return "neither works nor ends"
