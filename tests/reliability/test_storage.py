"""A real server that is asked to stop in mid-work, and whose disk is full, read-only or damaged."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pahq.v1 import jobs_pb2, jobs_pb2_grpc

from pahq_client import Client, Task, Unavailable
from pahq_server.store.database import Database
from pahq_server.store.directory import DATABASE

from .conftest import Figures
from .crashing import PATIENCE_S, CrashingServer, wait_for

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def submit(client: Client, seed: int = 3) -> str:
    """Name of a new job of a second or two."""
    return client.submit("demo", Task.ioi(num_prompts=1, seed=seed), 0.02, grouping="none").name


def wait_evaluations(client: Client, name: str, number: int) -> None:
    wait_for(lambda: client.job(name).info.evaluations >= number, "evaluations")


@contextmanager
def full_disk(server: CrashingServer, data: Path) -> Iterator[None]:
    """No file of the server can grow, until the body ends. Its log is shorter than the database."""
    wait_for(lambda: (data / f"{DATABASE}-wal").stat().st_size > 50_000, "the database to grow")
    process, size = server.process.pid, (data / f"{DATABASE}-wal").stat().st_size
    _, hard = resource.prlimit(process, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(process, resource.RLIMIT_FSIZE, (hard, hard))


def test_stopped_and_out_of_space(tmp_path: Path, figures: Figures) -> None:
    data = tmp_path / "data"
    with CrashingServer(data) as server, Client(server.address) as client:
        name = submit(client)
        wait_evaluations(client, name, 20)
        last = stop_in_mid_work(server, name)
        assert server.process.wait(PATIENCE_S) == 0
        assert "Traceback" not in server.log()
    with CrashingServer(data) as server, Client(server.address) as client:
        job = client.job(name)
        assert job.info.evaluations >= 20
        other = submit(client, seed=4)
        with full_disk(server, data):
            wait_for(lambda: "will be stored later" in server.log(), "the first thing that is not stored")
            refused_for_now(server.address)
            assert [known.name for known in client.jobs()] == [other, name]
            wait_for(lambda: "the end of a job could not be stored" in server.log(), "an end")
            assert client.server_info()  # everything else goes on
        disturbed = [client.job(n).result() for n in (name, other)]
        assert next(iter(job.watch())).sequence > last
        undisturbed = [client.job(submit(client, s)).result() for s in (3, 4)]
        assert "Traceback" not in server.log()
    assert [c.canonical_bytes() for c in disturbed] == [c.canonical_bytes() for c in undisturbed]
    counts = disturbed[0].provenance["run"]["counts"]
    assert counts["replayed"] >= 20
    figures(evaluations=disturbed[0].num_evaluations, replayed_after_sigterm=counts["replayed"])


def refused_for_now(address: str) -> None:
    # It tries again as long as it may.
    with Client(address, timeout=1.0) as client, pytest.raises(Unavailable, match="cannot be used now"):
        submit(client)


def stop_in_mid_work(server: CrashingServer, name: str) -> int:
    """Sends SIGTERM; returns the last sequence that a watcher saw."""
    with grpc.insecure_channel(server.address) as channel:
        states = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(states).status == SERVING
        request = jobs_pb2.WatchJobRequest(name=name)
        events = jobs_pb2_grpc.JobServiceStub(channel).WatchJob(request)
        last = next(events).event.sequence
        server.process.terminate()
        with pytest.raises(grpc.RpcError) as caught:
            last = max(message.event.sequence for message in events)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "the job goes on when it starts again" in caught.value.details()
        assert next(states).status == NOT_SERVING
        return int(last)


# Servers that cannot start


def refusal(data: Path, *prefix: str) -> tuple[int, str]:
    """Exit code and last words."""
    command = [*prefix, sys.executable, "-m", "pahq_server", "serve", "--listen", "127.0.0.1:0"]
    run = subprocess.run(
        [*command, "--data-dir", str(data)], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert run.stdout == ""
    assert "Traceback" not in run.stderr
    return run.returncode, run.stderr.splitlines()[-1]


def test_a_read_only_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    # To root, directories are never read-only: it has to go without that right.
    plain = shutil.which("setpriv")
    prefix = [plain, "--bounding-set=-all", "--inh-caps=-all"] if plain else []
    code, message = refusal(tmp_path, *prefix)
    assert (code, message) == (
        1,
        f"pahq-server: the data directory {str(tmp_path)!r} cannot be used: Permission denied",
    )


def test_a_damaged_page(tmp_path: Path) -> None:
    path = tmp_path / DATABASE
    Database(path).close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    before = path.read_bytes()
    code, message = refusal(tmp_path)
    assert code == 1
    assert f"pahq-server: {str(path)!r}: the database is damaged" in message
    assert message.endswith("restore a backup, or move the file away to begin with an empty one")
    assert path.read_bytes() == before
