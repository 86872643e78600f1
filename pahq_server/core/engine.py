"""The engine as the rest of the server sees it: what is asked of a model, and who computes the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NewType, Protocol, TypeAlias

from pahq_server.core.generation import GenerationOffer
from pahq_server.core.graph import Graph
from pahq_server.core.operations import Operation
from pahq_server.core.pruning import NodeLayout
from pahq_server.core.task import PromptTask, TaskSpec, TokenIds, TokenizedText, TokenTask


@dataclass(frozen=True)
class Objective:
    """What is asked of a model, and how circuits of it are measured.

    Args:
        model: name of a served model.
        task: its prompts, or how to generate them.
        metric: name, such as ``kl_divergence``; lower is better.
        ablation: what removed edges carry: ``resample``, ``zero`` or ``mean``.
        kv_receivers: ``group`` or ``query``, see `Graph`.
        precision: name of a precision policy, such as ``fp32``.
    """

    model: str
    task: TaskSpec
    metric: str
    ablation: str
    kv_receivers: str
    precision: str


@dataclass
class CleanRun:
    """What the full model does on the clean prompts. `Engine.open` fills it in, before any operation runs.

    Args:
        margins: logit[answer] - logit[wrong answer] at every position where the metric is read, prompt by
            prompt, whatever the metric is; None for a task without answers or wrong answers.
    """

    margins: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ResolvedObjective:
    """An objective that was checked, with everything that determines the scores measured under it.

    Args:
        objective: as it was asked for.
        task: its prompts and answers as token ids.
        graph: graph of the model.
        revision: revision of the model: SHA-256 over configuration and weights, hexadecimal.
        baseline_depends_on_promotion: whether the score of one circuit depends on which receiver is under
            investigation. A pass is then to be compared with the current circuit measured under the same
            `PatchedPass.promoted_receiver`.
        causal: whether a position sees only itself and earlier ones.
        norms: whether the model has norms.
        prompts: the task's prompts as they were sent, or as the server generated them; None if the engine
            does not know them.
        warnings: what may mislead the user about this request although it is valid: full sentences that say
            what it means and what to do. They may quote the request, so they must not be logged.
        clean_run: empty until `Engine.open` has run the clean prompts.
        activations: whether `Engine.open` runs the prompts. If not, only operations that need no clean run
            can be asked for.
        generation: what text can be generated with the model; None if none can, or if ``activations``.
        no_generation: why no text can be generated, and what to do; empty if it can.
        circuit_generation: what text can be generated under a circuit; None as ``generation``.
        no_circuit_generation: why none can; empty if it can.
        nodes: which nodes the model has; None if the engine does not know.
        gated_mlps: whether its MLPs have a gate.
    """

    objective: Objective
    task: TokenTask
    graph: Graph
    revision: str
    baseline_depends_on_promotion: bool = False
    causal: bool = True
    norms: bool = True
    prompts: PromptTask | None = None
    warnings: tuple[str, ...] = ()
    clean_run: CleanRun = field(default_factory=CleanRun, compare=False)
    activations: bool = True
    generation: GenerationOffer | None = None
    no_generation: str = ""
    circuit_generation: GenerationOffer | None = None
    no_circuit_generation: str = ""
    nodes: NodeLayout | None = None
    gated_mlps: bool = False


@dataclass(frozen=True)
class ModelInfo:
    """Public description of a served model.

    Args:
        generation: name of the backend that generates text with it; empty if none does.
        no_generation: why none does, and what to do; empty if one does.
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
class Capabilities:
    """What an engine offers, by name; ``generation`` is the backend that generates text, empty for none."""

    device: str
    metrics: tuple[str, ...]
    ablations: tuple[str, ...]
    precisions: tuple[str, ...]
    tasks: tuple[str, ...]
    hardware: dict[str, str] = field(default_factory=dict)
    generation: str = ""


class WorkerState(Enum):
    """What a worker is doing."""

    STARTING = auto()  # it loads the models
    READY = auto()  # it computes, or waits for something to compute
    LOST = auto()  # it cannot be reached, and is being started again
    REFUSED = auto()  # it cannot be used, and starting it again would not help


