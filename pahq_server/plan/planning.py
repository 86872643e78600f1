"""The plan: what models, jobs and discoveries will take on a machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pahq_server.engine.backends import policies
from pahq_server.engine.cost import BOOKKEEPING_S, job_bytes, least_operations, most_operations, sample_task
from pahq_server.engine.devices import machine_bytes
from pahq_server.engine.engine import TRANSFORMS
from pahq_server.engine.sparse.memory import divided, page_bytes_for
from pahq_server.engine.sparse.weights import COMPOSED_BYTES
from pahq_server.models.architecture import Architecture
from pahq_server.models.folding import FOLDING
from pahq_server.models.loading import Outline, outline
from pahq_server.models.parts import Parts
from pahq_server.models.streaming import STORE_SHARE
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

# Of what the weights leave, unless the operator says otherwise.
DEFAULT_SHARE = 0.5
# Interpreter, torch and transformers take about 300 MiB once models have been compared at load. On top come,
# with jobs of ever other sizes, kernels that libraries keep per shape (bounded, see `cli.serve`), free memory
# of the heap (bounded, see `models.heap`), threads, requests and results: 570 MiB in all after 200 varied
# jobs of the demo model.
PROCESS_BYTES = 640 << 20


class DoesNotFitError(Exception):
    """Models and memory for jobs are more than the machine has. The message is the plan that says so."""


@dataclass(frozen=True)
class Load:
    """The jobs that are planned for: so many prompts of so many tokens, the metric read at the last ones."""

    prompts: int = 16
    tokens: int = 16


@dataclass(frozen=True)
class ModelPlan:
    """What one model takes.

    Args:
        name: as clients call it.
        architecture: of the checkpoint.
        parameters: numbers in the checkpoint that are read.
        bytes_on_disk, dtypes: of the checkpoint.
        resident: bytes of the weights as they are kept.
        rounded: bytes of the weights if they are kept as the plan's precision policy rounds them; None for
            full precision.
        store: bytes of full-precision copies of single heads that are kept beside rounded weights.
        gated, composed: bytes made when a job first uses the model, the latter at the most.
        loading: most bytes at a time while it is loaded.
        edges_group, edges_query: of the graph, by ``kv_receivers``.
        job: bytes of a job; None if its prompts are longer than the model's context.
        operations: of a discovery on the group graph, between these; None as ``job``.
        copies: bytes of rounded copies, made when jobs first ask for other precisions than ``fp32``.
    """

    name: str
    architecture: Architecture
    parameters: int
    bytes_on_disk: int
    dtypes: tuple[str, ...]
    resident: Parts
    gated: int
    composed: int
    loading: int
    edges_group: int
    edges_query: int
    job: int | None
    operations: tuple[int, int] | None
    rounded: Parts | None = None
    store: int = 0
    copies: int = 0

    @property
    def weights(self) -> int:
        """All that the model takes once jobs have used it."""
        return self.kept + self.gated + self.composed

    @property
    def kept(self) -> int:
        """Of its weights, once it is loaded."""
        return self.resident.total if self.rounded is None else self.rounded.total + self.store


@dataclass(frozen=True)
class Plan:
    """What models, in the order in which they are loaded, and their jobs take together.

    Args:
        models: the models.
        load: the jobs that are planned for.
        machine: bytes that there are on the device.
        memory: bytes for jobs and sessions; ``given`` if the operator said so.
        page_bytes: of the pool.
        gflops: billions of operations per second; None if not known.
        precision: name of the policy by which weights are kept rounded; None for full precision.
        device: name of what models are kept on.
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

    @property
    def weights(self) -> int:
        return sum(model.weights for model in self.models)

    @property
    def scratch(self) -> int:
        return divided(self.memory, self.page_bytes)[1]

    @property
    def pages(self) -> int:
        return divided(self.memory, self.page_bytes)[0]

    @property
    def serving(self) -> int:
        """Bytes of the process when all of it is used, with jobs in one precision."""
        return PROCESS_BYTES + self.weights + self.memory

    @property
    def every_precision(self) -> int:
        """Bytes of the process once jobs have used every precision: `serving` and all rounded copies."""
        # Products of rounded weights are kept beside the others, within the same bound.
        more = (COMPOSED_BYTES - model.composed for model in self.models if model.copies and model.composed)
        return self.serving + sum(model.copies for model in self.models) + sum(more)

    @property
    def loading(self) -> int:
        """Most bytes of the process while it loads."""
        before, peak = 0, 0
        for model in self.models:
            # Elsewhere than on the CPU, only what is kept ever arrives.
            peak = max(peak, before + (model.loading if self.device == "cpu" else model.kept))
            before += model.kept
        return PROCESS_BYTES + peak

    @property
    def fits(self) -> bool:
        return self.memory > 0 and max(self.serving, self.loading) <= self.machine

    def jobs(self, model: ModelPlan) -> int:
        """How many jobs of a model there is room for at once."""
        return self.memory // model.job if model.job else 0

    def seconds(self, model: ModelPlan) -> tuple[float, float] | None:
        """A discovery, between these."""
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
) -> Plan:
    """The plan for models, from their configurations and the headers of their weights.

    Args:
        sources: directory or hub id by name.
        memory: bytes for jobs and sessions; None for half of what the weights leave.
        load: the jobs to plan for.
        machine: bytes that there are on the device; None for the machine's memory.
        executor: one of `engine.EXECUTORS`.
        precision: name of the policy by which weights are to be kept rounded; None for full precision.
        device: name of what models are kept on.

    Raises InvalidRequestError (field ``model``) for a model that cannot be served.
    """
    load = load or Load()
    machine = machine_bytes() if machine is None else machine
    outlines, models = [], []
    for name, source in sources.items():
        recording = Recording(TRANSFORMS[executor])
        outlines.append(outline(source, recording))
        model = _plan_model(name, outlines[-1], recording, load, executor)
        models.append(_rounded(model, source, recording, precision) if precision else model)
    weights = sum(model.weights for model in models)
    left = max(0, machine - PROCESS_BYTES - weights)
    return Plan(
        models=tuple(models),
        load=load,
        machine=machine,
        memory=int(left * DEFAULT_SHARE) if memory is None else memory,
        given=memory is not None,
        page_bytes=page_bytes_for([found.model for found in outlines]),
        precision=precision,
        device=device,
    )


def _rounded(model: ModelPlan, source: str, recording: Recording, precision: str) -> ModelPlan:
    """The plan of a model whose weights are kept rounded: one linear map at a time is in full precision."""
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
