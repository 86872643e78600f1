"""How much memory a row takes while it is swept, known before it is.

The sparse executor: the literal executor's scores, removes_most rows at a time, for a fraction of the work."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

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
)
from pahq_server.engine.sparse.unpatched import FINAL, UnpatchedRuns
from pahq_server.engine.sparse.variants import as_tensor, pick
from pahq_server.engine.sparse.weights import SparseWeights
from pahq_server.models.architecture import Model

DEFAULT_SCRATCH = 512 << 20


def pass_bytes(base: BaseActivations, keep: bool) -> int:
    """Most bytes that a row of a base may take: changes of all live nodes and states of their receivers.

    Args:
        base: of the row.
        keep: whether the row becomes a base, so that the states of all heads' receivers are kept. Otherwise
            only those of one layer are there at a time.
    """
    graph, arch, plan = base.graph, base.weights.arch, base.plan
    counts = np.array([0, *(base.tokens.count(places) for places in POSITION_CODES)], dtype=np.int64)
    tokens_S = counts[plan.sender_codes][1:].reshape(graph.layers, graph.senders_per_layer)
    changes = (
        int(tokens_S[:, : graph.heads].sum()) * arch.d_head
        + int(tokens_S[:, graph.heads :].sum()) * arch.d_model
    )
    tokens_R = counts[plan.receiver_codes][:-1].reshape(graph.layers, graph.receivers_per_layer)
    states = tokens_R[:, : graph.heads + 2 * graph.kv_units].sum(1) * (2 * arch.d_head + 1)
    of_states = int(states.sum() if keep else states.max(initial=0))
    # The input of a receiver and the inputs of the metric come on top.
    inputs = 3 * int(counts.max()) * arch.d_model
    return (changes + of_states + inputs) * base.weights.dtype.itemsize


class SharedModel:
    """A model and what its jobs share.

    Args:
        model: folded (see `models.folding`).
        memory: of the device that the model is on.
        namespace: names the model's weights among all models on the device.
        rounded: what rows multiply with; None for the model's weights.
    """

    def __init__(
        self, model: Model, memory: DeviceMemory, namespace: bytes, quantized: QuantizedModel | None = None
    ) -> None:
        self.model, self.memory, self.namespace, self._quantized = model, memory, namespace, quantized
        self._weights: dict[Graph, SparseWeights] = {}

    def weights(self, graph: Graph) -> SparseWeights:
        """The model's weights under a graph."""
        if graph not in self._weights:
            layers = None if self._quantized is None else self._quantized.layers
            products = self.memory.products(self.namespace)
            self._weights[graph] = SparseWeights(self.model, graph, layers, products)
        return self._weights[graph]

    def linears(self, graph: Graph) -> QuantizedLinears | None:
        """The linear linears of rows; None for full precision."""
        return None if self._quantized is None else QuantizedLinears(self.weights(graph), self._quantized)


# No bound on how removes_most anchors have a base at a time.
NO_LIMIT = 1 << 30
# After how removes_most calls that had room a job that was short of memory tries to do without bounds: at first, and
# at most, where tries fail.
FIRST_RETRY_CALLS, MAX_RETRY_CALLS = 4, 256


