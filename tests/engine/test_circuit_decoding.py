"""Text under a circuit: the full circuit's, the empty one's, and that of patched passes step by step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.random_passes import names_of, random_circuit
from helpers.reference import Reference
from helpers.zoo import Zoo

from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import EngineStateId, Objective, ResolvedObjective, Work
from pahq_server.core.generation import (
    Decode,
    Decoded,
    DecodedSample,
    DecodeUnderCircuit,
    SampleRequest,
    Sampling,
)
from pahq_server.core.graph import KvReceivers
from pahq_server.core.task import PromptTask, TokenIds
from pahq_server.demo import model_path
from pahq_server.engine.backends import EXECUTORS
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.generation.circuit_decoding import circuit_offer
from pahq_server.engine.generation.sampling import uniform
from pahq_server.engine.generation.transformers_backend import TransformersBackend
from pahq_server.models.loading import LoadedModel, load

DOG = "The dog was"
GAVE = " Lily and Tom went to the park. Lily gave the ball to"
OTHER = " Lily and Tom went to the park. Tom gave the ball to"
GREEDY = Sampling(max_tokens=10, temperature=0.0, logprobs=True)


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load(str(Path(model_path())))


@pytest.fixture(scope="module", params=EXECUTORS)
def engine(demo: LoadedModel, request: pytest.FixtureRequest) -> ModelEngine:
    """Without a backend that generates text."""
    return ModelEngine({"demo": demo}, executor=request.param, memory_bytes=1 << 26)


def opened(engine: ModelEngine, *clean: str, corrupted: tuple[str, ...] = ()) -> Opened:
    ablation = "resample" if corrupted else "zero"
    objective = Objective("demo", PromptTask(clean, corrupted), "l2", ablation, "group", "fp32")
    resolved = engine.resolve(objective, activations=False)
    return Opened(engine, resolved, engine.open(resolved))


class Opened:
    """Decodes the prompts of a task under circuits."""

    def __init__(self, engine: ModelEngine, resolved: ResolvedObjective, state: EngineStateId) -> None:
        self.engine, self.resolved, self.state = engine, resolved, state

    def request(self, key: int, sampling: Sampling, prefix: TokenIds = ()) -> SampleRequest:
        return SampleRequest(key, self.resolved.task.clean[key], 1000 + key, sampling, prefix)

    def decode(
        self, circuit: Circuit, sampling: Sampling, steps: int = 99, prefix: TokenIds = (), key: int = 0
    ) -> DecodedSample:
        corrupted = self.resolved.task.corrupted
        operation = DecodeUnderCircuit(
            [self.request(key, sampling, prefix)], steps, 9, circuit, [corrupted[key]] if corrupted else []
        )
        (outcome,) = self.engine.run([Work(self.state, operation)])
        assert isinstance(outcome, Decoded), outcome
        operation.check(outcome)
        return outcome.samples[0]


@pytest.mark.parametrize(
    "sampling",
    [
        replace(GREEDY, max_tokens=20),
        Sampling(max_tokens=20, temperature=0.9, top_p=0.9, top_k=40, logprobs=True),
        Sampling(max_tokens=40, stop=(".",), logprobs=True),
    ],
)
@pytest.mark.parametrize("resample", [False, True])
def test_the_full_circuit_says_what_the_model_says(
    engine: ModelEngine, generated: dict[Sampling, Decoded], sampling: Sampling, resample: bool
) -> None:
    task = opened(engine, DOG, GAVE, corrupted=("The cat was", OTHER) if resample else ())
    full = Circuit.full(task.resolved.graph)
    for key, expected in enumerate(generated[sampling].samples):
        found = task.decode(full, sampling, key=key)
        assert (found.ids, found.text, found.finish) == (expected.ids, expected.text, expected.finish)
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
        assert len(found.signals) == len(found.ids)
        for ours, theirs in zip(found.signals, expected.signals, strict=True):
            assert ours.entropy == pytest.approx(theirs.entropy, abs=1e-3)
            assert ours.end_logprob == pytest.approx(theirs.end_logprob, abs=1e-3)


class Generated(dict[Sampling, Decoded]):
    """What the full model says, by the backend of transformers."""

    def __init__(self, demo: LoadedModel) -> None:
        engine = ModelEngine({"demo": demo}, memory_bytes=1 << 26, generation=TransformersBackend(1 << 22))
        self._task = opened(engine, DOG, GAVE)

    def __missing__(self, sampling: Sampling) -> Decoded:
        found = [self._whole(key, sampling) for key in range(2)]
        self[sampling] = replace(found[0], samples=tuple(each.samples[0] for each in found))
        return self[sampling]

    def _whole(self, key: int, sampling: Sampling) -> Decoded:
        (outcome,) = self._task.engine.run(
            [Work(self._task.state, Decode([self._task.request(key, sampling)], 99, 9))]
        )
        assert isinstance(outcome, Decoded), outcome
        assert outcome.samples[0].finish
        return outcome


@pytest.fixture(scope="module")
def generated(demo: LoadedModel) -> dict[Sampling, Decoded]:
    return Generated(demo)


def test_the_empty_circuit_says_what_the_biases_say(engine: ModelEngine, demo: LoadedModel) -> None:
    task = opened(engine, DOG, GAVE)
    empty = Circuit.empty(task.resolved.graph)
    weights, arch = demo.model.weights, demo.model.architecture
    x = torch.stack([layer.b_o for layer in weights.layers]).sum(0)
    assert weights.norm_w is not None
    x = torch.nn.functional.layer_norm(x, x.shape, weights.norm_w, weights.norm_b, arch.eps)
    logits = x @ weights.w_u + (0 if weights.b_u is None else weights.b_u)
    found = [task.decode(empty, GREEDY, key=key) for key in range(2)]
    assert set(found[0].ids) == {int(logits.argmax())}
    assert found[0].ids == found[1].ids
    assert found[0].logprobs[0] == pytest.approx(float(logits.log_softmax(-1).max()), abs=1e-4)


def test_the_empty_circuit_under_resample_says_what_the_corrupted_prompt_says(
    engine: ModelEngine, demo: LoadedModel
) -> None:
    pair = opened(engine, GAVE, corrupted=(OTHER,))
    alone = opened(engine, OTHER)
    full, empty = Circuit.full(pair.resolved.graph), Circuit.empty(pair.resolved.graph)
    expected, found = alone.decode(full, GREEDY), pair.decode(empty, GREEDY)
    assert (found.ids, found.text) == (expected.ids, expected.text)
    assert found.ids != pair.decode(full, GREEDY).ids
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


def twin(
    zoo: Zoo, name: str, kv: KvReceivers, request: SampleRequest, circuit: Circuit, corrupted: Any
) -> Any:
    """Decodes token by token with the slow reference: one sender after another, by name."""
    ids: list[int] = []
    logprobs = []
    for number in range(request.sampling.max_tokens):
        text = [*request.prompt, *ids]
        other = None if corrupted is None else [[*corrupted, *ids]]
        reference = Reference(zoo[name], kv, [text], other, "zero" if corrupted is None else "resample")
        logits = reference.logits(names_of(circuit))[0][-1]
        probabilities = logits.softmax(-1)
        token = int(logits.argmax())
        if request.sampling.temperature:
            sums = (logits / request.sampling.temperature).softmax(-1).cumsum(-1)
            token = int((sums <= uniform(request.seed, number)).sum())
        ids.append(token)
        logprobs.append(float(probabilities[token].log()))
    return tuple(ids), logprobs


@pytest.mark.parametrize("corrupted", [None, (5, 3, 9, 1)])
@pytest.mark.parametrize(
    ("name", "kv"), [("gpt2", "group"), ("gpt_neox", "group"), ("llama", "group"), ("llama", "query")]
)
def test_each_token_is_that_of_a_patched_pass(
    zoo: Zoo, name: str, kv: KvReceivers, corrupted: TokenIds | None
) -> None:
    model = zoo[name]
    engine = ModelEngine({"demo": LoadedModel(model, None, "c0ffee")}, memory_bytes=1 << 26)
    task = PromptTask(((5, 3, 7, 1),), (corrupted,) if corrupted else ())
    objective = Objective("demo", task, "l2", "resample" if corrupted else "zero", kv, "fp32")
    resolved = engine.resolve(objective, activations=False)
    opened = Opened(engine, resolved, engine.open(resolved))
    for seed, share in enumerate((0.9, 0.5, 0.1)):
        circuit = random_circuit(resolved.graph, share, seed)
        for temperature in (0.0, 0.7):
            sampling = Sampling(max_tokens=4, temperature=temperature, logprobs=True)
            ids, logprobs = twin(zoo, name, kv, opened.request(0, sampling), circuit, corrupted)
            found = opened.decode(circuit, sampling)
            assert found.ids == ids
            assert found.logprobs == pytest.approx(logprobs, rel=1e-7, abs=1e-8)


def test_a_sample_goes_on_from_its_tokens_with_the_same_bits(engine: ModelEngine) -> None:
    task = opened(engine, GAVE, corrupted=(OTHER,))
    sampling = Sampling(max_tokens=12, logprobs=True)
    circuit = random_circuit(task.resolved.graph, 0.7, 3)
    whole = task.decode(circuit, sampling)
    for cut in (1, 5, len(whole.ids) - 1):
        first = task.decode(circuit, sampling, steps=cut)
        rest = task.decode(circuit, sampling, prefix=first.ids)
        assert (first.finish, rest.finish, rest.text) == ("", whole.finish, whole.text)
        assert first.ids + rest.ids == whole.ids
        assert first.logprobs + rest.logprobs == whole.logprobs
        assert first.signals + rest.signals == whole.signals


def test_several_samples_end_with_the_first_and_their_cost_is_told(engine: ModelEngine) -> None:
    task = opened(engine, DOG, GAVE)
    full = Circuit.full(task.resolved.graph)
    short, long = (replace(GREEDY, max_tokens=tokens) for tokens in (3, 9))
    requests = [task.request(0, short), task.request(1, long)]
    operation = DecodeUnderCircuit(requests, 16, task.resolved.task.num_tokens, full)
    (outcome,) = engine.run([Work(task.state, operation)])
    assert isinstance(outcome, Decoded)
    assert [len(sample.ids) for sample in outcome.samples] == [3, 3]
    assert [sample.finish for sample in outcome.samples] == ["length", ""]
    lengths = [len(ids) for ids in task.resolved.task.clean]
    assert outcome.usage.steps == 6
    assert outcome.usage.prompt_computed == 3 * sum(lengths) + 2 * (1 + 2)
    assert outcome.usage.peak_kv_tokens == 0
    three = DecodeUnderCircuit(requests, 3, task.resolved.task.num_tokens, full)
    assert three.weight * task.resolved.task.num_tokens == 2 * outcome.usage.prompt_computed


def test_models_and_memory_that_do_not_do(zoo: Zoo, demo: LoadedModel) -> None:
    def why(model: LoadedModel, room: int = 1 << 30) -> str:
        offer, told = circuit_offer(model, room)
        assert (offer is None) == bool(told)
        return told

    assert not why(demo)
    assert "see later ones" in why(LoadedModel(zoo["hooked bidirectional"], None, ""))
    assert "start the server with more --memory" in why(demo, 1000)
    offer, _ = circuit_offer(demo, 1 << 30)
    assert offer is not None
    assert (offer.context, offer.texts, offer.most_sequences) == (64, True, 1)
    graph = demo.model.architecture.graph("group")
    less, _ = circuit_offer(demo, 4 * 10 * graph.num_senders * demo.model.architecture.d_model * 4)
    assert less is not None
    assert less.context == 10
