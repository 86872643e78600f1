"""Answers of a server other than artifacts: evaluations, estimates, models, and the server itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pahq_client.errors import OtherModel
from pahq_client.graph import CircuitMetric
from pahq_client.task import BuiltinTask, Task, task_of

# How many digits of a revision are shown.
SHORT_REVISION = 12


class WithProvenance:
    """Reads the ``provenance`` of a result: what was asked for, and what happened in the run.

    A file may hold anything in it, so every property copes with values of other types.
    """

    provenance: Mapping[str, Any]

    @property
    def request(self) -> Mapping[str, Any]:
        """``provenance.request``, what determines the result; empty if it is not known."""
        return mapping(self.provenance.get("request"))

    @property
    def run(self) -> Mapping[str, Any]:
        """``provenance.run``, what happened this time; empty if it is not known."""
        return mapping(self.provenance.get("run"))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may mislead about the result, in the words of the server, each with what to do."""
        found = self.run.get("warnings")
        return tuple(text for text in found if isinstance(text, str)) if isinstance(found, list) else ()

    @property
    def model_revision(self) -> str:
        """The revision of the model that the job ran on; empty if it is not known."""
        revision = self.request.get("model_revision")
        return revision if isinstance(revision, str) else ""

    @property
    def model(self) -> str:
        """The name of the model that the job ran on; empty if it is not known."""
        name = self.run.get("model")
        return name if isinstance(name, str) else ""

    @property
    def task(self) -> Task | BuiltinTask | None:
        """The task of the job, to measure on it again.

        None unless it is a built-in one, or the job was asked to include its prompts.
        """
        return task_of(self.run)

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What the job was asked for (method, threshold, ablation, ...), as far as it is known."""
        return mapping(self.request.get("parameters"))


def mapping(value: object) -> Mapping[str, Any]:
    """Returns a part of a provenance; an empty one for a value of another type."""
    return value if isinstance(value, Mapping) else {}


def check_same_revision(
    a: WithProvenance, b: WithProvenance, allow_other_model: bool, call: str = "compare"
) -> None:
    """Raises OtherModel if two results are of different models and that is not allowed.

    Args:
        a, b: the results.
        allow_other_model: whether they may be.
        call: the function whose argument allows it, for the error.
    """
    revisions = a.model_revision, b.model_revision
    if all(revisions) and revisions[0] != revisions[1] and not allow_other_model:
        short = " and ".join(revision[:SHORT_REVISION] for revision in revisions)
        detail = (
            f"these are of different models (revisions {short}), whose edges of the same names do other "
            f"things. To compare them all the same, use {call}(..., allow_other_model=True), or pahq with "
            "--allow-other-model"
        )
        raise OtherModel(*revisions, detail)


@dataclass(frozen=True)
class Evaluation:
    """A metric, measured on a circuit, the full model and the empty circuit. Lower is better.

    Args:
        metric: its name.
        value: the metric of the circuit.
        full: the metric of the full model.
        empty: the metric of the empty circuit.
        num_edges_total: edges of the graph.
        model: name of the model that it was measured on.
        ablation, kv_receivers, precision: how it was measured, also where the caller left it open.
        warnings: what may mislead about the figures, each with what to do.
    """

    metric: str
    value: float
    full: float
    empty: float
    num_edges_total: int = 0
    model: str = ""
    ablation: str = ""
    kv_receivers: str = ""
    precision: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def faithfulness(self) -> float | None:
        """How much of the way from the empty circuit (0) to the full model (1) the circuit goes.

        None if the two measure the same, so that there is no way to go.
        """
        return CircuitMetric(self.metric, self.value, self.full, self.empty).faithfulness

    def __repr__(self) -> str:
        faithfulness = self.faithfulness
        shown = {
            "metric": self.metric,
            "value": self.value,
            "full": self.full,
            "empty": self.empty,
            "faithfulness": faithfulness if faithfulness is None else float(f"{faithfulness:.4g}"),
            "model": self.model,
            "ablation": self.ablation,
            "kv_receivers": self.kv_receivers,
            "precision": self.precision,
            "warnings": self.warnings,
        }
        parts = (f"{key}={value!r}" for key, value in shown.items() if value not in ("", ()))
        return f"Evaluation({', '.join(parts)})"


@dataclass(frozen=True)
class Estimate:
    """What a job would take, roughly.

    Args:
        memory_bytes: kept on the server, beside the model, while it runs.
        least_seconds, most_seconds: bounds, if it were alone on the server.
        streams_weights: whether weights are read from files again and again, which makes it slow: the server
            keeps rounded ones only, and the job asks for full precision.
        warnings: what may mislead about the answer, as far as the request shows it, each with what to do.
    """

    memory_bytes: int
    least_seconds: float
    most_seconds: float
    streams_weights: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """A served model.

    Args:
        name: name to use in requests.
        architecture: for example ``gpt2``.
        revision: SHA-256 over configuration and weights, hexadecimal.
        layers: number of transformer layers.
        heads: query heads per layer.
        kv_heads: key/value heads per layer.
        d_model: width of the residual stream.
        vocabulary: size of the input vocabulary.
        context: longest prompt, in tokens.
        parameters: number of parameters.
        tokenizer: whether prompts may be text.
        edges_group: edges of its graph with ``kv_receivers="group"``.
        edges_query: edges of its graph with ``kv_receivers="query"``.
        generation: the backend that generates text with it, ``transformers`` or ``vllm``; empty if none does.
        no_generation: why none does, with what to do; empty if one does.
    """

    name: str
    architecture: str
    revision: str
    layers: int
    heads: int
    kv_heads: int
    d_model: int
    vocabulary: int
    context: int
    parameters: int
    tokenizer: bool
    edges_group: int
    edges_query: int
    generation: str = ""
    no_generation: str = ""


@dataclass(frozen=True)
class TokenizedText:
    """A text, as a model tokenizes it.

    Args:
        text: what was tokenized.
        ids: its token ids as a prompt.
        tokens: the same tokens as the vocabulary writes them, often with a mark for a space in front.
        answer_id: the token that the text is as an answer; None if it is no single token.
        answer_token: the same as the vocabulary writes it; empty if there is none.
        answer_note: why it is no answer, or what to be careful about; empty if there is nothing to say.
    """

    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    answer_id: int | None
    answer_token: str
    answer_note: str


@dataclass(frozen=True)
class MemoryUsage:
    """The memory that jobs and sessions take beside the models: a pool of pages, and scratch memory.

    Args:
        page_bytes: size of a page.
        pages: number of pages of the pool.
        used_pages: number of pages that hold something, including kept prefixes of prompts.
        shared_pages: number of pages that more than one owner holds.
        peak_used_pages: the largest number of pages that were used at a time.
        scratch_bytes: memory for the values of one step, beside the pool.
        preemptions: how often values were dropped to make room, to be computed again.
        head_store_hits: how often a full-precision copy of a head, beside rounded weights, was there when it
            was wanted.
        head_store_misses: how often such a copy had to be read.
        head_store_bytes_moved: size of all copies that were read, in bytes.
    """

    page_bytes: int
    pages: int
    used_pages: int
    shared_pages: int
    peak_used_pages: int
    scratch_bytes: int
    preemptions: int
    head_store_hits: int = 0
    head_store_misses: int = 0
    head_store_bytes_moved: int = 0


@dataclass(frozen=True)
class Limits:
    """What each user may have; None where there is no limit.

    Args:
        running_jobs: jobs that are worked on at a time; further ones wait.
        queued_jobs: jobs that wait.
        prompt_tokens: tokens of all prompts of unfinished jobs.
        stored_results: results that are kept, and jobs that may still give one.
        requests_per_second: calls, over time.
        burst: calls at once after a pause.
        concurrent_calls: under way at the same time, streams apart.
        concurrent_streams: under way at the same time.
    """

    running_jobs: int | None = None
    queued_jobs: int | None = None
    prompt_tokens: int | None = None
    stored_results: int | None = None
    requests_per_second: float | None = None
    burst: int | None = None
    concurrent_calls: int | None = None
    concurrent_streams: int | None = None


class WorkerState(StrEnum):
    """What a worker is doing; compares equal to its name.

    ``STARTING``: it loads the models. ``READY``: it computes, or waits for something to compute. ``LOST``: it
    cannot be reached, and is being started again. ``REFUSED``: it cannot be used as it is.
    """

    STARTING = "STARTING"
    READY = "READY"
    LOST = "LOST"
    REFUSED = "REFUSED"


@dataclass(frozen=True)
class Worker:
    """One device of a server that computes, with all models.

    Args:
        number: from 0; it stays the same when the worker is started again.
        state: what it is doing.
        host: name of its machine; empty as long as that is not known.
        device: in words; empty as long as it is not known.
        hardware: what the last bits of a score depend on, by name: processor, versions, threads.
        reason: why it is lost or refused, or takes long to start; empty for all others.
        restarts: how often it was started again, since the server started.
        batches: how many batches of operations it has computed, since the server started.
    """

    number: int
    state: WorkerState
    host: str = ""
    device: str = ""
    hardware: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    restarts: int = 0
    batches: int = 0


@dataclass(frozen=True)
class ServerInfo:
    """What a server is and can do.

    Args:
        version: version of the pahq distribution.
        device: the device that the models run on, in words.
        methods: names of methods that jobs can run.
        metrics: names of metrics.
        ablations: names of ablations.
        precisions: names of precision policies.
        tasks: names of built-in tasks.
        max_message_bytes: largest message that it accepts.
        memory: memory of its jobs and sessions; None if it does not tell.
        limits: limits of each user.
        generation: the backend that generates text, ``transformers`` or ``vllm``; empty if none does.
        workers: the devices that compute; empty if the server does not tell.
        unavailable: why nothing can be computed at present, while jobs are accepted and wait; empty if it
            can.
    """

    version: str
    device: str
    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    ablations: tuple[str, ...]
    precisions: tuple[str, ...]
    tasks: tuple[str, ...]
    max_message_bytes: int
    memory: MemoryUsage | None = None
    limits: Limits = Limits()
    generation: str = ""
    workers: tuple[Worker, ...] = ()
    unavailable: str = ""
