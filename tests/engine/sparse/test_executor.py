"""The sparse executor against the literal one, its slow and obvious twin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.executors import sparse_executor
from helpers.random_passes import LENGTHS, random_passes, random_task
from helpers.zoo import NAMES, Zoo

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.graph import Graph, KvReceivers
from pahq_server.core.task import TokenTask
from pahq_server.engine.literal import LiteralExecutor
from pahq_server.engine.sparse import batch_forward, positions
from pahq_server.engine.sparse.executor import SparseExecutor, score_together
from pahq_server.methods.acdc.order import GROUPINGS, Grouping
from pahq_server.methods.acdc.search import AcdcSearch
from pahq_server.models.architecture import Model
from pahq_server.models.building import cast

ABLATIONS = ("resample", "zero", "mean")


def executor(
    model: Model, graph: Graph, task: TokenTask, ablation: str = "resample", metric: str = "kl_divergence"
) -> SparseExecutor:
    return sparse_executor(model, graph, task, metric, ablation)


def within(sparse: Sequence[float], literal: Sequence[float]) -> np.ndarray:
    a, b = np.array(sparse), np.array(literal)
    return np.abs(a - b) <= 1e-6 + 1e-5 * np.abs(b)


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("kv_receivers", ["group", "query"])
@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_the_literal_executors(
    zoo: Zoo, name: str, kv_receivers: KvReceivers, ablation: str
) -> None:
    model = zoo[name]
    graph = model.architecture.graph(kv_receivers)
    if kv_receivers == "query" and graph.heads == graph.kv_heads:
        pytest.skip("the same graph as with one receiver per group")
    task = random_task(model)
    passes = random_passes(graph, seed=3)
    literal = LiteralExecutor(model, graph, task, "kl_divergence", ablation).score(passes)
    double = executor(model, graph, task, ablation).score(passes)
    single = executor(cast(model, torch.float32), graph, task, ablation).score(passes)
    assert np.allclose(double, literal, rtol=1e-9, atol=1e-10)
    assert within(single, literal).all(), np.abs(np.array(single) - literal).max()


@pytest.mark.parametrize("metric", ["kl_divergence", "logit_difference", "l2"])
@pytest.mark.parametrize("positions", [None, (0,), (1, 4), (0, 2, 5)])
def test_every_metric_at_any_positions(zoo: Zoo, metric: str, positions: tuple[int, ...] | None) -> None:
    model = zoo["gpt2"]
    graph = model.architecture.graph("group")
    lengths = LENGTHS if positions in (None, (0,)) else (7, 6, 9)
    task = replace(random_task(model, lengths), positions=positions)
    passes = random_passes(graph, seed=4)
    literal = LiteralExecutor(model, graph, task, metric, "resample").score(passes)
    assert np.allclose(
        executor(model, graph, task, metric=metric).score(passes), literal, rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("shared", [1, 3])
def test_a_shared_prefix_is_not_recomputed_but_attended_to(zoo: Zoo, shared: int) -> None:
    model = zoo["llama"]
    graph = model.architecture.graph("group")
    task = random_task(model, (7, 6, 9))
    assert task.corrupted is not None
    corrupted = tuple(a[:shared] + b[shared:] for a, b in zip(task.clean, task.corrupted, strict=True))
    task = replace(task, corrupted=corrupted)
    sparse = executor(model, graph, task)
    assert sparse.unpatched.tokens.start >= shared
    passes = random_passes(graph, seed=5)
    literal = LiteralExecutor(model, graph, task, "kl_divergence", "resample").score(passes)
    assert np.allclose(sparse.score(passes), literal, rtol=1e-9, atol=1e-10)


def test_the_whole_prompt_is_live_where_positions_cannot_be_reused(zoo: Zoo) -> None:
    task = random_task(zoo["gpt2"])
    assert task.corrupted is not None
    pairs = zip(task.clean, task.corrupted, strict=True)
    same_start = replace(task, corrupted=tuple(a[:1] + b[1:] for a, b in pairs))
    for name, ablation in (("hooked bidirectional", "resample"), ("gpt2", "zero"), ("gpt2", "mean")):
        graph = zoo[name].architecture.graph("group")
        assert executor(zoo[name], graph, same_start, ablation).unpatched.tokens.start == 0


@pytest.mark.parametrize("name", NAMES)
def test_no_change_scores_exactly_zero(zoo: Zoo, name: str) -> None:
    """With corrupted prompts equal to the clean ones every pass runs its full plan on zero differences."""
    model = cast(zoo[name], torch.float32)
    graph = model.architecture.graph("group")
    task = random_task(model)
    sparse = executor(model, graph, replace(task, corrupted=task.clean))
    full = BaseCircuit(Circuit.full(graph))
    passes = [PatchedPass(full, (edge,)) for edge in range(graph.num_edges)]
    assert sparse.score(passes) == [0.0] * len(passes)
    assert executor(model, graph, task).score([PatchedPass(full)]) == [0.0]


@pytest.mark.parametrize("name", NAMES)
def test_a_score_has_the_same_bits_in_any_company(zoo: Zoo, name: str) -> None:
    model = cast(zoo[name], torch.float32)
    graph, task = model.architecture.graph("group"), random_task(model)
    passes = random_passes(graph, seed=6)
    together = executor(model, graph, task).score(passes)
    alone = executor(model, graph, task)
    assert [alone.score([patched_pass])[0] for patched_pass in passes] == together
    order = np.random.default_rng(7).permutation(len(passes)).tolist()
    shuffled = executor(model, graph, task).score([passes[i] for i in order])
    assert shuffled == [together[i] for i in order]


def test_mlps_in_small_parts_give_the_same_bits(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cast(zoo["llama"], torch.float32)
    graph, task = model.architecture.graph("group"), random_task(model)
    passes = random_passes(graph, seed=8)
    together = executor(model, graph, task).score(passes)
    monkeypatch.setattr(batch_forward, "CHUNK_ELEMENTS", 1)
    assert executor(model, graph, task).score(passes) == together


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_a_search_decides_the_same_with_any_window(zoo: Zoo, name: str, grouping: Grouping) -> None:
    model = cast(zoo[name], torch.float32)
    graph, task = model.architecture.graph("group"), random_task(model)

    def verdicts(window: int) -> list[object]:
        search = AcdcSearch(graph, 0.001, grouping, window)
        run(search, executor(model, graph, task).score)
        return list(search.verdicts)

    sequential = verdicts(1)
    assert len(sequential) > 20
    assert verdicts(5) == sequential
    assert verdicts(64) == sequential


def run(search: AcdcSearch, score: Callable[[Sequence[PatchedPass]], list[float]]) -> None:
    steps = search.run()
    passes = next(steps)
    while passes:
        try:
            passes = steps.send(score(passes))
        except StopIteration:
            return


def drop_last_head(self: positions.LivenessPlan, layer: int) -> list[int]:
    return ORIGINAL_HEADS(self, layer)[:-1]


def drop_last_sender(self: batch_forward.ReceiverInputs, receiver: int) -> list[tuple[int, np.ndarray]]:
    return ORIGINAL_SENDERS(self, receiver)[:-1]


ORIGINAL_HEADS, ORIGINAL_SENDERS = positions.LivenessPlan.heads, batch_forward.ReceiverInputs.changed_senders


@pytest.mark.parametrize(
    ("owner", "attribute", "bug"),
    [
        (positions.LivenessPlan, "heads", drop_last_head),
        (batch_forward.ReceiverInputs, "changed_senders", drop_last_sender),
    ],
)
def test_a_planted_bug_is_caught(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, owner: type, attribute: str, bug: Callable[..., object]
) -> None:
    model = zoo["gpt2"]
    graph, task = model.architecture.graph("group"), random_task(model)
    passes = random_passes(graph, seed=3)
    literal = LiteralExecutor(model, graph, task, "kl_divergence", "resample").score(passes)
    monkeypatch.setattr(owner, attribute, bug)
    assert not within(executor(model, graph, task).score(passes), literal).all()


def test_the_plan_prints_what_is_live(zoo: Zoo) -> None:
    graph = zoo["gpt2"].architecture.graph("group")
    top = graph.layers - 1
    circuit = Circuit.from_names(graph, ["input->m0", f"m0->a{top}.h1<v>", f"a{top}.h1->logits"])
    lines = str(positions.LivenessPlan.of(circuit)).splitlines()
    assert lines[0] == "layer 0: m0"
    assert lines[top] == f"layer {top}: a{top}.h1*"
    assert all(line.endswith(": -") for line in lines[1:top])


def test_two_operations_of_one_job_in_one_call_are_refused(zoo: Zoo) -> None:
    """The second one drops a base circuit that the first one still needs, which must not wait for it."""
    model = zoo["gpt2"]
    graph = model.architecture.graph("group")
    job = executor(model, graph, random_task(model))
    base = BaseCircuit(Circuit.full(graph))
    child = BaseCircuit(base.circuit.without((1,)), base)
    job.score([PatchedPass(base)])
    other = PatchedPass(BaseCircuit(Circuit.empty(graph)))
    with pytest.raises(ValueError, match="two operations of one job"):
        score_together([(job, [PatchedPass(child)]), (job, [other])])
