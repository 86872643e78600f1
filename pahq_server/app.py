"""Builds a server from its parts (config, models, engine, jobs, api, telemetry), runs it and stops it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

import torch
from pahq import __version__

from pahq_server.access import tls as tls_files
from pahq_server.access.access import Access, AccessConfig
from pahq_server.access.policy import POLICY
from pahq_server.access.tls import ExpiryWatch, TlsContents
from pahq_server.access.tokens import TokenTable
from pahq_server.api.connections import raise_file_limit
from pahq_server.api.server import ApiServer
from pahq_server.assembly import make_engine
from pahq_server.config.server import ServerConfig, wants_traces
from pahq_server.core.engine import ModelInfo
from pahq_server.core.errors import WorkerFailedError
from pahq_server.engine.engine import PoolEngine
from pahq_server.jobs.service import JobPolicy, JobService
from pahq_server.process import leave_out_of_garbage_collections
from pahq_server.store.database import Database
from pahq_server.store.directory import JOB_FILES, opened
from pahq_server.store.jobs import SqliteJobStore
from pahq_server.telemetry.metrics import Sources
from pahq_server.telemetry.telemetry import Telemetry

logger = logging.getLogger(__name__)

# How long calls that are being answered may go on when the server ends.
GRACE_S = 5.0
# How often the server looks whether a certificate has expired.
CERTIFICATES_S = 60.0


async def serve(
    config: ServerConfig,
    ready: Callable[[str], None],
    loaded: Callable[[Sequence[ModelInfo]], None] = lambda models: None,
) -> None:
    """Serves until SIGTERM or SIGINT, or with ``parent_watch`` until standard input ends.

    Args:
        config: what to serve, where, and to whom.
        ready: called once, with the address, when calls are answered.
        loaded: called once before ``ready``, with the models that are served.

    Raises:
        InvalidRequestError: the device does not exist, a model cannot be loaded, or the device has less
            memory than was asked for.
        DoesNotFitError: models and memory together are too much. Nothing has been loaded.
        StorageError: the data directory cannot be used.
        ListenError: the address cannot be bound.
        WorkerFailedError: jobs cannot be worked on any more.
    """
    build = {"version": __version__, "torch": torch.__version__}
    # Listens before models are loaded, so that a bad address is found at once.
    telemetry = Telemetry(POLICY, build, config.telemetry.metrics_listen, wants_traces(os.environ))
    access = config.access.config(config.network.listen)
    try:
        with (
            opened(config.storage.config) as database,
            access.authenticating(TokenTable(database)) as authenticator,
        ):
            tls = _read_certificates(access, telemetry)
            engine = make_engine(config, telemetry.observer)
            try:
                api_access = Access(authenticator, access.limits, telemetry.observer)
                await _serve(config, engine, api_access, tls, database, telemetry, ready, loaded)
            finally:
                engine.stop()
    finally:
        telemetry.close()


async def _serve(
    config: ServerConfig,
    engine: PoolEngine,
    access: Access,
    tls: TlsContents | None,
    database: Database,
    telemetry: Telemetry,
    ready: Callable[[str], None],
    loaded: Callable[[Sequence[ModelInfo]], None],
) -> None:
    loop, broken = asyncio.get_running_loop(), asyncio.Event()

    def worker_failed() -> None:
        broken.set()
        stop.set()

    jobs = JobService(
        engine,
        __version__,
        _job_policy(config),
        config.sessions.limits,
        SqliteJobStore(database),
        telemetry.observer,
        failed=lambda: loop.call_soon_threadsafe(worker_failed),
    )
    raise_file_limit()
    api = ApiServer(
        engine,
        jobs,
        config.network.listen,
        config.network.reflection,
        access,
        tls,
        telemetry.observer,
        config.network.limits,
    )
    telemetry.read(_sources(config, engine, jobs))
    leave_out_of_garbage_collections()
    # Before `ready`: whoever reads the address may stop the server at once.
    stop = _stop_event(config.network.parent_watch)
    # Calls are answered before all jobs of an earlier process are resumed: there may be thousands.
    jobs.start(wait=False)
    await api.start()
    resuming = asyncio.create_task(_tell_resumed(jobs, api))
    loaded(engine.models())
    ready(f"{config.network.listen.rpartition(':')[0]}:{api.port}")
    watching = None if tls is None else asyncio.create_task(_watch_certificates(tls))
    await stop.wait()
    logger.info("stopping")
    if watching is not None:
        watching.cancel()
    await _end(engine, jobs, api, resuming)
    if broken.is_set():
        # With a data directory, jobs go on when a supervisor starts the process again. Without one they have
        # failed.
        raise WorkerFailedError("the worker failed; the log says why. Start the server again to go on")


def _sources(config: ServerConfig, engine: PoolEngine, jobs: JobService) -> Sources:
    return Sources(
        engine.memory_usage,
        jobs.count_by_state,
        jobs.sessions.count,
        engine.workers,
        jobs.unavailable,
        config.storage.config.directory,
    )


async def _end(engine: PoolEngine, jobs: JobService, api: ApiServer, resuming: asyncio.Task[None]) -> None:
    """Ends all parts of the server, whatever one of them raises."""
    for result in await asyncio.gather(api.stop(GRACE_S), _close(jobs), resuming, return_exceptions=True):
        if isinstance(result, BaseException):
            # A later process goes on from what is stored.
            logger.error("a part of the server did not end in good order: %r", result)
            logger.debug("it failed here", exc_info=result)
    engine.stop_tokenizing()


def _read_certificates(access: AccessConfig, telemetry: Telemetry) -> TlsContents | None:
    """Reads the files for TLS and tells when they expire; None without TLS."""
    if access.tls is None:
        return None
    tls = tls_files.read_tls_files(access.tls)
    telemetry.observer.certificates_expire(tls.server_expiry, tls.client_ca_expiry)
    return tls


async def _watch_certificates(tls: TlsContents) -> None:
    watch = ExpiryWatch((*tls.server_validity, *tls.client_validity))
    while True:
        watch.check(time.time())
        await asyncio.sleep(CERTIFICATES_S)


def _job_policy(config: ServerConfig) -> JobPolicy:
    storage = config.storage.config
    return JobPolicy(
        window=config.window,
        quotas=config.quotas.quotas,
        slots=config.slots,
        user_weights=dict(config.sharing.user_weight),
        retention=storage.retention,
        reuse=storage.reuse,
        files=None if storage.directory is None else storage.directory / JOB_FILES,
        environment={"executor": config.compute.executor, "weights": config.models.weight_policy},
    )


async def _close(jobs: JobService) -> None:
    """Closes the service in a thread, since the batch at hand may take a while."""
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


def _stop_event(parent_watch: bool) -> asyncio.Event:
    """Returns an event that SIGTERM, SIGINT or, with ``parent_watch``, the end of standard input sets."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    stopping = {signal.SIGTERM, signal.SIGINT}
    # A signal that came while handlers are exchanged would find none.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    for number in stopping:
        loop.add_signal_handler(number, stop.set)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if parent_watch:
        # When a parent dies, whatever killed it, the system closes the pipe.
        pipe = sys.stdin.fileno()

        def read() -> None:
            if not os.read(pipe, 1024):
                loop.remove_reader(pipe)
                stop.set()

        loop.add_reader(pipe, read)
    return stop
