"""Puts the parts together: models, engine, jobs and API."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from pahq import __version__

from pahq_server.access import tls as tls_files
from pahq_server.access.access import Access
from pahq_server.access.config import AccessConfig
from pahq_server.access.identity import Authenticator
from pahq_server.access.policy import POLICY
from pahq_server.access.table import TokenTable
from pahq_server.access.tls import ExpiryWatch, TlsContents
from pahq_server.api.connections import ConnectionLimits, raise_file_limit
from pahq_server.api.server import ApiServer
from pahq_server.core.engine import ModelInfo
from pahq_server.core.errors import InvalidRequestError, WorkerFailedError
from pahq_server.engine import devices
from pahq_server.engine.devices import machine_bytes
from pahq_server.engine.engine import TRANSFORMS, ModelEngine
from pahq_server.engine.self_test import MOST_BYTES, self_test
from pahq_server.jobs.calls import SessionLimits
from pahq_server.jobs.quotas import Quotas
from pahq_server.jobs.service import JobPolicy, JobService
from pahq_server.models.casting import Placed
from pahq_server.models.heap import hand_back_freed_memory, keep_freed_memory, kept_free_bytes
from pahq_server.models.loading import LoadedModel, load
from pahq_server.models.streaming import load_rounded
from pahq_server.plan.planning import PROCESS_BYTES, DoesNotFitError, Plan, plan_models
from pahq_server.plan.text import text
from pahq_server.precision.policy import POLICIES
from pahq_server.store.database import Database
from pahq_server.store.jobs import SqliteJobStore
from pahq_server.store.opening import StorageConfig, opened
from pahq_server.telemetry.pulled import Sources
from pahq_server.telemetry.telemetry import Telemetry, TelemetryConfig

logger = logging.getLogger(__name__)

GRACE_S = 5.0
# How often it is looked whether a certificate has expired.
CERTIFICATES_S = 60.0


@dataclass(frozen=True)
class ServerConfig:
    """What to serve and where.

    Args:
        models: directory or hub id by the name that clients use.
        listen: ``host:port``; port 0 picks a free one.
        threads: of torch; None leaves its default.
        reflect: whether to offer gRPC reflection.
        parent_watch: whether to stop when standard input ends.
        executor: "sparse", or "literal" for comparison.
        window: how many evaluations a search asks for at once.
        session_limits: what clients' sessions may take.
        memory_bytes: of the device: what jobs and sessions together may take beside the models; None for half
            of what the models leave.
        machine_bytes: of the device's memory; None to ask the machine.
        weights: name of the policy by which weights are kept rounded; None for full precision.
        device: name of what models are kept and computed on.
        telemetry: what to tell about the server, and where.
        storage: what is kept of jobs and tokens, and where.
        quotas: what each user may have.
        slots: how many discoveries have tensors in memory at a time.
        user_weights: shares of users; 1 for those that are missing.
        access: who may call, and how much.
        self_test: whether models are compared with transformers' reading of them when they are loaded.
        connections: bounds of clients' connections.
    """

    models: Mapping[str, str]
    listen: str
    threads: int | None = None
    reflect: bool = False
    parent_watch: bool = False
    executor: str = "sparse"
    window: int = 32
    session_limits: SessionLimits = field(default_factory=SessionLimits)
    memory_bytes: int | None = None
    machine_bytes: int | None = None
    weights: str | None = None
    device: str = "cpu"
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    quotas: Quotas = field(default_factory=Quotas)
    slots: int = 4
    user_weights: Mapping[str, float] = field(default_factory=dict)
    access: AccessConfig = field(default_factory=AccessConfig)
    self_test: bool = True
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)


async def serve(
    config: ServerConfig,
    ready: Callable[[str], None],
    loaded: Callable[[Sequence[ModelInfo]], None] = lambda models: None,
) -> None:
    """Serves until SIGTERM, SIGINT or, with ``parent_watch``, the end of standard input.

    Args:
        config: what to serve.
        ready: called once with the address when requests are answered.
        loaded: called once before that, with the models that are served.

    Raises InvalidRequestError for a device that is not there, a model that cannot be loaded or memory that
    the device does not have, DoesNotFitError, before anything is loaded, where models and memory together are
    too much, StorageError for a data directory that cannot be used, ListenError for an address that cannot
    be bound, WorkerFailedError where jobs cannot be worked on any more.
    """
    telemetry = Telemetry(config.telemetry, POLICY, {"version": __version__, "torch": torch.__version__})
    try:
        with (
            opened(config.storage) as database,
            config.access.authenticating(TokenTable(database)) as authenticator,
        ):
            await _serve(config, database, authenticator, telemetry, ready, loaded)
    finally:
        telemetry.close()


async def _serve(
    config: ServerConfig,
    database: Database,
    authenticator: Authenticator,
    telemetry: Telemetry,
    ready: Callable[[str], None],
    loaded: Callable[[Sequence[ModelInfo]], None],
) -> None:
    device = devices.find(config.device)
    devices.prepare(device)
    plan = _plan(config, device)
    tls = None if config.access.tls is None else tls_files.read(config.access.tls)
    if tls is not None:
        telemetry.observer.certificates_expire(tls.server_expiry, tls.client_ca_expiry)
    keep_freed_memory(kept_free_bytes(plan.scratch))
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    # Only while loading: what is freed between kept weights is of no use to passes.
    hand_back_freed_memory()
    served = {name: _load(name, config, device, plan) for name in config.models}
    keep_freed_memory(kept_free_bytes(plan.scratch))
    engine = ModelEngine(served, config.executor, plan.memory)
    loop, broken = asyncio.get_running_loop(), asyncio.Event()

    def worker_failed() -> None:
        broken.set()
        stop.set()

    jobs = JobService(
        engine,
        __version__,
        _policy(config),
        config.session_limits,
        SqliteJobStore(database),
        telemetry.observer,
        failed=lambda: loop.call_soon_threadsafe(worker_failed),
    )
    access = Access(authenticator, config.access.limits, telemetry.observer)
    raise_file_limit()
    api = ApiServer(
        engine, jobs, config.listen, config.reflect, access, tls, telemetry.observer, config.connections
    )
    telemetry.read(
        Sources(engine.memory_usage, jobs.count_by_state, jobs.sessions.count, config.storage.directory)
    )
    # Searching what stays for garbage takes a tenth of a second and more, in which nobody is answered.
    gc.collect()
    gc.freeze()
    # Whoever reads that the server listens may stop it at once.
    stop = _stop_event(config.parent_watch)
    # Jobs that an earlier process left are gone on with behind this: there may be thousands.
    jobs.start(wait=False)
    await api.start()
    resuming = asyncio.create_task(_tell_resumed(jobs, api))
    loaded(engine.models())
    ready(f"{config.listen.rpartition(':')[0]}:{api.port}")
    watching = None if tls is None else asyncio.create_task(_watch_certificates(tls))
    await stop.wait()
    logger.info("stopping")
    if watching is not None:
        watching.cancel()
    for result in await asyncio.gather(api.stop(GRACE_S), _close(jobs), resuming, return_exceptions=True):
        if isinstance(result, BaseException):
            # What is stored is stored, and a later process goes on from there.
            logger.error("a part of the server did not end in good order: %r", result)
            logger.debug("it failed here", exc_info=result)
    engine.stop_tokenizing()
    if broken.is_set():
        # Whoever supervises the process starts it again, and its jobs go on; without a data directory they
        # have failed.
        raise WorkerFailedError("the worker failed; the log says why. Start the server again to go on")


async def _close(jobs: JobService) -> None:
    """Closes the service in a thread of its own, since the batch at hand may take a while."""
    try:
        closing = asyncio.get_running_loop().run_in_executor(None, jobs.close)
    except RuntimeError:  # no memory for a thread
        logger.warning("there is no memory for a thread: nobody is answered while jobs are stored")
        jobs.close()
    else:
        await closing


async def _tell_resumed(jobs: JobService, api: ApiServer) -> None:
    if await asyncio.to_thread(jobs.wait_resumed):
        await api.tell_resumed()


async def _watch_certificates(tls: TlsContents) -> None:
    watch = ExpiryWatch((*tls.server_dates, *tls.client_dates))
    while True:
        watch.check(time.time())
        await asyncio.sleep(CERTIFICATES_S)


def _policy(config: ServerConfig) -> JobPolicy:
    return JobPolicy(
        window=config.window,
        quotas=config.quotas,
        slots=config.slots,
        user_weights=config.user_weights,
        retention=config.storage.retention,
        reuse=config.storage.reuse,
        environment={"executor": config.executor, "weights": config.weights},
    )


def _load(name: str, config: ServerConfig, device: torch.device, plan: Plan) -> LoadedModel:
    """One model, compared with transformers' reading of it; what is odd about it goes to the log."""
    source = config.models[name]
    if config.weights is None:
        loaded = load(source, Placed(TRANSFORMS[config.executor], device))
    else:
        loaded = load_rounded(source, POLICIES[config.weights], device)
    for warning in loaded.warnings:
        logger.warning("model %r: %s", name, warning)
    if config.self_test:
        # What jobs will take is still free.
        room = machine_bytes() - PROCESS_BYTES - (plan.weights if device.type == "cpu" else 0)
        try:
            outcome = self_test(loaded, min(MOST_BYTES, room))
        except InvalidRequestError as error:
            raise InvalidRequestError("model", f"{name!r}: {error.detail}") from error
        logger.log(logging.WARNING if outcome.skipped else logging.INFO, "model %r: %s", name, outcome)
    return loaded


