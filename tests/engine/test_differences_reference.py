"""The twin of policies that round differences: against full precision, and against sums done by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.eight_bits import (
    PROMOTING,
    all_but_one_head_in_8_bits,
    assert_prompts_are_independent,
    bare_norm,
    nearest,
)
from helpers.random_passes import LENGTHS, random_circuit, random_passes, random_task
from helpers.zoo import NAMES, Zoo
from reference import differences
from reference.differences import CircuitValues, DifferencesExecutor, composed_mlps
from torch import Tensor
from torch.nn import functional

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.graph import KvReceivers
from pahq_server.core.task import BuiltinTask, TokenTask
from pahq_server.demo import model_path
from pahq_server.engine import transformer
from pahq_server.engine.literal import LinearName, LiteralExecutor
from pahq_server.engine.literal_rounded import RoundedExecutor, RoundedModel
from pahq_server.models.architecture import Model
from pahq_server.models.building import cast
from pahq_server.models.folding import fold
from pahq_server.models.loading import load
from pahq_server.precision.policy import POLICIES, Format, Policy
from pahq_server.tasks.resolve import Limits, resolve

EXACT = Policy("exact", *[Format.FP32] * 4, "differences", True)
EIGHT_BIT = ("pahq-int8", "pahq-int8-weight", "pahq-fp8")


def executor(
    model: Model, policy: Policy, kv: KvReceivers = "group", ablation: str = "resample"
) -> DifferencesExecutor:
    graph = model.architecture.graph(kv)
    return DifferencesExecutor(model, graph, random_task(model), "kl_divergence", ablation, policy)


def literal(model: Model, passes: list[PatchedPass]) -> list[float]:
    graph = passes[0].base_circuit.circuit.graph
    return LiteralExecutor(model, graph, random_task(model), "kl_divergence", "resample").score(passes)


def rms(found: list[float], expected: list[float]) -> float:
    return float(np.sqrt(np.mean((np.array(found) - expected) ** 2)))


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
@pytest.mark.parametrize("kv", ["group", "query"])
@pytest.mark.parametrize("name", NAMES)
def test_without_rounding_it_is_the_literal_executor(
    zoo: Zoo, name: str, kv: KvReceivers, ablation: str
) -> None:
    model, graph = zoo[name], zoo[name].architecture.graph(kv)
    if kv == "query" and graph.heads == graph.kv_heads:
        pytest.skip("the same graph as with one receiver per group")
    # An base circuit need not be a part of its parent.
    unrelated = BaseCircuit(
        random_circuit(graph, 0.5, seed=8), BaseCircuit(random_circuit(graph, 0.5, seed=9))
    )
    passes = [
        *random_passes(graph, seed=3),
        PatchedPass(unrelated),
        PatchedPass(unrelated, (0, graph.num_edges - 1)),
    ]
    expected = LiteralExecutor(model, graph, random_task(model), "kl_divergence", ablation).score(passes)
    assert np.allclose(executor(model, EXACT, kv, ablation).score(passes), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("metric", ["kl_divergence", "logit_difference", "l2"])
@pytest.mark.parametrize("positions", [None, (0, 2, 5)])
def test_every_metric_at_any_positions(zoo: Zoo, metric: str, positions: tuple[int, ...] | None) -> None:
    model, graph = zoo["llama"], zoo["llama"].architecture.graph("group")
    task = replace(random_task(model, (7, 6, 9) if positions else LENGTHS), positions=positions)
    passes = random_passes(graph, seed=4)
    expected = LiteralExecutor(model, graph, task, metric, "resample").score(passes)
    found = DifferencesExecutor(model, graph, task, metric, "resample", EXACT).score(passes)
    assert np.allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("policy", EIGHT_BIT)
@pytest.mark.parametrize("name", NAMES)
def test_no_change_scores_exactly_zero(zoo: Zoo, name: str, policy: str) -> None:
    """With corrupted prompts equal to the clean ones every cut adds a difference of zero."""
    model = cast(zoo[name], torch.float32)
    graph, task = model.architecture.graph("group"), random_task(model)
    task = replace(task, corrupted=task.clean)
    full = BaseCircuit(Circuit.full(graph))
    passes = [PatchedPass(full, (edge,)) for edge in range(0, graph.num_edges, 7)]
    for metric in ("kl_divergence", "l2"):
        job = DifferencesExecutor(model, graph, task, metric, "resample", POLICIES[policy])
        assert set(job.score([PatchedPass(full), *passes])) == {0.0}
    assert executor(model, POLICIES[policy]).score(
        [PatchedPass(full), PatchedPass(BaseCircuit(Circuit.full(graph)))]
    ) == [0, 0]


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "hooked attention only"])
def test_a_row_in_which_nothing_changes_scores_exactly_as_its_anchor(zoo: Zoo, name: str) -> None:
    model = cast(zoo[name], torch.float32)
    graph = model.architecture.graph("group")
    parent = BaseCircuit(random_circuit(graph, 0.7, seed=2))
    dead = graph.outgoing(graph.head(1, 0))
    base_circuit = BaseCircuit(parent.circuit.without(dead.tolist()), parent)
    into_dead = [graph.edge(s, graph.receiver_of("q", 1)) for s in range(3)]
    # Edges that are missing already, and edges into a head that nothing listens to.
    same = [PatchedPass(base_circuit, tuple(edges)) for edges in ([], dead[:2].tolist(), into_dead)]
    same += [PatchedPass(BaseCircuit(base_circuit.circuit, base_circuit))]
    job = executor(model, POLICIES["pahq-int8"])
    assert job.score(same) == [job.score([PatchedPass(base_circuit)])[0]] * 4
    assert job.score(same)[0] > 0


@pytest.mark.parametrize("policy", EIGHT_BIT)
@pytest.mark.parametrize("name", NAMES)
def test_in_8_bits_scores_are_near_but_not_equal(zoo: Zoo, name: str, policy: str) -> None:
    model = zoo[name]
    passes = [
        patched_pass
        for patched_pass in random_passes(model.architecture.graph("group"), seed=5)
        if patched_pass.removed
    ]
    expected = literal(model, passes)
    found = executor(model, POLICIES[policy]).score(passes)
    # Where nothing live changes, the two are equal.
    assert np.mean(np.array(found) != np.array(expected)) > 0.8
    assert 1e-6 < rms(found, expected) < 0.05 * np.std(expected)


@pytest.mark.parametrize("policy", EIGHT_BIT)
def test_a_prompts_score_does_not_depend_on_its_company(zoo: Zoo, policy: str) -> None:
    model, graph = zoo["llama"], zoo["llama"].architecture.graph("group")

    def make(task: TokenTask) -> DifferencesExecutor:
        return DifferencesExecutor(model, graph, task, "l2", "resample", POLICIES[policy])

    assert_prompts_are_independent(model, make, random_passes(graph, seed=6)[::5])


@pytest.mark.parametrize("policy", EIGHT_BIT)
def test_a_cut_into_the_logits_by_hand(zoo: Zoo, policy: str) -> None:
    form = POLICIES[policy]
    job = executor(zoo["gpt2"], form)
    graph, model, top = job.graph, job.model, job.graph.layers
    w_u, places = (
        nearest(job.weights.w_u, form.embeddings, 0),
        (job.batch.metric_prompt, job.batch.metric_position),
    )
    full = BaseCircuit(Circuit.full(graph))
    x, exact_change = job.values(full).sums["logits", top][0][places], torch.zeros(())
    base_circuit = full
    # Head 1, then head 0 relative to what is left of the circuit without head 1: base circuits are exact.
    for head in (1, 0):
        dz = (job.ablated_z[top - 1] - job.values(full).inputs["o", top - 1])[head][places]
        w_o = job.weights.layers[top - 1].w_o[head]
        new = x + dz @ nearest(w_o, form.heads, 0)
        dn = bare_norm(new, model) - bare_norm(x, model)
        change, exact = exact_change + nearest(dn, form.inputs, -1, form.terms) @ w_u, x + dz @ w_o
        cut = (graph.edge(graph.head(top - 1, head), graph.logits),)
        assert torch.allclose(job.change(PatchedPass(base_circuit, cut)), change, rtol=0, atol=1e-12)
        base_circuit = BaseCircuit(base_circuit.circuit.without(cut), base_circuit)
        exact_change = exact_change + (bare_norm(exact, model) - bare_norm(x, model)) @ job.weights.w_u
        assert torch.allclose(job.change(PatchedPass(base_circuit)), exact_change, rtol=0, atol=1e-12)
        x = exact


@pytest.mark.parametrize("promotes", [True, False])
@pytest.mark.parametrize("policy", EIGHT_BIT)
def test_a_cut_into_a_value_receiver_by_hand(zoo: Zoo, policy: str, promotes: bool) -> None:
    form = replace(POLICIES[policy], promotes=promotes)
    job = executor(zoo["gpt2"], form)
    expected = change_by_hand(job, form, head=1)
    receiver = job.graph.receiver_of("v", job.graph.layers - 1, 1)
    patched_pass = PatchedPass(BaseCircuit(Circuit.full(job.graph)), (job.graph.edge(0, receiver),))
    assert torch.allclose(job.change(patched_pass), expected, rtol=0, atol=1e-12)


def change_by_hand(job: DifferencesExecutor, form: Policy, head: int) -> Tensor:
    """Difference of logits where a head's values in the last layer read another ``input``."""
    layer, top = job.graph.layers - 1, job.graph.layers
    full, weights = job.values(BaseCircuit(Circuit.full(job.graph))), job.weights.layers[layer]
    assert job.batch.corrupted is not None
    assert weights.w_in is not None
    assert weights.w_out is not None

    def factor(x: Tensor) -> Tensor:
        return (x.square().mean(-1, keepdim=True) + job.arch.eps).rsqrt()

    def read(x: Tensor, dx: Tensor, w: Tensor, change: Tensor) -> Tensor:
        """What a map gives more after its norm, if ``change`` is what it makes of dx."""
        after = factor(x + dx)
        return after * change + (after - factor(x)) * (x @ w)

    def low(dx: Tensor, w: Tensor, weight_form: Format) -> Tensor:
        return nearest(dx, form.inputs, -1, form.terms) @ nearest(w, weight_form, 0)

    def of_head(dx: Tensor, w: Tensor) -> Tensor:
        return dx @ (w[head] if form.promotes else nearest(w[head], form.heads, 0))

    embedded = job.weights.w_e - job.weights.w_e.mean(-1, keepdim=True)
    dx = embedded[job.batch.corrupted] - embedded[job.batch.clean]
    dv = read(full.sums["v", layer][head], dx, weights.w_v[head], of_head(dx, weights.w_v))
    q, k = (full.outputs[name, layer][head] for name in ("q", "k"))
    seen = transformer.visible(job.arch, layer, job.batch.lengths)
    dz = (q @ k.mT).masked_fill(~seen, -torch.inf).softmax(-1) @ dv
    written = of_head(dz, weights.w_o)
    units = full.outputs["in", layer]
    change = low(written, weights.w_in, form.mlps)
    new = units + read(full.sums["mlp", layer][0], written, weights.w_in, change)
    dh = functional.gelu(new, approximate="tanh") - functional.gelu(units, approximate="tanh")
    dx = written + low(dh, weights.w_out, form.mlps)
    x = full.sums["logits", top][0]
    dn = (bare_norm(x + dx, job.model) - bare_norm(x, job.model))[
        job.batch.metric_prompt, job.batch.metric_position
    ]
    return low(dn, job.weights.w_u, form.embeddings)


