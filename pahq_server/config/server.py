"""All options of ``pahq-server serve`` and their defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path

from pahq_server.api.connections import ConnectionLimits
from pahq_server.config.access import AccessOptions
from pahq_server.config.options import option
from pahq_server.config.values import (
    RAY_LOCAL,
    Address,
    Count,
    Days,
    Directory,
    ModelSource,
    Name,
    RayAddress,
    Seconds,
    Share,
    Size,
    UserWeight,
)
from pahq_server.core.errors import InvalidRequestError
from pahq_server.demo import model_path
from pahq_server.jobs.quotas import Quotas
from pahq_server.jobs.session_calls import SessionLimits
from pahq_server.store.directory import StorageConfig
from pahq_server.store.records import Retention

DAY_S = 86_400.0
DEFAULT_ADDRESS = "127.0.0.1:7300"
# The built-in model's name.
DEMO = "demo"
# What weights can be kept in, with the precision policy that rounds them so; None for full precision.
WEIGHT_POLICIES = {"fp32": None, "bf16": "bf16", "int8": "pahq-int8", "fp8": "pahq-fp8"}
# Of each worker, unless the operator says otherwise: jobs that have tensors in memory, and patched passes
# that a job asks for at once.
SLOTS, WINDOW = 4, 32
# What generates text, and the memory for keys and values of each model unless the operator says otherwise.
GENERATION_BACKENDS = ("auto", "transformers", "vllm", "none")
GENERATION_BYTES = 256 << 20
# OpenTelemetry's own variables say where spans go. Without one of them there is no tracing.
_OTLP_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def check_names(models: tuple[tuple[str, str], ...]) -> None:
    """Raises ValueError where two models have one name, or one has the built-in model's."""
    *before, (name, source) = models
    if name == DEMO:
        raise ValueError(f"{DEMO!r} is the built-in model's name: choose another one, as in mine={source}")
    if name in dict(before):
        both = f"{dict(before)[name]} and {source}"
        raise ValueError(f"two models are named {name!r}, {both}: choose another name")


@dataclass(frozen=True)
class ModelOptions:
    """Which models there are, and the memory beside them."""

    model: tuple[ModelSource, ...] = option(
        (), "a model to serve, besides the built-in 'demo'; may be repeated", check=check_names
    )
    device: Name = option("cpu", "what models are kept and computed on: cpu, cuda or cuda:1")
    memory: Size | None = option(
        None,
        "what jobs and sessions may take beside the models, of each worker, such as 4GiB or 1500MB; never "
        "changes a result (default: half of what the models leave of the device's memory)",
    )
    weights: str = option(
        "fp32",
        "what weights are kept in: %(choices)s (default: %(default)s); unless fp32, only rounded "
        "weights are in memory, and full precision is read from the checkpoint's files when it is used",
        choices=tuple(WEIGHT_POLICIES),
    )

    @property
    def sources(self) -> dict[str, str]:
        """Directory or hub id of every model, by the name that clients use; the built-in one is first."""
        return {DEMO: str(model_path())} | dict(self.model)

    @property
    def weight_policy(self) -> str | None:
        """Name of the precision policy by which weights are kept rounded; None for full precision."""
        return WEIGHT_POLICIES[self.weights]


@dataclass(frozen=True)
class GenerationOptions:
    """What generates text."""

    generation: str = option(
        "auto",
        "what generates text: %(choices)s (default: %(default)s, which is transformers if it takes at most "
        "half of what the models leave of the memory, else none); vllm is faster and is installed apart from "
        "this server, see docs/sampling.md",
        choices=GENERATION_BACKENDS,
    )
    generation_memory: Size | None = option(
        None,
        "what keys and values of generated text may take, of each model (default: 256MiB)",
    )

    @property
    def backend(self) -> str | None:
        """Name of the backend, or ``auto``; None if no text is generated."""
        return None if self.generation == "none" else self.generation

    @property
    def kv_bytes(self) -> int:
        """Memory for keys and values, of each model."""
        return GENERATION_BYTES if self.generation_memory is None else self.generation_memory


@dataclass(frozen=True)
class ListenOptions:
    """Where the server listens, and how it treats connections."""

    listen: Address = option(DEFAULT_ADDRESS)
    reflection: bool = option(False, "offer gRPC server reflection")
    max_connections: Count | None = option(
        None,
        "connections at once (default: as many as the process may open files, less 256 for other files)",
    )
    idle_timeout: Seconds = option(
        ConnectionLimits.idle_s,
        "close connections without a call after so many seconds; clients connect again by themselves",
    )
    parent_watch: bool = option(False, "stop when standard input ends")

    @property
    def limits(self) -> ConnectionLimits:
        """Bounds of clients' connections."""
        return ConnectionLimits(connections=self.max_connections, idle_s=self.idle_timeout)