class SparseExecutor:
    """Scores rows of one job. Whoever makes one releases it.

    Args:
        shared: the model and what its jobs share.
        graph: a graph of the model.
        task: prompts; ``resample`` ablation needs corrupted ones.
        metric: name of a metric.
        ablation: ``resample``, ``zero`` or ``mean``.

    Raises OutOfPagesError if the pool has no room for the job's clean and corrupted values.
    """

    @torch.inference_mode()
    def __init__(
        self, shared: SharedModel, graph: Graph, task: TokenTask, metric: str, ablation: str
    ) -> None:
        self.graph, self.weights, self.linears = graph, shared.weights(graph), shared.linears(graph)
        self._task, self.memory = task, shared.memory
        tokens = TokenLayout.of(shared.model.architecture, task, ablation, shared.model.device)
        prefixes = shared.memory.prefixes
        self.unpatched = UnpatchedRuns(
            self.weights, shared.model, tokens, ablation, prefixes, shared.namespace
        )
        # Under memory pressure: how removes_most anchors may have a base at a time, beside their parents, and whether
        # these keep nothing that they can compute again.
        self.max_base_circuits, self.recomputes = NO_LIMIT, False
        # How removes_most calls in a row there was room for since then, and after how removes_most the bounds are lifted.
        self._calls_with_room, self._calls_before_retry = 0, FIRST_RETRY_CALLS
        # Bases of the last call, by anchor; the anchor is held so that its id stays its own.
        self._bases: dict[int, tuple[BaseCircuit, BaseActivations]] = {}
        try:
            final = self.unpatched.clean.get(graph.layers, FINAL)
            self._full_ND = self.weights.normed(
                tokens.narrow(final, PositionSet.WINDOW, PositionSet.METRIC)[None]
            )[0]
            self._metric = DIFFERENCE_METRICS[metric](self.weights, task, self._full_ND, self.linears)
        except BaseException:
            self.unpatched.release()
            raise
        shared.memory.jobs.add(self)

    def score(self, rows: Sequence[PatchedPass], scratch_bytes: int = DEFAULT_SCRATCH) -> list[float]:
        """The metric of every row, in order. Raises NonFiniteMetricError or OutOfPagesError."""
        (outcome,) = score_together([(self, rows)], scratch_bytes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    @torch.inference_mode()
    def clean_margins(self) -> tuple[float, ...] | None:
        """See `CleanRun`."""
        return answer_margins(self.weights, self._task, self._full_ND)

    def release(self) -> None:
        """Frees all values. May be called again."""
        self.drop_bases()
        self.unpatched.release()

    # Memory pressure

    @property
    def memory_limited(self) -> bool:
        """Whether memory was short: such a job is scored by itself."""
        return self.recomputes or self.max_base_circuits < NO_LIMIT

    def limit_memory(self, max_base_circuits: int, recomputes: bool) -> None:
        """Bounds what the job takes, until there has been room for a while (see `note_room`)."""
        if not self.memory_limited and self._calls_with_room < self._calls_before_retry:
            # The last try without bounds came too early: the next one is later.
            self._calls_before_retry = min(MAX_RETRY_CALLS, 2 * self._calls_before_retry)
        self.max_base_circuits, self.recomputes, self._calls_with_room = max_base_circuits, recomputes, 0

    def note_room(self) -> None:
        """Takes note of a call that had room for all; lifts the bounds after some in a row.

        What took the memory may be gone. A try that fails costs a call; after each the next comes later.
        Scores do not depend on the bounds.
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
        """The base of an anchor that has one."""
        return self._bases[id(base_circuit)][1]

    def has_base(self, base_circuit: BaseCircuit | None) -> bool:
        return id(base_circuit) in self._bases

    def missing_bases(self, rows: Sequence[PatchedPass]) -> list[BaseCircuit]:
        """Forgets bases that these rows do not need; returns the anchors that have none yet."""
        wanted = {id(a): a for row in rows for a in _lineage(row.base_circuit)}
        self._drop([key for key in self._bases if key not in wanted])
        return [base_circuit for key, base_circuit in wanted.items() if key not in self._bases]

    def read_ahead(self, rows: Sequence[PatchedPass]) -> None:
        """Has heads copied while the device works on bases: those that rows promote, and the next turn's."""
        if self.linears is None or not self.linears.promotes or not self.weights.copies_ahead:
            return
        receivers = [r for r in dict.fromkeys(row.promoted_receiver for row in rows) if r is not None]
        # Searches go from the last receiver to the first.
        following = [] if not receivers or not min(receivers) else [min(receivers) - 1]
        self.weights.read_ahead([*receivers, *following])

    def add_base(self, base_circuit: BaseCircuit, base: BaseActivations) -> None:
        base.recomputes = self.recomputes
        self._bases[id(base_circuit)] = (base_circuit, base)

    def trim_ablations(self, room: int) -> int:
        """Drops remembered differences until they take at most ``room`` bytes; returns what they take."""
        taken = 0
        for _, base in reversed(self._bases.values()):
            taken += base.trim_ablations(room - taken)
        return taken

    def drop_bases(self) -> bool:
        """Drops all bases, which are computed again when rows need them; returns whether there were any."""
        keys = list(self._bases)
        self._drop(keys)
        return bool(keys)

    def _drop(self, keys: Sequence[int]) -> None:
        # Children before their parents: they came later.
        for key in reversed(keys):
            self._bases.pop(key)[1].release()

    # Scores

    def metric(self, forward: BatchForward, rows: Sequence[int]) -> list[float]:
        """Scores of some rows of a forward, all of this job. Raises NonFiniteMetricError."""
        bases = forward.batch.bases
        used, base = np.unique(forward.batch.base_of[list(rows)], return_inverse=True)
        x_VND = torch.stack([bases[number].cached_input(self.graph.logits) for number in used])
        # Per value, the number of its base; the bases' own come first. Per row, its value.
        base_of_value, index = np.arange(len(used)), base
        if forward.final is not None:
            variant = forward.final.variant[list(rows)]
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
    """Scores rows of several jobs of one model, graph and policy in the same sweeps; one outcome per job.

    A row's score has the same bits whatever rows of whatever jobs stand beside it.

    Args:
        work: jobs and their rows.
        scratch_bytes: what the values of one forward may take, about; at least one row is swept at a time.

    Raises OutOfPagesError if the pool has no room for the rows' bases.
    """
    _compute_bases(work, scratch_bytes)
    for job, rows in work:
        job.read_ahead(rows)
    numbered = [(number, row) for number, (_, rows) in enumerate(work) for row in rows]
    bases = [work[number][0].base(row.base_circuit) for number, row in numbered]
    scores: list[list[float]] = [[0.0] * len(rows) for _, rows in work]
    failed: dict[int, Exception] = {}
    first_of = np.cumsum([0, *(len(rows) for _, rows in work)])
    for part in _parts(bases, scratch_bytes, keep=False):
        forward = _forward(
            [bases[i] for i in part], [numbered[i][1].removed for i in part], work[0][0].linears
        )
        for number in dict.fromkeys(numbered[i][0] for i in part):
            places = [place for place, i in enumerate(part) if numbered[i][0] == number]
            try:
                found = work[number][0].metric(forward, places)
            except NonFiniteMetricError as error:
                failed[number] = error
                continue
            for place, score in zip(places, found, strict=True):
                scores[number][part[place] - first_of[number]] = score
        del forward  # before the next one takes as much
        work[0][0].memory.bound_ablations([job for job, _ in work])
    return [failed.get(number, found) for number, found in enumerate(scores)]


def _compute_bases(work: Sequence[tuple[SparseExecutor, Sequence[PatchedPass]]], scratch_bytes: int) -> None:
    """Bases of all anchors of the rows and of their ancestors."""
    pending = [(job, base_circuit) for job, rows in work for base_circuit in job.missing_bases(rows)]
    for job, base_circuit in pending:
        if base_circuit.parent is None:
            job.add_base(base_circuit, BaseActivations.from_scratch(job.unpatched, base_circuit.circuit))
    while pending := [(job, base_circuit) for job, base_circuit in pending if not job.has_base(base_circuit)]:
        ready = [(job, base_circuit) for job, base_circuit in pending if job.has_base(base_circuit.parent)]
        parents = [
            job.base(base_circuit.parent) for job, base_circuit in ready if base_circuit.parent is not None
        ]
        for part in _parts(parents, scratch_bytes, keep=True):
            _derive([ready[i] for i in part], [parents[i] for i in part])
            work[0][0].memory.bound_ablations([job for job, _ in work])


def _derive(
    base_circuits: Sequence[tuple[SparseExecutor, BaseCircuit]], parents: Sequence[BaseActivations]
) -> None:
    """Bases of anchors whose parents have one: each a row of its parent."""
    removed = [
        np.flatnonzero(parent.circuit.kept & ~base_circuit.circuit.kept).tolist()
        for (_, base_circuit), parent in zip(base_circuits, parents, strict=True)
    ]
    forward = _forward(parents, removed, keep=True)
    for row, (job, base_circuit) in enumerate(base_circuits):
        job.add_base(base_circuit, forward.as_base(row, base_circuit.circuit))
    for (job, _), parent in zip(base_circuits, parents, strict=True):
        if job.recomputes:
            parent.drop_mlp_states()


def _forward(
    bases: Sequence[BaseActivations],
    removed: Sequence[Sequence[int]],
    linears: QuantizedLinears | None = None,
    keep: bool = False,
) -> BatchForward:
    distinct = {id(base): base for base in bases}
    number = {key: i for i, key in enumerate(distinct)}
    base_of = np.array([number[id(base)] for base in bases])
    forward = BatchForward(PassBatch(list(distinct.values()), base_of, removed, keep, linears), keep)
    forward.run()
    return forward


def _parts(bases: Sequence[BaseActivations], scratch_bytes: int, keep: bool) -> list[list[int]]:
    """Numbers of rows with these bases, equal bases together, in parts that fit into the scratch memory."""
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
    """Numbers of the bases, equal ones together."""
    groups: dict[int, list[int]] = {}
    for i, base in enumerate(bases):
        groups.setdefault(id(base), []).append(i)
    return [i for group in groups.values() for i in group]


def _lineage(base_circuit: BaseCircuit) -> list[BaseCircuit]:
    """The anchor and its ancestors, eldest first."""
    return [*(_lineage(base_circuit.parent) if base_circuit.parent is not None else []), base_circuit]
