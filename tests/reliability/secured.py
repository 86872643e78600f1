"""A real server process with certificates and tokens of the test's own, shared by tests of this folder."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import pytest
from e2e.process import ServerProcess
from helpers.certificates import Authority
from helpers.demo import NODES, NUM_EDGES
from pahq.v1 import (
    circuit_pb2,
    generation_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    model_pb2_grpc,
    patching_pb2,
    patching_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    task_pb2,
)

from pahq_server.access.tokens import TokenTable, new_token
from pahq_server.cli import main
from pahq_server.store.database import Database
from pahq_server.store.directory import DATABASE

PATIENCE_S = 120.0
# High enough for what the tests do; limits have tests of their own.
LIMITS = ("--rate", "1e6", "--burst", "1000000", "--max-user-streams", "1000", "--max-user-calls", "400")


class Stubs:
    """Stubs of all services for one caller.

    Args:
        channel: to the server.
        token: of the caller; None for nobody.
    """

    def __init__(self, channel: grpc.Channel, token: str | None) -> None:
        self.channel = channel
        self.metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        self.job_stub = jobs_pb2_grpc.JobServiceStub(channel)
        self.generation = generation_pb2_grpc.GenerationServiceStub(channel)
        self.models = model_pb2_grpc.ModelServiceStub(channel)
        self.patching = patching_pb2_grpc.PatchingServiceStub(channel)
        self.server = server_pb2_grpc.ServerServiceStub(channel)

    def ask(self, method: Any, request: Any, timeout: float = PATIENCE_S) -> Any:
        return method(request, metadata=self.metadata, timeout=timeout)

    def create(self, **fields: Any) -> str:
        """Name of a new job."""
        request = jobs_pb2.CreateJobRequest(spec=spec(**fields))
        return str(self.ask(self.job_stub.CreateJob, request).job.name)

    def create_long(self) -> str:
        """Name of a new job that takes many seconds."""
        task = task_pb2.Task(builtin=task_pb2.BuiltinTask(name="ioi", num_prompts=128, seed=0))
        return self.create(method="single_edge", objective=objective(task=task))

    def get(self, name: str) -> jobs_pb2.Job:
        request = jobs_pb2.GetJobRequest(name=name)
        found: jobs_pb2.Job = self.ask(self.job_stub.GetJob, request).job
        return found

    def jobs(self) -> list[jobs_pb2.Job]:
        request = jobs_pb2.ListJobsRequest(page_size=1000)
        return list(self.ask(self.job_stub.ListJobs, request).jobs)

    def cancel_all(self) -> None:
        """Cancels every job that has not ended, and waits for the end of each."""
        for job in self.jobs():
            if job.HasField("end_time"):
                continue
            name = job.name
            self.ask(self.job_stub.CancelJob, jobs_pb2.CancelJobRequest(name=name))
            list(self.ask(self.job_stub.WatchJob, jobs_pb2.WatchJobRequest(name=name)))

    def info(self) -> server_pb2.ServerInfo:
        found: server_pb2.ServerInfo = self.ask(
            self.server.GetServerInfo, server_pb2.GetServerInfoRequest()
        ).server_info
        return found


class SecuredServer:
    """Users ada and bob, the admin root, and tokens that are worth nothing any more.

    Args:
        folder: for certificates and data.
    """

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.authority = Authority(folder)
        own = self.authority.sign("server")
        self.tokens = {user: self.create_token(user) for user in ("ada", "bob", "lost")}
        self.tokens["root"] = self.create_token("root", "--scope", "admin")
        self.revoke("lost")
        self.tokens["late"] = self._expired_token()
        files = ("--tls-cert", str(own.cert), "--tls-key", str(own.key), "--data-dir", str(self.data))
        self.process = ServerProcess(
            None, *files, "--auth", "tokens", "--reflection", "--threads", "1", *LIMITS
        )

    def create_token(self, user: str, *options: str) -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert main(["token", "create", user, "--data-dir", str(self.data), *options]) == 0
        return out.getvalue().strip()

    def revoke(self, user: str) -> None:
        id = self.tokens[user].split("_")[1]
        assert main(["token", "revoke", id, "--data-dir", str(self.data)]) == 0

    def _expired_token(self) -> str:
        database = Database(self.data / DATABASE)
        text, token = new_token("late", "user", 0.0, expires=1.0)
        TokenTable(database).add(token)
        database.close()
        return text

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.authority.cert.read_bytes())

    def channel(self, **options: Any) -> grpc.Channel:
        own = [("grpc.use_local_subchannel_pool", 1), *(options.items())]
        return grpc.secure_channel(self.process.address, self.credentials(), own)

    @contextlib.contextmanager
    def as_user(self, user: str) -> Iterator[Stubs]:
        with self.channel() as channel:
            yield Stubs(channel, self.tokens[user])

    # Memory, in MiB

    def memory(self) -> float:
        return self._status("VmRSS")

    @contextlib.contextmanager
    def peak(self) -> Iterator[list[float]]:
        """Gives, at its end, how much more memory than before the server needed meanwhile."""
        Path(f"/proc/{self.process.process.pid}/clear_refs").write_text("5")  # begins to look for the peak
        before, found = self.memory(), []
        yield found
        found.append(self._status("VmHWM") - before)

    def _status(self, field: str) -> float:
        status = Path(f"/proc/{self.process.process.pid}/status").read_text("utf-8")
        (line,) = [line for line in status.splitlines() if line.startswith(f"{field}:")]
        return int(line.split()[1]) / 1024

    def assert_alive(self) -> None:
        """The process has not ended, and computes."""
        assert self.process.process.poll() is None, self.process.log()
        with self.as_user("root") as root:
            assert root.ask(root.patching.EvaluateCircuits, evaluation()).num_edges_total == NUM_EDGES


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredServer]:
    server = SecuredServer(tmp_path_factory.mktemp("secured"))
    with server.process:
        yield server
        log = server.process.log()
    for token in server.tokens.values():
        assert token[-43:] not in log


def objective(**changes: Any) -> jobs_pb2.Objective:
    builtin = task_pb2.BuiltinTask(name="ioi", num_prompts=2, seed=0)
    fields = {
        "model": "demo",
        "task": task_pb2.Task(builtin=builtin),
        "metric": "kl_divergence",
        "ablation": "resample",
        "kv_receivers": "group",
        "precision": "fp32",
    }
    return jobs_pb2.Objective(**(fields | changes))


def evaluation(**changes: Any) -> patching_pb2.EvaluateCircuitsRequest:
    """Of the empty circuit; changes are of the objective."""
    empty = patching_pb2.EvaluatedCircuit(names=patching_pb2.EdgeList())
    return patching_pb2.EvaluateCircuitsRequest(objective=objective(**changes), circuits=[empty])


def node_evaluation(**changes: Any) -> patching_pb2.EvaluateNodesRequest:
    """Of the circuit with all nodes; changes are of the objective."""
    bits = ((1 << NODES.size) - 1).to_bytes(-(-NODES.size // 8), "little")
    every = circuit_pb2.NodeSet(layout=circuit_pb2.NodeLayout(**asdict(NODES)), bits=bits)
    return patching_pb2.EvaluateNodesRequest(objective=objective(**changes), circuits=[every])


def spec(method: str = "acdc", threshold: float = 0.1, **changes: Any) -> jobs_pb2.JobSpec:
    """A job of the demo model."""
    fields = {"objective": objective(), method: {"threshold": threshold}}
    return jobs_pb2.JobSpec(**(fields | changes))


def wait_until(condition: Any, what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.01)