@dataclass(frozen=True)
class ComputeOptions:
    """How patched passes are computed."""

    threads: Count | None = option(
        None,
        "threads for tensor arithmetic, of each worker (default: as many as there are cores; several "
        "workers on this machine divide them)",
    )
    executor: str = option(
        "sparse",
        "how patched passes are computed; literal is slow and for comparison",
        choices=("sparse", "literal"),
    )
    window: Count | None = option(
        None,
        "patched passes that a job asks for at once, about; never changes a result "
        f"(default: {WINDOW} for each worker)",
    )


@dataclass(frozen=True)
class WorkerOptions:
    """How many workers there are, each with a device of its own, and where."""

    workers: Count | None = option(
        None,
        "workers that share the operations, each with all models in memory; several are processes that Ray "
        "starts, which is installed with the extra 'ray' (default: 1, in the server's own process)",
    )
    ray_address: RayAddress | None = option(
        None,
        "Ray cluster to join, by the address of its head, or auto for the one that this machine is part of; "
        "needs --workers (default: local, which starts one on this machine for several workers)",
    )
    gpus_per_worker: Share | None = option(
        None,
        "share of a GPU that Ray sets aside for each worker (default: 1 with --device cuda, else 0)",
    )
    worker_deadline: Seconds = option(
        600.0, "replace a worker process that has not answered a call for so many seconds"
    )

    @property
    def count(self) -> int:
        """The number of workers."""
        return self.workers or 1

    @property
    def remote(self) -> bool:
        """Whether workers are processes of their own; if not, the one worker is the server's process."""
        return self.count > 1 or self.ray_address is not None

    @property
    def on_this_machine(self) -> bool:
        """Whether all workers run on this machine."""
        return not self.remote or self.ray_address in (None, RAY_LOCAL)

    def gpus(self, device: str) -> float:
        """Returns the share of a GPU that each worker has.

        Args:
            device: what models are kept and computed on, such as ``cuda``.
        """
        if self.gpus_per_worker is not None:
            return self.gpus_per_worker
        return 0.0 if device == "cpu" else 1.0

    def threads(self, given: int | None, cores: int) -> int | None:
        """Returns the threads of each worker; None for as many as its machine has cores.

        Args:
            given: what the operator chose; None for nothing.
            cores: of this machine.
        """
        if given is None and self.remote and self.on_this_machine:
            return max(1, cores // self.count)
        return given

    def check(self, device: str) -> None:
        """Raises InvalidRequestError where the options contradict each other or the device.

        Args:
            device: what models are kept and computed on, such as ``cuda``.
        """
        if self.ray_address is not None and self.workers is None:
            raise InvalidRequestError("ray_address", "needs --workers, the number of workers in that cluster")
        if not self.remote:
            if self.gpus_per_worker is not None:
                raise InvalidRequestError(
                    "gpus_per_worker",
                    "needs --workers 2 or more, or --ray-address: the one worker of the "
                    "server's own process takes the device that --device names",
                )
            return
        if self.gpus_per_worker is not None and not device.startswith("cuda"):
            raise InvalidRequestError(
                "gpus_per_worker", f"needs --device cuda: workers on {device!r} would leave the GPUs idle"
            )
        if ":" in device:
            raise InvalidRequestError(
                "device",
                f"{device!r} names one device, but Ray gives each worker its own: pass --device cuda",
            )


@dataclass(frozen=True)
class SessionOptions:
    """What patching sessions may take."""

    max_sessions: Count = option(SessionLimits.sessions, "patching sessions at once")
    max_user_sessions: Count = option(8, "of them, of one user")
    session_timeout: Seconds = option(
        SessionLimits.idle_s, "close a patching session after so many seconds without a call"
    )

    @property
    def limits(self) -> SessionLimits:
        """Bounds of patching sessions."""
        return SessionLimits(
            sessions=self.max_sessions, idle_s=self.session_timeout, user_sessions=self.max_user_sessions
        )


@dataclass(frozen=True)
class SharingOptions:
    """How users share the machine."""

    slots: Count | None = option(
        None,
        "jobs of all users together that have tensors in memory at a time "
        f"(default: {SLOTS} for each worker)",
    )
    user_weight: tuple[UserWeight, ...] = option(
        (), "share of the machine's time that a user gets beside others, who have 1; may be repeated"
    )


@dataclass(frozen=True)
class QuotaOptions:
    """What each user may have."""

    max_running_jobs: Count | None = option(
        None, "of each user: jobs that run at a time; further ones wait (default: no limit)"
    )
    max_queued_jobs: Count | None = option(None, "of each user: jobs that wait (default: no limit)")
    max_prompt_tokens: Count | None = option(
        None, "of each user: tokens of the prompts of all unfinished jobs (default: no limit)"
    )
    max_stored_results: Count | None = option(
        None, "of each user: results that are kept, with those still to come (default: no limit)"
    )
    max_file_bytes: Count | None = option(
        None, "of each user: bytes of the files that running jobs have, such as states (default: no limit)"
    )

    @property
    def quotas(self) -> Quotas:
        """The limits of every user."""
        return Quotas(
            running_jobs=self.max_running_jobs,
            queued_jobs=self.max_queued_jobs,
            prompt_tokens=self.max_prompt_tokens,
            stored_results=self.max_stored_results,
            file_bytes=self.max_file_bytes,
        )


def state_directory(environment: Mapping[str, str]) -> Path:
    """Where programs of this user keep what they need again: the XDG state directory."""
    state = environment.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "pahq"


@dataclass(frozen=True)
class DataDirOptions:
    """Where jobs and tokens are."""

    data_dir: Directory = option(
        MISSING, "where jobs and tokens are kept", factory=lambda: state_directory(os.environ)
    )


@dataclass(frozen=True)
class StorageOptions(DataDirOptions):
    """What is kept of jobs, and for how long."""

    ephemeral: bool = option(False, "keep nothing on disk: jobs and their results end with the server")
    result_cache: bool = option(
        True, "compute every job, also one that equals an earlier one of the same user"
    )
    keep_jobs: Count | None = option(
        Retention.jobs, "finished jobs that are kept of each user, the newest ones"
    )
    keep_days: Days | None = option(None, "how long finished jobs are kept at most (default: for ever)")

    @property
    def config(self) -> StorageConfig:
        """The configuration of the store."""
        return StorageConfig(
            directory=None if self.ephemeral else self.data_dir,
            retention=Retention(self.keep_jobs, None if self.keep_days is None else self.keep_days * DAY_S),
            reuse=self.result_cache,
        )


@dataclass(frozen=True)
class TelemetryOptions:
    """What the server tells about itself."""

    metrics_listen: Address | None = option(
        None,
        "answer Prometheus there, over plain HTTP, to everybody who reaches it; metrics name no user, "
        "job or model (default: no metrics)",
    )


def wants_traces(environment: Mapping[str, str]) -> bool:
    """Whether the standard ``OTEL_…`` variables ask for traces."""
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    exporter = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    return not disabled and exporter == "otlp" and any(environment.get(name) for name in _OTLP_ENDPOINTS)


@dataclass(frozen=True)
class ServerConfig:
    """All options of ``pahq-server serve``, one dataclass per concern.

    Args:
        machine_bytes: size of the device's memory; None to ask the machine. Not an option: for tests.
    """

    models: ModelOptions = field(default_factory=ModelOptions)
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    network: ListenOptions = field(default_factory=ListenOptions)
    access: AccessOptions = field(default_factory=AccessOptions)
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    workers: WorkerOptions = field(default_factory=WorkerOptions)
    sessions: SessionOptions = field(default_factory=SessionOptions)
    sharing: SharingOptions = field(default_factory=SharingOptions)
    quotas: QuotaOptions = field(default_factory=QuotaOptions)
    storage: StorageOptions = field(default_factory=StorageOptions)
    telemetry: TelemetryOptions = field(default_factory=TelemetryOptions)
    self_test: bool = option(
        True, "do not compare models with transformers' own reading of them when they are loaded"
    )
    machine_bytes: int | None = None

    def refusal(self) -> str | None:
        """Says why a server must not or cannot start with this; None if it may."""
        try:
            self.workers.check(self.models.device)
        except InvalidRequestError as error:
            return str(error)
        return self.access.refusal(self.network.listen, self.storage.ephemeral)

    @property
    def window(self) -> int:
        """Patched passes that a job asks for at once, about."""
        return self.compute.window or WINDOW * self.workers.count

    @property
    def slots(self) -> int:
        """Jobs of all users together that have tensors in memory at a time."""
        return self.sharing.slots or SLOTS * self.workers.count

    @property
    def threads(self) -> int | None:
        """Threads of each worker; None for as many as its machine has cores."""
        return self.workers.threads(self.compute.threads, cores())


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
