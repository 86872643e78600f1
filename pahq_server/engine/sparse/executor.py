"""The sparse executor: scores many patched passes at once, of one job or several."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pahq_server.core.circuit import BaseCircuit, PatchedPass
from pahq_server.core.errors import NonFiniteMetricError
from pahq_server.core.graph import Graph
from pahq_server.core.task import TokenTask
from pahq_server.engine.metrics import Scores, finite
from pahq_server.engine.sparse.base_activations import BaseActivations
from pahq_server.engine.sparse.batch import PassBatch
from pahq_server.engine.sparse.batch_forward import BatchForward
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.engine.sparse.positions import POSITION_CODES, PositionSet, TokenLayout
from pahq_server.engine.sparse.quantized import QuantizedLinears, QuantizedModel
from pahq_server.engine.sparse.scoring import (
    DIFFERENCE_METRICS,
    ExactLogitChanges,
    LogitChanges,
    QuantizedLogitChanges,
    answer_margins,
    full_logits,
)
from pahq_server.engine.sparse.unpatched import FINAL, RunActivations, UnpatchedRuns
from pahq_server.engine.sparse.variants import as_tensor, pick
from pahq_server.engine.sparse.weights import SparseWeights
from pahq_server.models.architecture import Model

# Bytes for the values of one batch, where a caller does not say.
DEFAULT_SCRATCH = 512 << 20


def pass_bytes(base: BaseActivations, keep: bool) -> int:
    """Returns the most bytes that a pass may take: changes of all live nodes, and states of their receivers.

    Args:
        base: activations that the pass is computed from.
        keep: whether the pass becomes a base circuit, so that the states of all heads' receivers are kept.
            Otherwise only those of one layer are there at a time.
    """
    graph, arch, plan = base.graph, base.weights.arch, base.plan
    counts = np.array(
        [0, *(base.tokens.count(position_set) for position_set in POSITION_CODES)], dtype=np.int64
    )
    tokens_S = counts[plan.sender_codes][1:].reshape(graph.layers, graph.senders_per_layer)
    changes = (
        int(tokens_S[:, : graph.heads].sum()) * arch.d_head
        + int(tokens_S[:, graph.heads :].sum()) * arch.d_model
    )
    tokens_R = counts[plan.receiver_codes][:-1].reshape(graph.layers, graph.receivers_per_layer)
    states = tokens_R[:, : graph.heads + 2 * graph.kv_units].sum(1) * (2 * arch.d_head + 1)
    of_states = int(states.sum() if keep else states.max(initial=0))
    # In addition, the input of one receiver and the inputs of the metric.
    inputs = 3 * int(counts.max()) * arch.d_model
    return (changes + of_states + inputs) * base.weights.dtype.itemsize


class SharedModel:
    """A model, and what its jobs share.

    Args:
        model: folded (see `models.folding`).
        memory: of the device that the model is on.
        namespace: names the model's weights among all models on the device.
        quantized: the matrices of a precision policy, for patched passes; None for full precision.
    """

    def __init__(
        self, model: Model, memory: DeviceMemory, namespace: bytes, quantized: QuantizedModel | None = None
    ) -> None:
        self.model, self.memory, self.namespace, self._quantized = model, memory, namespace, quantized
        self._weights: dict[Graph, SparseWeights] = {}

    def weights(self, graph: Graph) -> SparseWeights:
        """Returns the model's weights under a graph."""
        if graph not in self._weights:
            layers = None if self._quantized is None else self._quantized.layers
            products = self.memory.products(self.namespace)
            self._weights[graph] = SparseWeights(self.model, graph, layers, products)
        return self._weights[graph]

    def linears(self, graph: Graph) -> QuantizedLinears | None:
        """Returns the policy's linear maps for patched passes; None for full precision."""
        return None if self._quantized is None else QuantizedLinears(self.weights(graph), self._quantized)


# Stands for no limit on the number of base circuits.
NO_LIMIT = 1 << 30
# After how many calls with enough memory a limited job tries without limits again: at first, and at most,
# when tries keep failing.
FIRST_RETRY_CALLS, MAX_RETRY_CALLS = 4, 256


