"""Loads models onto workers, here or in processes of their own, and makes an engine of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from pahq_server.config.server import (
    ComputeOptions,
    GenerationOptions,
    ModelOptions,
    ServerConfig,
    WorkerOptions,
    cores,
)
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.observer import Observer
from pahq_server.engine import devices
from pahq_server.engine.catalogue import Catalogue
from pahq_server.engine.devices import machine_bytes
from pahq_server.engine.engine import ModelEngine, PoolEngine
from pahq_server.engine.generation.backend import GenerationBackend, UnsupportedModelError
from pahq_server.engine.self_test import MOST_BYTES, self_test
from pahq_server.engine.worker import TRANSFORMS, Worker
from pahq_server.memory.heap import hand_back_freed_memory, keep_freed_memory, kept_free_bytes
from pahq_server.models.building import ToDevice
from pahq_server.models.files import locate
from pahq_server.models.loading import LoadedModel, load
from pahq_server.models.streaming import load_rounded
from pahq_server.models.tokenizer import load_tokenizer
from pahq_server.plan.division import Division
from pahq_server.plan.planning import AUTO, PROCESS_BYTES, DoesNotFitError, Plan, plan_models
from pahq_server.plan.text import text
from pahq_server.precision.policy import POLICIES
from pahq_server.process import leave_out_of_garbage_collections
from pahq_server.workers.host import WorkerHost
from pahq_server.workers.messages import WorkerInfo
from pahq_server.workers.pool import RemotePool
from pahq_server.workers.ray_cluster import RayCluster, RayOptions

logger = logging.getLogger(__name__)

# Where the process of a worker finds `worker_host`.
WORKER_HOST = f"{__name__}:worker_host"


def make_engine(config: ServerConfig, observer: Observer) -> PoolEngine:
    """Plans, loads the models and makes an engine of them.

    Args:
        config: what to load, and where.
        observer: is told of workers in processes of their own.

    Raises:
        InvalidRequestError: the device does not exist, a model cannot be loaded, or the device has less
            memory than was asked for.
        DoesNotFitError: models and memory together are too much. Nothing has been loaded.
    """
    if config.workers.remote:
        return _remote_engine(config, observer)
    loaded = _load_models(config)
    engine = ModelEngine(
        loaded.served, config.compute.executor, loaded.plan.memory, generation=loaded.generation
    )
    _tell_generation(config, loaded, engine.worker)
    return engine


def worker_host(description: bytes) -> WorkerHost:
    """Loads the models in the process of a worker, as `describe_worker` says.

    Raises InvalidRequestError if that is of no use, however often it is tried.
    """
    config = _described(description)
    try:
        loaded = _load_models(config)
    except DoesNotFitError as error:
        raise InvalidRequestError("memory", str(error)) from error
    worker = Worker(loaded.served, config.compute.executor, loaded.plan.memory, generation=loaded.generation)
    _tell_generation(config, loaded, worker)
    leave_out_of_garbage_collections()
    return WorkerHost(worker)


def describe_worker(config: ServerConfig) -> bytes:
    """Says in JSON what `worker_host` is to load."""
    described = json.dumps(
        {
            "models": asdict(config.models),
            "generation": asdict(config.generation),
            "compute": asdict(config.compute) | {"threads": config.threads},
            "workers": asdict(config.workers),
            "self_test": config.self_test,
            "machine_bytes": config.machine_bytes,
        }
    )
    return described.encode()


def _described(description: bytes) -> ServerConfig:
    """Reads what `describe_worker` has written."""
    values: dict[str, Any] = json.loads(description)
    models = values["models"] | {"model": tuple(map(tuple, values["models"]["model"]))}
    return ServerConfig(
        models=ModelOptions(**models),
        generation=GenerationOptions(**values["generation"]),
        compute=ComputeOptions(**values["compute"]),
        workers=WorkerOptions(**values["workers"]),
        self_test=values["self_test"],
        machine_bytes=values["machine_bytes"],
    )


def _remote_engine(config: ServerConfig, observer: Observer) -> PoolEngine:
    """Makes an engine of workers in processes of their own, as soon as one of them is ready."""
    if config.workers.on_this_machine:
        _plan(config, devices.find(config.models.device), torch.cuda.device_count())
    directories = {name: locate(source) for name, source in config.models.sources.items()}
    # What is odd about a tokenizer is told by the workers, which load the checkpoints.
    tokenizers = {name: load_tokenizer(at, lambda warning: None) for name, at in directories.items()}
    workers = config.workers
    options = RayOptions(
        None if workers.on_this_machine else workers.ray_address,
        workers.gpus(config.models.device),
        config.threads or 1,
    )
    cluster = RayCluster(workers.count, options, WORKER_HOST, describe_worker(config))
    pool = RemotePool(cluster, workers.worker_deadline, observer=observer)
    try:
        first = pool.start()
    except BaseException:
        pool.stop()
        raise
    catalogue = Catalogue(first.models, tokenizers, first.memory_bytes, ToldSpeed(first))
    return PoolEngine(catalogue, pool)


@dataclass(frozen=True)
class ToldSpeed:
    """The speed that a worker tells. Implements `cost.Speed`."""

    info: WorkerInfo

    def operations_s(self) -> float:
        return self.info.operations_s

    def bytes_s(self, model: str) -> float:
        return self.info.bytes_s[model]


@dataclass(frozen=True)
class _Loaded:
    """What a worker is made of."""

    plan: Plan
    served: Mapping[str, LoadedModel]
    generation: GenerationBackend | None


def _load_models(config: ServerConfig) -> _Loaded:
    """Plans, and loads the models of one worker in this process. Raises as `make_engine` does."""
    device = devices.find(config.models.device)
    devices.prepare(device)
    plan = _plan(config, device)
    generation = _generation_backend(plan.generation, config.generation.kv_bytes)
    if plan.no_generation:
        logger.info("no text can be generated: %s", plan.no_generation)
    keep_freed_memory(kept_free_bytes(plan.scratch))
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    # Only while loading: memory that is freed between weights that stay is of no use to passes.
    hand_back_freed_memory()
    served = {name: _load(name, config, device, plan) for name in config.models.sources}
    keep_freed_memory(kept_free_bytes(plan.scratch))
    return _Loaded(plan, served, generation)


def _tell_generation(config: ServerConfig, loaded: _Loaded, worker: Worker) -> None:
    """Logs with which models no text can be generated."""
    level = logging.INFO if config.generation.backend == AUTO else logging.WARNING
    for model in worker.models():
        if loaded.generation is not None and model.no_generation:
            logger.log(level, "model %r: no text can be generated: %s", model.name, model.no_generation)


def _generation_backend(name: str | None, kv_bytes: int) -> GenerationBackend | None:
    """Makes what generates text; None for nothing. Raises InvalidRequestError where it is not installed."""
    if name is None:
        return None
    try:
        if name == "vllm":
            from pahq_server.engine.generation.vllm_backend import VllmBackend

            return VllmBackend(kv_bytes)
        from pahq_server.engine.generation.transformers_backend import TransformersBackend

        return TransformersBackend(kv_bytes)
    except UnsupportedModelError as error:
        raise InvalidRequestError("generation", str(error)) from error


def _plan(config: ServerConfig, device: torch.device, gpus_here: int | None = None) -> Plan:
    """Plans the memory of models and jobs, of one worker; loads nothing. Raises as `make_engine` does.

    Args:
        config: what is served.
        device: what models are kept and computed on.
        gpus_here: number of GPUs that there are for all workers; None where that is not known.
    """
    models = config.models
    machine = devices.memory_bytes(device) if config.machine_bytes is None else config.machine_bytes
    division = divide(config.workers, device, machine, config.compute.threads, gpus_here)
    if models.memory is not None and models.memory > machine:
        detail = f"{models.memory} bytes are more than the {machine} of {device}"
        raise InvalidRequestError("memory", detail)
    if models.weight_policy is not None and config.compute.executor == "literal":
        raise InvalidRequestError("weights", "the literal executor runs weights in fp32 only")
    plan = plan_models(
        models.sources,
        models.memory,
        machine=machine,
        device=str(device),
        executor=config.compute.executor,
        precision=models.weight_policy,
        generation=config.generation.backend,
        kv_bytes=config.generation.kv_bytes,
        division=division,
    )
    if not plan.fits:
        raise DoesNotFitError(f"the models do not fit\n{text(plan)}")
    return plan


def divide(
    workers: WorkerOptions,
    device: torch.device,
    machine: int,
    threads: int | None = None,
    gpus_here: int | None = None,
) -> Division | None:
    """Says how workers share a machine; None where the one worker is the server's own process.

    Args:
        workers: how many there are, and where.
        device: what models are kept and computed on.
        machine: bytes of memory of the device.
        threads: of each worker, as the operator chose them; None for the default.
        gpus_here: number of GPUs that there are for all workers; None where that is not known.
    """
    if not workers.remote:
        return None
    division = Division(
        workers=workers.count,
        joined=not workers.on_this_machine,
        device=device.type,
        machine=machine,
        threads=workers.threads(threads, cores()),
        gpus=workers.gpus(device.type),
        gpus_here=gpus_here,
    )
    if device.type == "cuda" and division.on_this_device > 1:
        # Not what is free: those that came first have taken their share of it.
        return replace(division, machine=devices.total_bytes(device))
    return division


def _load(name: str, config: ServerConfig, device: torch.device, plan: Plan) -> LoadedModel:
    """Loads a model and compares it with transformers' reading of it; logs what is odd about it."""
    source, weight_policy = config.models.sources[name], config.models.weight_policy
    if weight_policy is None:
        loaded = load(source, ToDevice(TRANSFORMS[config.compute.executor], device))
    else:
        loaded = load_rounded(source, POLICIES[weight_policy], device)
    for warning in loaded.warnings:
        logger.warning("model %r: %s", name, warning)
    if config.self_test:
        # No job runs yet, so the test may use what jobs will take.
        room = machine_bytes() - PROCESS_BYTES - (plan.weights if device.type == "cpu" else 0)
        try:
            outcome = self_test(loaded, min(MOST_BYTES, room))
        except InvalidRequestError as error:
            raise InvalidRequestError("model", f"{name!r}: {error.detail}") from error
        logger.log(logging.WARNING if outcome.skipped else logging.INFO, "model %r: %s", name, outcome)
    return loaded
