"""The seam between searches and tensors: what is measured, and who measures it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NewType, Protocol

from pahq_server.core.circuit import Circuit
from pahq_server.core.graph import Graph
from pahq_server.core.task import PromptTask, TaskSpec, TokenizedText, TokenTask


@dataclass(frozen=True)
class Objective:
    """What shapes the hypotheses of a job and how they are scored."""

    model: str
    task: TaskSpec
    metric: str
    ablation: str
    kv_receivers: str
    precision: str


@dataclass
class CleanRun:
    """What the full model does on the clean prompts. Filled in by `Engine.open`, before any score.

    Args:
        margins: logit[answer] - logit[wrong answer] at every place where the metric is read, prompt by
            prompt, whatever the metric is; None for a task without answers or wrong answers.
    """

    margins: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ResolvedObjective:
    """A measurement that was found valid: everything that determines its scores.

    Args:
        measurement: as it was asked for.
        task: its prompts, as tokens.
        graph: of the model.
        revision: of the model.
        own_current: whether the score of one circuit depends on which receiver is under investigation, so
            that a row is to be compared with the current circuit under its own `PatchedPass.receiver`.
        causal: whether a position sees only itself and earlier ones.
        prompts: the task's prompts as they were sent, or as the server generated them; None where an engine
            does not tell.
        warnings: what `Engine.resolve` found in the request that may mislead whoever made it, though it is
            valid: full sentences that say what it means and what to do. They may quote the request, so
            they are for its user and not for the log.
        clean_run: empty until `Engine.open` has run the clean prompts.
    """

    objective: Objective
    task: TokenTask
    graph: Graph
    revision: str
    baseline_depends_on_promotion: bool = False
    causal: bool = True
    prompts: PromptTask | None = None
    warnings: tuple[str, ...] = ()
    clean_run: CleanRun = field(default_factory=CleanRun, compare=False)


@dataclass(frozen=True, eq=False)
class BaseCircuit:
    """A circuit whose values an executor may keep to compute others from.

    A score is a pure function of the chain of anchors below it and of its own circuit, so the
    chain is chosen by the search and never by load.

    Args:
        circuit: the anchored circuit.
        parent: the anchor it is computed from; None to compute it from scratch.
    """

    circuit: Circuit
    parent: BaseCircuit | None = None


@dataclass(frozen=True, eq=False)
class PatchedPass:
    """One hypothesis: the anchor's circuit without some of its edges.

    Args:
        anchor: what it is relative to.
        removed: edges that it lacks; the last one leads into the receiver under investigation.
        receiver: under investigation, where no removed edge tells it.
    """

    base_circuit: BaseCircuit
    removed: tuple[int, ...] = ()
    receiver: int | None = None

    @property
    def promoted_receiver(self) -> int | None:
        """The receiver under investigation; None if the row has none."""
        if self.receiver is not None or not self.removed:
            return self.receiver
        return self.base_circuit.circuit.graph.edge_ends(self.removed[-1])[1]

    @property
    def circuit(self) -> Circuit:
        return self.base_circuit.circuit.without(self.removed)


@dataclass(frozen=True)
class ModelInfo:
    """Public description of a served model."""

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


@dataclass(frozen=True)
class Capabilities:
    """What an engine offers, by name."""

    device: str
    metrics: tuple[str, ...]
    ablations: tuple[str, ...]
    precisions: tuple[str, ...]
    tasks: tuple[str, ...]
    hardware: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class HeadStoreUsage:
    """What the stores of full-precision copies have done since the start; of a server without any, zeros.

    Args:
        hits, misses: copies that were there when they were wanted, and that had to be read.
        bytes_moved: of all copies that were read.
    """

    hits: int = 0
    misses: int = 0
    bytes_moved: int = 0


@dataclass(frozen=True)
class Estimate:
    """What a discovery will take, roughly; known before it starts.

    Args:
        memory_bytes: that its job keeps in the pool of pages.
        least_seconds, most_seconds: alone on the machine: every verdict needs one head and the unembedding,
            or every node above its receiver.
        streams_weights: whether weights are read from the checkpoint's files again and again, which is
            reckoned for each evaluation in ``most_seconds``.
    """

    memory_bytes: int
    least_seconds: float
    most_seconds: float
    streams_weights: bool = False


@dataclass(frozen=True)
class MemoryUsage:
    """The pool of pages in which jobs keep what outlives a batch.

    Args:
        page_bytes: size of a page.
        pages: how many there are.
        used: that hold something.
        shared: that more than one owner holds.
        peak_used: the most that were used at a time.
        scratch_bytes: memory for the values of one batch, beside the pool.
        preemptions: how often a job's values were dropped to make room, and computed again later.
        head_store: of all models that keep rounded weights only.
    """

    page_bytes: int
    pages: int
    used: int
    shared: int
    peak_used: int
    scratch_bytes: int
    preemptions: int
    head_store: HeadStoreUsage = HeadStoreUsage()


# Names the tensors of one job inside an engine.
EngineStateId = NewType("EngineStateId", int)


@dataclass(frozen=True, eq=False)
class Work:
    """Rows of one job."""

    session: EngineStateId
    rows: Sequence[PatchedPass]


# The metric of every row in order, or why the work failed.
Outcome = list[float] | Exception


class Engine(Protocol):
    """Runs models. Called from the one worker thread where nothing else is said."""

    def capabilities(self) -> Capabilities: ...

    def memory_usage(self) -> MemoryUsage:
        """May be called from any thread."""
        ...

    def models(self) -> list[ModelInfo]: ...

    def resolve(self, objective: Objective) -> ResolvedObjective:
        """Checks a measurement completely; from any thread. Raises InvalidRequestError or NotFoundError."""
        ...

    def tokenize(self, model: str, texts: Sequence[str], special: bool, prompt: str) -> list[TokenizedText]:
        """Shows how texts are tokenized, as prompts and as answers. May be called from any thread.

        Args:
            model: name of a served model.
            texts: to tokenize.
            special: whether prompts get the special tokens that the tokenizer adds by itself.
            prompt: that the texts would answer; empty for none.

        Raises InvalidRequestError or NotFoundError.
        """
        ...

    def estimate(self, resolved: ResolvedObjective) -> Estimate:
        """What a discovery under this measurement will take. May be called from any thread."""
        ...

    def open(self, resolved: ResolvedObjective) -> EngineStateId:
        """Runs the clean and corrupted passes of a job and keeps what they give.

        Raises ResourceExhaustedError if there is no room beside the sessions that are open.
        """
        ...

    def score(self, work: Sequence[Work]) -> list[Outcome]:
        """One outcome per work, in order: a failing one does not hurt the others."""
        ...

    def close(self, session: EngineStateId) -> None:
        """Frees the tensors of a job."""
        ...

    def check(self) -> None:
        """Computes something whose result is known. Raises where the result is another, or none comes."""
        ...