def inexact(model: Model) -> set[str]:
    """Own receivers whose passes do not get the score of full precision."""
    graph = model.architecture.graph("group")
    # Into the head and out of it, so that all of its matrices matter, then one into each receiver.
    first = [graph.parse_edge(edge) for edge in ("input->a0.h1<q>", "a0.h1->m0")]
    full, receivers = BaseCircuit(Circuit.full(graph)), range(graph.num_receivers)
    passes = {graph.receiver_name(r): [PatchedPass(full, (*first, graph.edge(0, r)))] for r in receivers}
    job = executor(model, POLICIES["pahq-int8-weight"])
    return {
        name
        for name, patched_pass in passes.items()
        if rms(job.score(patched_pass), literal(model, patched_pass)) > 1e-9
    }


@pytest.mark.parametrize("name", PROMOTING)
def test_a_row_runs_the_head_of_its_own_receiver_in_full_precision(zoo: Zoo, name: str) -> None:
    model = all_but_one_head_in_8_bits(fold(zoo[name]), 0, 1)
    graph = model.architecture.graph("group")
    everything = {graph.receiver_name(r) for r in range(graph.num_receivers)}
    assert inexact(model) == everything - PROMOTING[name]


@pytest.mark.parametrize("name", NAMES)
def test_with_every_head_promoted_attention_is_in_full_precision(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model, graph = zoo[name], zoo[name].architecture.graph("group")
    passes = [
        patched_pass
        for patched_pass in random_passes(graph, seed=7)
        if patched_pass.removed and patched_pass.base_circuit.parent is None
    ]
    policy = replace(EXACT, heads=Format.INT8)
    assert rms(executor(model, policy).score(passes), literal(model, passes)) > 1e-6
    units = {"q": graph.heads, "k": graph.kv_heads, "v": graph.kv_heads, "o": graph.heads}
    everything = frozenset(
        (n, i, u) for n, count in units.items() for i in range(graph.layers) for u in range(count)
    )
    monkeypatch.setattr(differences, "promoted_linears", lambda *_: everything)
    assert rms(executor(model, policy).score(passes), literal(model, passes)) < 1e-12


def only_queries(*args: object) -> frozenset[tuple[str, int, int]]:
    promoted = ORIGINAL_PROMOTED(*args)  # type: ignore[arg-type]
    return frozenset(place for place in promoted if place[0] == "q")


def first_receiver(patched_pass: PatchedPass) -> int | None:
    return patched_pass.base_circuit.circuit.graph.edge_ends(patched_pass.removed[0])[1]


def cuts_without_promotion(self: DifferencesExecutor, base: CircuitValues) -> Tensor:
    promoted, self._promoted = self._promoted, frozenset()
    cuts = ORIGINAL_CUTS(self, base)
    self._promoted = promoted
    return cuts


ORIGINAL_PROMOTED, ORIGINAL_CUTS = differences.promoted_linears, DifferencesExecutor._edge_ablations


@pytest.mark.parametrize(
    ("owner", "name", "bug"),
    [
        (differences, "promoted_linears", only_queries),
        (PatchedPass, "promoted_receiver", property(first_receiver)),
        (DifferencesExecutor, "_edge_ablations", cuts_without_promotion),
    ],
)
def test_a_planted_bug_in_promotion_is_caught(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, bug: object
) -> None:
    model = all_but_one_head_in_8_bits(fold(zoo["gpt2"]), 0, 1)
    graph = model.architecture.graph("group")
    monkeypatch.setattr(owner, name, bug)
    everything = {graph.receiver_name(r) for r in range(graph.num_receivers)}
    assert inexact(model) != everything - PROMOTING["gpt2"]


def test_mlps_that_hear_few_heads_alone_are_composed(zoo: Zoo) -> None:
    arch = zoo["gpt2"].architecture
    graph = arch.graph("group")
    full = Circuit.full(graph)
    assert (graph.layers, graph.heads) == (2, arch.d_model // arch.d_head)

    def composed(circuit: Circuit, *names: str) -> frozenset[int]:
        # The base circuit's own edges do not matter, those of its first ancestor do.
        base_circuit = BaseCircuit(
            circuit.without([graph.parse_edge("input->a0.h0<v>")]), BaseCircuit(circuit)
        )
        return composed_mlps(PatchedPass(base_circuit, tuple(graph.parse_edge(name) for name in names)), arch)

    silent = full.without([graph.parse_edge("m0->m1")])
    lonely = silent.without([graph.parse_edge(f"a0.h{unit}->m1") for unit in range(graph.heads)])
    # The second MLP has too many heads, or hears the first one too, or neither.
    assert composed(full, "input->a0.h1<q>") == {0}
    assert composed(silent, "input->a0.h0<q>") == {0}
    assert composed(lonely, "input->a0.h0<q>") == {0, 1}
    assert composed(lonely, "input->a0.h0<q>", "input->m1") == {0}
    assert composed(lonely, "input->m0") == {1}


class RoundsActivations(DifferencesExecutor):
    """A planted bug: differences of rounded inputs in place of rounded differences of inputs."""

    def _linear(self, x: Tensor, name: LinearName, layer: int) -> Tensor:
        returned, base, place = super()._linear(x, name, layer), self._base, (name, layer)
        if base is None:
            return returned
        old, new = (self._linears.product(y, name, layer, self._promoted) for y in (base.inputs[place], x))
        self._values.outputs[place] = base.outputs[place] + new - old
        return new - old if name in ("o", "out") else self._values.outputs[place]


def test_rounding_activations_is_clearly_worse() -> None:
    """On a trained model and prompts that differ in names: most edges change little."""
    loaded = load(str(model_path()))
    model, arch = loaded.model, loaded.model.architecture
    graph, limits = arch.graph("group"), Limits(arch.vocabulary, arch.output_vocabulary, arch.context)
    task = resolve(BuiltinTask("ioi", 4, 0), loaded.tokenizer, limits)
    full = BaseCircuit(Circuit.full(graph))
    passes = [PatchedPass(full, (edge,)) for edge in range(0, graph.num_edges, 40)]
    job = (model, graph, task, "kl_divergence", "resample")
    exact = np.array(LiteralExecutor(*job).score(passes))

    def typical_error(job: LiteralExecutor) -> float:
        return float(np.median(np.abs(job.score(passes) - exact)))

    # With a second term too little is lost for this bug to show.
    policy = replace(POLICIES["pahq-int8"], terms=1)
    error = typical_error(DifferencesExecutor(*job, policy))
    assert typical_error(RoundsActivations(*job, policy)) > 5 * error
    assert typical_error(RoundedExecutor(RoundedModel(model, POLICIES["rtn-int8"]), *job[1:])) > 5 * error