@dataclass(frozen=True)
class WorkerStatus:
    """What is known of one worker.

    Args:
        number: of the worker, from 0; it stays the same when the worker is started again.
        state: what it is doing.
        host: name of its machine; empty as long as that is not known.
        device: what it computes on, in words; empty as long as that is not known.
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
class HeadStoreUsage:
    """What the head stores have done since the server started; zeros for a server without rounded weights.

    A head store keeps full-precision copies of the weights of some heads beside rounded weights.

    Args:
        hits: how often a copy was there when it was wanted.
        misses: how often a copy had to be read.
        bytes_moved: size of all copies that were read, in bytes.
    """

    hits: int = 0
    misses: int = 0
    bytes_moved: int = 0


@dataclass(frozen=True)
class Estimate:
    """What a job will take, roughly; known before it starts.

    Args:
        memory_bytes: what the job keeps in the pool of pages.
        least_seconds, most_seconds: bounds of its time, alone on the machine. At least, every patched pass
            computes one head and the unembedding; at most, every node downstream of its receiver.
        streams_weights: whether weights are read from the checkpoint's files again and again; the time for
            that is in ``most_seconds``.
    """

    memory_bytes: int
    least_seconds: float
    most_seconds: float
    streams_weights: bool = False


@dataclass(frozen=True)
class MemoryUsage:
    """How full the pool of pages is, in which jobs keep the tensors that outlive a batch.

    Args:
        page_bytes: size of a page.
        pages: number of pages of the pool.
        used: number of pages that hold something.
        shared: number of pages that more than one owner holds.
        peak_used: the largest number of pages that were used at a time.
        scratch_bytes: memory for the values of one batch, beside the pool.
        preemptions: how often a job's values were dropped to make room, and computed again later.
        head_store: totals of the head stores of all models.
    """

    page_bytes: int
    pages: int
    used: int
    shared: int
    peak_used: int
    scratch_bytes: int
    preemptions: int
    head_store: HeadStoreUsage = HeadStoreUsage()


# Names the tensors that an engine holds for one job or session.
EngineStateId = NewType("EngineStateId", int)


@dataclass(frozen=True, eq=False)
class Work:
    """One operation on the tensors of one job or session."""

    state: EngineStateId
    operation: Operation


# The result of an operation, or why it failed (an Exception). An engine with several workers gives `Timed`
# outcomes, and `UNDER_WAY` for operations that are not done.
Outcome: TypeAlias = object


@dataclass(frozen=True)
class Timed:
    """An outcome with what it took.

    Args:
        outcome: the result, or why it failed.
        seconds: of all workers together.
    """

    outcome: Outcome
    seconds: float


class UnderWay(Enum):
    """Its only value stands for an operation that goes on: the same is to be asked for again."""

    UNDER_WAY = auto()


UNDER_WAY = UnderWay.UNDER_WAY


class Engine(Protocol):
    """Runs models. Methods are called from the one worker thread where nothing else is said."""

    def capabilities(self) -> Capabilities:
        """Returns what can be asked for. May be called from any thread."""
        ...

    def memory_usage(self) -> MemoryUsage:
        """Says how full the pool of pages is. May be called from any thread."""
        ...

    def workers(self) -> list[WorkerStatus]:
        """Describes the workers, in the order of their numbers. May be called from any thread."""
        ...

    def unavailable(self) -> str:
        """Says why nothing can be computed at present; empty if it can. May be called from any thread.

        Does not wait for a worker. Operations that are asked for meanwhile wait until one is there again.
        """
        ...

    def models(self) -> list[ModelInfo]:
        """Describes the served models. May be called from any thread."""
        ...

    def resolve(self, objective: Objective, activations: bool = True) -> ResolvedObjective:
        """Checks an objective completely. May be called from any thread.

        Args:
            objective: what is asked for.
            activations: whether the prompts are to be run when the state is opened. If not, the task needs
                nothing that only metric or ablation need, and its activations need not fit into memory.

        Raises InvalidRequestError, or NotFoundError where the model is not served.
        """
        ...

    def tokenize(self, model: str, texts: Sequence[str], special: bool, prompt: str) -> list[TokenizedText]:
        """Shows how texts are tokenized, as prompts and as answers. May be called from any thread.

        Args:
            model: name of a served model.
            texts: the texts to tokenize.
            special: whether prompts get the special tokens that the tokenizer adds by itself.
            prompt: the prompt that the texts would answer; empty for none.

        Raises InvalidRequestError or NotFoundError.
        """
        ...

    def token_texts(
        self, model: str, prompts: Sequence[TokenIds], tokens: Sequence[Sequence[int]]
    ) -> list[list[str]]:
        """Returns tokens as text. May be called from any thread.

        Args:
            model: name of a served model.
            prompts: token ids.
            tokens: per prompt, tokens that may follow it.

        Returns:
            Per prompt, what each token adds to its text; empty texts for a model without a tokenizer.
        """
        ...

    def estimate(
        self, resolved: ResolvedObjective, weight: float | None = None, tests: tuple[int, int] | None = None
    ) -> Estimate:
        """Estimates what a job with this objective takes. May be called from any thread.

        Args:
            resolved: the objective.
            weight: sum of `Operation.weight` over the job; None for a search over edges.
            tests: the least and the most tests of such a search; None for each edge once.
        """
        ...

    def open(self, resolved: ResolvedObjective) -> EngineStateId:
        """Runs the clean and corrupted prompts and keeps their activations, unless the objective needs none.

        Raises ResourceExhaustedError if there is no room beside what is open already.
        """
        ...

    @property
    def concurrent(self) -> bool:
        """Whether `run` takes operations of all classes at once, and returns when one of them is done.

        The others go on meanwhile, until they are asked for again or their state is closed.
        """
        ...

    def run(self, work: Sequence[Work]) -> list[Outcome]:
        """Runs operations, at most one on each state; of one class unless the engine is `concurrent`.

        What is under way is asked for again with the very same operation; another one on its state takes its
        place.

        Returns:
            One outcome per work, in order. An operation that fails has its exception as the outcome and does
            not affect the others. Of a concurrent engine at least one is not `UNDER_WAY`; the rest are
            `Timed`, or a NoWorkerError where there is no worker, after which it can be run again.
        """
        ...

    def close(self, state: EngineStateId) -> None:
        """Frees the tensors of a job or session."""
        ...

    def check(self) -> None:
        """Computes something whose result is known. Raises if it fails or the result is wrong."""
        ...