class SparseExecutor:
    """The activations of one job, and the scores of its passes. Whoever makes one releases it.

    Args:
        shared: the model and what its jobs share.
        graph: of the model.
        task: prompts; ``resample`` ablation needs corrupted ones.
        metric: name of a metric.
        ablation: ``resample``, ``zero`` or ``mean``.

    Raises OutOfPagesError if the pool has no room for the activations of the clean and the ablated run.
    """

    @torch.inference_mode()
    def __init__(
        self, shared: SharedModel, graph: Graph, task: TokenTask, metric: str, ablation: str
    ) -> None:
        self.graph, self.weights, self.linears = graph, shared.weights(graph), shared.linears(graph)
        self._task, self._ablation, self.memory = task, ablation, shared.memory
        tokens = TokenLayout.of(shared.model.architecture, task, ablation, shared.model.device)
        prefixes = shared.memory.prefixes
        self.unpatched = UnpatchedRuns(
            self.weights, shared.model, tokens, ablation, prefixes, shared.namespace
        )
        # Limits under memory pressure: how many base circuits (without their parents) may have activations at
        # a time, and whether these keep nothing that can be computed again.
        self.max_base_circuits, self.recomputes = NO_LIMIT, False
        # Calls in a row that had enough memory, and after how many of them the limits are lifted.
        self._calls_with_room, self._calls_before_retry = 0, FIRST_RETRY_CALLS
        # Base activations of the last call, by the base circuit's id. The circuit is held so that its id
        # stays unique.
        self._bases: dict[int, tuple[BaseCircuit, BaseActivations]] = {}
        try:
            self._full_ND = self._normed(self.unpatched.clean)
            self._metric = DIFFERENCE_METRICS[metric](self.weights, task, self._full_ND, self.linears)
        except BaseException:
            self.unpatched.release()
            raise
        shared.memory.jobs.add(self)

    def score(self, passes: Sequence[PatchedPass], scratch_bytes: int = DEFAULT_SCRATCH) -> list[float]:
        """Returns the metric of every pass, in order. Raises NonFiniteMetricError or OutOfPagesError."""
        (outcome,) = score_together([(self, passes)], scratch_bytes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    @torch.inference_mode()
    def clean_margins(self) -> tuple[float, ...] | None:
        """Returns the margins of the clean run, see `core.engine.CleanRun`."""
        return answer_margins(self.weights, self._task, self._full_ND)

    @torch.inference_mode()
    def unpatched_logits(self, corrupted: bool, positions: slice) -> Tensor:
        """Returns the full model's logits at some metric positions, see `engine.backends.Executor`."""
        normed_ND = self._full_ND
        if corrupted:
            assert self._ablation == "resample"
            normed_ND = self._normed(self.unpatched.ablated)
        return full_logits(self.weights, normed_ND[positions])

    def _normed(self, run: RunActivations) -> Tensor:
        """Returns the normed input of the unembedding at the metric positions of an unpatched run: [N, D]."""
        final = run.get(self.graph.layers, FINAL)
        return self.weights.normed(
            self.unpatched.tokens.narrow(final, PositionSet.WINDOW, PositionSet.METRIC)[None]
        )[0]

    def release(self) -> None:
        """Frees all activations. May be called again."""
        self.drop_bases()
        self.unpatched.release()

    # Memory pressure

    @property
    def memory_limited(self) -> bool:
        """Whether memory was short. Such a job is scored by itself."""
        return self.recomputes or self.max_base_circuits < NO_LIMIT

    def limit_memory(self, max_base_circuits: int, recomputes: bool) -> None:
        """Limits what the job takes, until there has been enough memory for a while (see `note_room`).

        Args:
            max_base_circuits: how many base circuits, without their parents, may have activations at a time.
            recomputes: whether these keep nothing that can be computed again.
        """
        if not self.memory_limited and self._calls_with_room < self._calls_before_retry:
            # The last try without limits came too early, so the next one comes later.
            self._calls_before_retry = min(MAX_RETRY_CALLS, 2 * self._calls_before_retry)
        self.max_base_circuits, self.recomputes, self._calls_with_room = max_base_circuits, recomputes, 0

    def note_room(self) -> None:
        """Notes a call that had enough memory, and lifts the limits after several in a row.

        What took the memory may be gone. A try that fails costs a call, so each failure doubles the wait for
        the next. Scores do not depend on the limits.
        """
        self._calls_with_room += 1
        if self._calls_with_room < self._calls_before_retry:
            return
        if self.memory_limited:
            self.max_base_circuits, self.recomputes, self._calls_with_room = NO_LIMIT, False, 0
            for _, base in self._bases.values():
                base.recomputes = False
        else:
            self._calls_before_retry = FIRST_RETRY_CALLS

    # Bases

    def base(self, base_circuit: BaseCircuit) -> BaseActivations:
        """Returns the activations of a base circuit that has some."""
        return self._bases[id(base_circuit)][1]

    def has_base(self, base_circuit: BaseCircuit | None) -> bool:
        """Tells whether a base circuit has activations."""
        return id(base_circuit) in self._bases

    def missing_bases(self, passes: Sequence[PatchedPass]) -> list[BaseCircuit]:
        """Drops base activations that these passes do not need.

        Returns the base circuits that the passes need, with their ancestors, and that have no activations.
        """
        wanted = {id(a): a for each in passes for a in _lineage(each.base_circuit)}
        self._drop([key for key in self._bases if key not in wanted])
        return [base_circuit for key, base_circuit in wanted.items() if key not in self._bases]

    def read_ahead(self, passes: Sequence[PatchedPass]) -> None:
        """Announces the heads that these passes, and probably the next ones, promote.

        The heads are copied to the device while it computes.
        """
        if self.linears is None or not self.linears.promotes or not self.weights.copies_ahead:
            return
        receivers = [r for r in dict.fromkeys(each.promoted_receiver for each in passes) if r is not None]
        # ACDC goes from the last receiver to the first, so the one before comes next.
        following = [] if not receivers or not min(receivers) else [min(receivers) - 1]
        self.weights.read_ahead([*receivers, *following])

    def add_base(self, base_circuit: BaseCircuit, base: BaseActivations) -> None:
        """Keeps the activations of a base circuit."""
        base.recomputes = self.recomputes
        self._bases[id(base_circuit)] = (base_circuit, base)

    def trim_ablations(self, room: int) -> int:
        """Drops remembered changes by removed edges until they take at most ``room`` bytes.

        Returns the bytes that the remaining ones take.
        """
        taken = 0
        for _, base in reversed(self._bases.values()):
            taken += base.trim_ablations(room - taken)
        return taken

    def drop_bases(self) -> bool:
        """Drops all base activations, which are computed again when passes need them.

        Returns whether there were any.
        """
        keys = list(self._bases)
        self._drop(keys)
        return bool(keys)

    def _drop(self, keys: Sequence[int]) -> None:
        # Children are dropped before their parents: they were added later.
        for key in reversed(keys):
            self._bases.pop(key)[1].release()

    # Scores

    def metric(self, forward: BatchForward, passes: Sequence[int]) -> list[float]:
        """Returns the scores of some passes of a batch. Raises NonFiniteMetricError.

        Args:
            forward: the batch after its forward pass.
            passes: numbers of passes in the batch, all of this job.
        """
        bases = forward.batch.bases
        used, base = np.unique(forward.batch.base_of[list(passes)], return_inverse=True)
        x_VND = torch.stack([bases[number].cached_input(self.graph.logits) for number in used])
        # The final streams of the bases come first in x_VND, then those of changed variants. `base_of_value`
        # gives the base of each of them, `index` the one of each pass.
        base_of_value, index = np.arange(len(used)), base
        if forward.final is not None:
            variant = forward.final.variant[list(passes)]
            changed = np.flatnonzero(variant >= 0)
            moved, first = np.unique(variant[changed], return_index=True)
            sizes = np.full(len(moved), x_VND.shape[1])
            if len(moved):
                x_VND = torch.cat([x_VND, pick(forward.final.values, moved, sizes).data])
                base_of_value = np.concatenate([base_of_value, base[changed[first]]])
            index = np.where(variant < 0, index, np.searchsorted(moved, variant) + len(used))
        wanted, index = np.unique(index, return_inverse=True)
        n_VND = self.weights.normed(x_VND[as_tensor(wanted, x_VND.device)])
        dn_VND = n_VND - self._full_ND
        changes: LogitChanges
        if self.linears is None:
            changes = ExactLogitChanges(dn_VND, self.weights.weights.w_u)
        else:
            of_value = base_of_value[wanted]
            n_of_bases = self.weights.normed(x_VND[: len(used)])
            of_bases = [partial(bases[number].logit_changes, self._full_ND) for number in used]
            moved_VND = n_VND - n_of_bases[as_tensor(of_value, n_VND.device)]
            means = [partial(bases[number].mean_logit_change, self._full_ND) for number in used]
            changes = QuantizedLogitChanges(of_bases, means, of_value.tolist(), moved_VND, self.linears)
        values = self._metric(dn_VND, changes).tolist()
        return [finite(values[i]) for i in index]


@torch.inference_mode()
def score_together(
    work: Sequence[tuple[SparseExecutor, Sequence[PatchedPass]]], scratch_bytes: int = DEFAULT_SCRATCH
) -> list[Scores]:
    """Scores passes of several jobs of one model, graph and policy in the same batches.

    A score has the same bits whatever passes of whatever jobs are computed beside it.

    Args:
        work: jobs and their passes.
        scratch_bytes: what the values of one batch may take, about. A batch has at least one pass.

    Returns:
        One outcome per job, in order.

    Raises OutOfPagesError if the pool has no room for the base activations.
    """
    _compute_bases(work, scratch_bytes)
    for job, passes in work:
        job.read_ahead(passes)
    numbered = [(number, each) for number, (_, passes) in enumerate(work) for each in passes]
    bases = [work[number][0].base(each.base_circuit) for number, each in numbered]
    scores: list[list[float]] = [[0.0] * len(passes) for _, passes in work]
    failed: dict[int, Exception] = {}
    first_of = np.cumsum([0, *(len(passes) for _, passes in work)])
    for part in _parts(bases, scratch_bytes, keep=False):
        forward = _forward(
            [bases[i] for i in part], [numbered[i][1].removed for i in part], work[0][0].linears
        )
        for number in dict.fromkeys(numbered[i][0] for i in part):
            mine = [index for index, i in enumerate(part) if numbered[i][0] == number]
            try:
                found = work[number][0].metric(forward, mine)
            except NonFiniteMetricError as error:
                failed[number] = error
                continue
            for index, score in zip(mine, found, strict=True):
                scores[number][part[index] - first_of[number]] = score
        del forward  # freed before the next batch takes as much memory
        work[0][0].memory.bound_ablations([job for job, _ in work])
    return [failed.get(number, found) for number, found in enumerate(scores)]


def _compute_bases(work: Sequence[tuple[SparseExecutor, Sequence[PatchedPass]]], scratch_bytes: int) -> None:
    """Computes missing activations of all base circuits of the passes and of their parents."""
    pending = [(job, base_circuit) for job, passes in work for base_circuit in job.missing_bases(passes)]
    for job, base_circuit in pending:
        if base_circuit.parent is None:
            job.add_base(base_circuit, BaseActivations.from_scratch(job.unpatched, base_circuit.circuit))
    while pending := [(job, base_circuit) for job, base_circuit in pending if not job.has_base(base_circuit)]:
        ready = [(job, base_circuit) for job, base_circuit in pending if job.has_base(base_circuit.parent)]
        if not ready:
            raise ValueError("two operations of one job in one call: one has dropped what the other needs")
        parents = [
            job.base(base_circuit.parent) for job, base_circuit in ready if base_circuit.parent is not None
        ]
        for part in _parts(parents, scratch_bytes, keep=True):
            _derive([ready[i] for i in part], [parents[i] for i in part])
            work[0][0].memory.bound_ablations([job for job, _ in work])


def _derive(
    base_circuits: Sequence[tuple[SparseExecutor, BaseCircuit]], parents: Sequence[BaseActivations]
) -> None:
    """Computes the activations of base circuits from those of their parents, each as a patched pass."""
    removed = [
        np.flatnonzero(parent.circuit.kept & ~base_circuit.circuit.kept).tolist()
        for (_, base_circuit), parent in zip(base_circuits, parents, strict=True)
    ]
    forward = _forward(parents, removed, keep=True)
    for index, (job, base_circuit) in enumerate(base_circuits):
        job.add_base(base_circuit, forward.as_base(index, base_circuit.circuit))
    for (job, _), parent in zip(base_circuits, parents, strict=True):
        if job.recomputes:
            parent.drop_mlp_states()


def _forward(
    bases: Sequence[BaseActivations],
    removed: Sequence[Sequence[int]],
    linears: QuantizedLinears | None = None,
    keep: bool = False,
) -> BatchForward:
    """Runs the forward pass of a batch.

    Args:
        bases: per pass, the activations that it is computed from. Equal ones stand together.
        removed: per pass, the edges of its base circuit that it lacks.
        linears: of a precision policy; None for full precision.
        keep: whether the passes become base circuits.
    """
    distinct = {id(base): base for base in bases}
    number = {key: i for i, key in enumerate(distinct)}
    base_of = np.array([number[id(base)] for base in bases])
    forward = BatchForward(PassBatch(list(distinct.values()), base_of, removed, keep, linears), keep)
    forward.run()
    return forward


def _parts(bases: Sequence[BaseActivations], scratch_bytes: int, keep: bool) -> list[list[int]]:
    """Divides passes, given by their bases, into parts that fit into the scratch memory.

    Passes of one base stand together. A part is a list of indices into ``bases``.
    """
    parts: list[list[int]] = []
    room = 0
    distinct = {id(base): base for base in bases}
    bytes_of = {key: pass_bytes(base, keep) for key, base in distinct.items()}
    for i in _by_base(bases):
        needed = bytes_of[id(bases[i])]
        if not parts or needed > room:
            parts.append([])
            room = scratch_bytes
        parts[-1].append(i)
        room -= needed
    return parts


def _by_base(bases: Sequence[BaseActivations]) -> list[int]:
    """Returns the indices of the bases, those of equal bases together."""
    groups: dict[int, list[int]] = {}
    for i, base in enumerate(bases):
        groups.setdefault(id(base), []).append(i)
    return [i for group in groups.values() for i in group]


def _lineage(base_circuit: BaseCircuit) -> list[BaseCircuit]:
    """Returns the base circuit and its ancestors, eldest first."""
    return [*(_lineage(base_circuit.parent) if base_circuit.parent is not None else []), base_circuit]
