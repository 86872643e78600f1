"""The plan: how much memory models and their jobs take on a machine, and how long a discovery takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pahq_server.core.errors import InvalidRequestError
from pahq_server.engine.backends import policies
from pahq_server.engine.cost import BOOKKEEPING_S, job_bytes, least_operations, most_operations, sample_task
from pahq_server.engine.devices import machine_bytes
from pahq_server.engine.generation.decoding import ROUNDED
from pahq_server.engine.sparse.memory import divided, page_bytes_for
from pahq_server.engine.sparse.weights import COMPOSED_BYTES
from pahq_server.engine.worker import TRANSFORMS
from pahq_server.models.architecture import Architecture
from pahq_server.models.folding import FOLDING
from pahq_server.models.loading import Outline, outline
from pahq_server.models.resident import WeightBytes
from pahq_server.models.streaming import STORE_SHARE
from pahq_server.plan.division import Division
from pahq_server.plan.weights import (
    Recording,
    composed_bytes,
    copies_bytes,
    gated_bytes,
    loading_peak,
    resident,
    rounded,
)
from pahq_server.precision.policy import POLICIES

# Share of the memory beside the weights that jobs get, unless the operator says otherwise.
DEFAULT_SHARE = 0.5
# Memory of the process beside weights and jobs. Interpreter, torch and transformers take about 300 MiB after
# the self-test at load. Jobs of varied sizes add kernels that libraries keep per shape (bounded, see
# `process.prepare_process`), free memory of the heap (bounded, see `memory.heap`), threads, requests and
# results: 570 MiB in all after 200 varied jobs of the demo model.
PROCESS_BYTES = 640 << 20
# Stands for `DEFAULT_BACKEND` where there is memory for it, else for no generated text.
AUTO, DEFAULT_BACKEND = "auto", "transformers"
TOO_MUCH = (
    "it would take more than half of the memory that the models leave: give more memory, or start the server "
    "with --generation transformers to take it all the same"
)
# About what a process of vLLM takes beside weights, keys and values: interpreter, torch and vLLM.
VLLM_BYTES = 1 << 30


class DoesNotFitError(Exception):
    """Models and memory for jobs do not fit into the machine. The message is the plan as text."""


@dataclass(frozen=True)
class Load:
    """The jobs to plan for.

    Args:
        prompts: number of prompts.
        tokens: length of each prompt; the metric is read at the last position.
    """

    prompts: int = 16
    tokens: int = 16


@dataclass(frozen=True)
class ModelPlan:
    """The memory and time that one model takes.

    Args:
        name: as clients call it.
        architecture: of the checkpoint.
        parameters: how many numbers of the checkpoint are read.
        bytes_on_disk, dtypes: of the checkpoint.
        resident: bytes of the weights in float32.
        gated: bytes of joined matrices of gated MLPs, which are made when a job first uses the model.
        composed: most bytes of products of weights that are kept when jobs use the model.
        loading: most bytes at any time while the model is loaded.
        edges_group: edges of the graph whose receivers of keys and values are key/value heads.
        edges_query: edges of the graph whose receivers of keys and values are query heads.
        job: bytes that a job takes; None if its prompts are longer than the model's context.
        operations: least and most floating-point operations of a discovery, with one evaluation per edge;
            None if ``job`` is None.
        rounded: bytes of the weights rounded by the plan's precision policy; None for full precision.
        store: bytes of full-precision copies of single heads that are kept beside rounded weights.
        copies: bytes of rounded copies, which are made when jobs first ask for other precisions than
            ``fp32``.
        generation: bytes that are taken when text is first generated: the weights once more, in float32, keys
            and values, and a process if there is one.
    """

    name: str
    architecture: Architecture
    parameters: int
    bytes_on_disk: int
    dtypes: tuple[str, ...]
    resident: WeightBytes
    gated: int
    composed: int
    loading: int
    edges_group: int
    edges_query: int
    job: int | None
    operations: tuple[int, int] | None
    rounded: WeightBytes | None = None
    store: int = 0
    copies: int = 0
    generation: int = 0

    @property
    def weights(self) -> int:
        """Bytes that the model takes once jobs have used it."""
        return self.kept + self.gated + self.composed + self.generation

    @property
    def kept(self) -> int:
        """Bytes that the model takes right after it was loaded."""
        return self.resident.total if self.rounded is None else self.rounded.total + self.store


@dataclass(frozen=True)
class Plan:
    """The memory and time that models and their jobs take together.

    Args:
        models: in the order in which they are loaded.
        load: the jobs to plan for.
        machine: bytes of memory of the device.
        memory: bytes for jobs and sessions.
        given: whether the operator chose ``memory``.
        page_bytes: size of a page of the pool.
        gflops: speed of the machine in billions of operations per second; None if it is not known.
        precision: name of the policy by which weights are rounded; None for full precision.
        device: name of the device, such as "cpu".
        generation: name of the backend that generates text; None for none.
        no_generation: why none does although one may have; empty if one does, or if none was asked for.
        division: how workers share the machine, if they are processes of their own. All else is then of one
            worker, and ``machine`` is its share.
    """

    models: tuple[ModelPlan, ...]
    load: Load
    machine: int
    memory: int
    given: bool
    page_bytes: int
    gflops: float | None = None
    precision: str | None = None
    device: str = "cpu"
    generation: str | None = None
    no_generation: str = ""
    division: Division | None = None

    @property
    def weights(self) -> int:
        """Bytes of all models once jobs have used them."""
        return sum(model.weights for model in self.models)

    @property
    def scratch(self) -> int:
        """Bytes of ``memory`` for temporary tensors of passes."""
        return divided(self.memory, self.page_bytes)[1]

    @property
    def pages(self) -> int:
        """Pages of the pool, which takes the rest of ``memory``."""
        return divided(self.memory, self.page_bytes)[0]

    @property
    def serving(self) -> int:
        """Most bytes of the process, if all jobs ask for the same precision."""
        return PROCESS_BYTES + self.weights + self.memory

    @property
    def every_precision(self) -> int:
        """Most bytes of the process once jobs have used every precision: `serving` and all rounded copies."""
        # Products of rounded weights may fill what products of full-precision weights leave of their bound.
        more = (COMPOSED_BYTES - model.composed for model in self.models if model.copies and model.composed)
        return self.serving + sum(model.copies for model in self.models) + sum(more)

    @property
    def loading(self) -> int:
        """Most bytes of the process while it loads."""
        before, peak = 0, 0
        for model in self.models:
            # Other devices than the CPU only get what is kept.
            peak = max(peak, before + (model.loading if self.device == "cpu" else model.kept))
            before += model.kept
        return PROCESS_BYTES + peak

    @property
    def fits(self) -> bool:
        """Whether everything fits into the machine."""
        if self.division is not None and not self.division.has_place:
            return False
        return self.memory > 0 and max(self.serving, self.loading) <= self.machine

    def jobs(self, model: ModelPlan) -> int:
        """Returns how many jobs of a model fit into ``memory`` at once."""
        return self.memory // model.job if model.job else 0

    def seconds(self, model: ModelPlan) -> tuple[float, float] | None:
        """Returns the least and the most seconds that a discovery takes; None if that is not known."""
        if self.gflops is None or model.operations is None:
            return None
        least, most = (count / self.gflops / 1e9 for count in model.operations)
        return least, most + model.edges_group * BOOKKEEPING_S


def plan_models(
    sources: Mapping[str, str],
    memory: int | None = None,
    *,
    load: Load | None = None,
    machine: int | None = None,
    executor: str = "sparse",
    precision: str | None = None,
    device: str = "cpu",
    generation: str | None = None,
    kv_bytes: int = 0,
    division: Division | None = None,
) -> Plan:
    """Plans for models, from their configurations and the headers of their weights.

    Args:
        sources: directory or hub id of each model, by name.
        memory: bytes for jobs and sessions; None for half of what the weights leave.
        load: the jobs to plan for; None for `Load` with its defaults.
        machine: bytes of memory of the device; None for the machine's memory.
        executor: one of `engine.backends.EXECUTORS`.
        precision: name of the policy by which weights are rounded; None for full precision.
        device: name of the device on which models are kept.
        generation: name of the backend that generates text; `AUTO` for transformers, if that takes no more
            than half of what the models leave; None for none.
        kv_bytes: bytes for the keys and values of generated text, of each model.
        division: how workers share the machine; then the plan is that of one worker on its share, whatever
            ``machine`` is. None if the one worker is the server's own process.

    Raises InvalidRequestError for a model that cannot be served (field ``model``), and for a backend where
    weights are kept rounded, with which it would refuse every model (field ``generation``).
    """
    if precision is not None and generation not in (None, AUTO):
        detail = f"{generation} would refuse every model: {ROUNDED}, or with --generation none"
        raise InvalidRequestError("generation", detail)
    load = load or Load()
    if division is not None:
        machine = division.share
    machine = machine_bytes() if machine is None else machine
    outlines, models = [], []
    for name, source in sources.items():
        recording = Recording(TRANSFORMS[executor])
        outlines.append(outline(source, recording))
        model = _plan_model(name, outlines[-1], recording, load, executor)
        if precision is not None:
            model = _rounded(model, source, recording, precision)
        models.append(model)

    without = Plan(
        models=tuple(models),
        load=load,
        machine=machine,
        memory=0 if memory is None else memory,
        given=memory is not None,
        page_bytes=page_bytes_for([found.model for found in outlines]),
        precision=precision,
        device=device,
        division=division,
    )
    if precision is not None and generation is not None:
        return replace(_divided(without), no_generation=ROUNDED)
    return _with_text(without, generation, kv_bytes)


def _with_text(without: Plan, generation: str | None, kv_bytes: int) -> Plan:
    """Adds what generates text to the plan of models, see `plan_models`."""
    if generation is None:
        return _divided(without)
    backend = DEFAULT_BACKEND if generation == AUTO else generation
    models = tuple(
        replace(model, generation=generation_bytes(backend, model.parameters, kv_bytes))
        for model in without.models
    )
    found = _divided(replace(without, models=models, generation=backend))
    spare = without.machine - PROCESS_BYTES - without.weights
    enough = found.fits and 2 * (found.weights - without.weights) <= spare
    return found if enough or generation != AUTO else _divided(replace(without, no_generation=TOO_MUCH))


def _divided(plan: Plan) -> Plan:
    """Gives jobs and sessions half of what the models leave, unless the operator chose their memory."""
    left = max(0, plan.machine - PROCESS_BYTES - plan.weights)
    return plan if plan.given else replace(plan, memory=int(left * DEFAULT_SHARE))


def generation_bytes(backend: str, parameters: int, kv_bytes: int) -> int:
    """Returns the bytes that generating text with a model takes.

    Args:
        backend: name of the backend.
        parameters: of the model.
        kv_bytes: bytes for keys and values.
    """
    return 4 * parameters + kv_bytes + (VLLM_BYTES if backend == "vllm" else 0)


def _rounded(model: ModelPlan, source: str, recording: Recording, precision: str) -> ModelPlan:
    """Changes the plan of a model to rounded weights, which are read and rounded one linear map at a time."""
    parts = rounded(source, POLICIES[precision])
    in_work = 3 * max(piece.largest for piece in recording.pieces)
    store = int(STORE_SHARE * 4 * model.parameters)
    return replace(model, rounded=parts, store=store, gated=0, copies=0, loading=parts.total + in_work)


def _plan_model(name: str, found: Outline, recording: Recording, load: Load, executor: str) -> ModelPlan:
    model, arch = found.model, found.model.architecture
    group, query = arch.graph("group"), arch.graph("query")
    sparse, fitting = TRANSFORMS[executor] is FOLDING, load.tokens <= arch.context
    least = least_operations(arch, load.prompts, load.tokens) * group.num_edges
    most = most_operations(arch, group, load.prompts, load.tokens)
    kept = resident(model.weights)
    return ModelPlan(
        name=name,
        architecture=arch,
        parameters=model.parameters,
        bytes_on_disk=found.bytes_on_disk,
        dtypes=tuple(sorted(str(dtype).removeprefix("torch.") for dtype in found.dtypes)),
        resident=kept,
        gated=gated_bytes(model) if sparse else 0,
        composed=min(COMPOSED_BYTES, sum(composed_bytes(arch, g) for g in {group, query})) if sparse else 0,
        loading=loading_peak(recording.pieces),
        edges_group=group.num_edges,
        edges_query=query.num_edges,
        job=job_bytes(arch, sample_task(load.prompts, load.tokens)) if fitting else None,
        operations=(least, most) if fitting else None,
        copies=copies_bytes(arch, kept, policies(executor)),
    )