def _plan(config: ServerConfig, device: torch.device) -> Plan:
    """What models and jobs will take. Raises as `serve` does; loads nothing."""
    machine = devices.memory_bytes(device) if config.machine_bytes is None else config.machine_bytes
    if config.memory_bytes is not None and config.memory_bytes > machine:
        detail = f"{config.memory_bytes} bytes are more than the {machine} of {device}"
        raise InvalidRequestError("memory", detail)
    if config.weights is not None and config.executor == "literal":
        raise InvalidRequestError("weights", "the literal executor runs weights in fp32 only")
    plan = plan_models(
        config.models,
        config.memory_bytes,
        machine=machine,
        device=str(device),
        executor=config.executor,
        precision=config.weights,
    )
    if not plan.fits:
        raise DoesNotFitError(f"the models do not fit\n{text(plan)}")
    return plan


def _stop_event(parent_watch: bool) -> asyncio.Event:
    """Set by SIGTERM, SIGINT or, with ``parent_watch``, the end of standard input."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    stopping = {signal.SIGTERM, signal.SIGINT}
    # One that comes while handlers are exchanged would find none.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    for number in stopping:
        loop.add_signal_handler(number, stop.set)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if parent_watch:
        # A parent that dies closes the pipe, whatever killed it.
        pipe = sys.stdin.fileno()

        def read() -> None:
            if not os.read(pipe, 1024):
                loop.remove_reader(pipe)
                stop.set()

        loop.add_reader(pipe, read)
    return stop
