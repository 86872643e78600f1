"""Sampling as a method: what may be asked, the artifact, the journal, and that nothing but these matters."""

from __future__ import annotations

import hashlib
import json
import random
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.fake_engine import GRAPH, OBJECTIVE
from helpers.fake_generator import CIRCUIT_OFFER, OFFER, decode, whole

from pahq_server.core.artifact import Artifact, unpack
from pahq_server.core.circuit import Circuit, EdgeSet
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.errors import InvalidRequestError, OtherModelError, ServerError
from pahq_server.core.generation import (
    Decoded,
    DecodedSample,
    DecodeUnderCircuit,
    DecodeUsage,
    GenerationOffer,
)
from pahq_server.core.graph import Graph
from pahq_server.core.task import TokenTask
from pahq_server.methods.base import MethodContext
from pahq_server.methods.generate.method import Generate
from pahq_server.methods.generate.parameters import TOKEN_BYTES, GenerateParameters
from pahq_server.methods.generate.policies import NAMES
from pahq_server.methods.generate.samples import (
    FinishedSample,
    RunTotals,
    read_records,
    record,
    sample_seed,
    samples_bytes,
)

PROMPTS = ((1, 2, 3), (4,), (5, 6))


def resolved(
    offer: GenerationOffer | None = OFFER, prompts: Sequence[tuple[int, ...]] = PROMPTS, why: str = ""
) -> ResolvedObjective:
    return ResolvedObjective(
        OBJECTIVE,
        TokenTask(tuple(prompts)),
        GRAPH,
        "c0ffee",
        activations=False,
        generation=offer,
        no_generation=why,
    )


def run(
    asked: GenerateParameters,
    offer: GenerationOffer = OFFER,
    journal: Sequence[bytes] = (),
    stop_after: int | None = None,
) -> tuple[Artifact | None, MethodContext[GenerateParameters], bytes]:
    """Runs the method on the fake generator; also returns the journal."""
    context = MethodContext(resolved(offer), asked, journal)
    steps, result, done = Generate().run(context), None, 0
    kept = b"".join(journal)
    while True:
        try:
            operation = steps.send(result)
        except StopIteration as end:
            return end.value, context, kept
        assert len(operation.requests) <= (asked.slots or 32)
        result = decode(operation)
        kept += context.take_records().data
        done += 1
        if stop_after is not None and done >= stop_after:
            return None, context, kept


def parameters(**changes: Any) -> GenerateParameters:
    return GenerateParameters(**({"max_tokens": 24, "n": 8, "seed": 3} | changes))


def test_a_sample_has_the_seed_that_is_documented() -> None:
    digest = hashlib.sha256(b"7/12").digest()
    assert sample_seed(7, 12) == int.from_bytes(digest[:8], "big") // 2
    assert len({sample_seed(0, i) for i in range(4096)}) == 4096
    assert sample_seed(1, 23) != sample_seed(12, 3)


def test_the_artifact_holds_every_sample_of_every_prompt() -> None:
    asked = parameters(logprobs=True)
    artifact, context, _ = run(asked)
    assert artifact is not None
    assert (artifact.kind, artifact.version) == ("samples", 1)
    header, arrays = unpack(artifact.data)
    assert header == {"finishes": ["", "stop", "length"], "kind": "samples", "n": 8, "version": 1}
    assert arrays["prompt"].tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert arrays["index"].tolist() == list(range(8)) * 3
    assert (arrays["ids"].dtype, arrays["logprobs"].dtype) == (np.int64, np.float32)
    bounds, finishes = arrays["offsets"].tolist(), header["finishes"]
    for i in range(24):
        expected = whole(PROMPTS[i // 8], sample_seed(3, i % 8), 24)
        ours = slice(bounds[i], bounds[i + 1])
        assert tuple(arrays["ids"][ours].tolist()) == expected.ids
        assert tuple(arrays["logprobs"][ours].tolist()) == expected.logprobs
        assert finishes[arrays["finish"][i]] == expected.finish
    assert arrays["prompt_ids"].tolist() == [1, 2, 3, 4, 5, 6]
    assert arrays["prompt_offsets"].tolist() == [0, 3, 4, 6]
    tokens = len(arrays["ids"])
    assert artifact.figures["tokens"] == context.counts["tokens"] == tokens
    assert context.progress.done == 24
    assert context.chosen == {"policy": "longest_first"}  # what auto stands for here


def reference(asked: GenerateParameters) -> bytes:
    """The slow twin: every sample by itself."""
    found = []
    for key in range(asked.n * len(PROMPTS)):
        prompt, index = divmod(key, asked.n)
        each = whole(PROMPTS[prompt], sample_seed(asked.seed, index), asked.max_tokens)
        logprobs = each.logprobs if asked.logprobs else ()
        found.append(FinishedSample(key, each.ids, logprobs, each.finish, ""))
    return samples_bytes(found, PROMPTS, asked.n, asked.logprobs, texts=False)


@pytest.mark.parametrize("policy", NAMES)
def test_the_same_bytes_whatever_policy_slots_and_interruptions(policy: str) -> None:
    source = random.Random(policy)
    for _ in range(12):
        memory = source.choice([{"slots": source.randint(1, 16)}, {"kv_tokens": source.randint(27, 300)}, {}])
        asked = parameters(policy=policy, logprobs=source.random() < 0.5, seed=source.randrange(99), **memory)
        expected = reference(asked)
        journal: list[bytes] = []
        for _ in range(source.randrange(4)):  # killed so often
            _, _, kept = run(asked, journal=journal, stop_after=source.randrange(1, 9))
            journal = [kept]
        artifact, context, _ = run(asked, journal=journal)
        assert artifact is not None
        assert artifact.data == expected
        assert context.counts["steps"] >= context.counts["lower_bound"] > 0


def test_figures_go_on_after_an_interruption() -> None:
    asked = parameters(slots=4)
    _, undisturbed, _ = run(asked)
    _, _, kept = run(asked, stop_after=6)
    found, totals = read_records([kept])
    assert found
    assert totals.steps > 0
    _, after, _ = run(asked, journal=[kept])
    assert after.counts["steps"] >= undisturbed.counts["steps"]
    assert after.counts["tokens"] == undisturbed.counts["tokens"]
    assert 0 < after.counts["peak_kv_tokens"] <= 4 * 27
    assert after.counts["peak_kv_bytes"] == 8 * after.counts["peak_kv_tokens"]


def test_what_was_found_by_then() -> None:
    method, asked = Generate(), parameters(slots=4)
    _, _, kept = run(asked, stop_after=5)
    artifact = method.partial(MethodContext(resolved(), asked, [kept]))
    assert artifact is not None
    _, arrays = unpack(artifact.data)
    assert 0 < len(arrays["finish"]) < 24
    (warning,) = artifact.warnings
    assert f"these are {len(arrays['finish'])} of 24 samples" in warning
    assert method.partial(MethodContext(resolved(), asked, [])) is None


def test_records_are_read_as_they_were_written() -> None:
    samples = [
        FinishedSample(7, (1, 2, 2**40), (-0.5, -0.25, 0.0), "stop", "naïve 🙂"),
        FinishedSample(0, (9,), (), "length", ""),
    ]
    totals = [RunTotals(1, 2, 3, 4), RunTotals(10, 20, 30, 40)]
    pieces = [record(*pair) for pair in zip(samples, totals, strict=True)]
    assert read_records([b"".join(pieces)]) == read_records(pieces) == (samples, totals[-1])
    for cut in (1, len(pieces[0]) - 1, len(pieces[0]) + 3):
        with pytest.raises(ValueError, match="cut off"):
            read_records([b"".join(pieces)[:cut]])


def test_a_journal_of_another_request_is_refused() -> None:
    foreign = record(FinishedSample(99, (1,), (), "stop", ""), RunTotals())
    with pytest.raises(ValueError, match="not among the 24"):
        run(parameters(), journal=[foreign])


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"n": 4097}, "n", "from 1 to 4096, got 4097"),
        ({"n": -1}, "n", "from 1 to 4096, got -1"),
        ({"n": False}, "n", "got False"),
        ({"max_tokens": 0}, "max_tokens", "from 1 to"),
        ({"temperature": -0.1}, "temperature", "from 0 to 100, got -0.1"),
        ({"temperature": float("nan")}, "temperature", "from 0 to 100, got nan"),
        ({"temperature": "1"}, "temperature", "must be a number, got '1'"),
        ({"temperature": 10**400}, "temperature", "that a float can hold"),
        ({"temperature": 101.0}, "temperature", "from 0 to 100"),
        ({"top_p": 0.0}, "top_p", "above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p", "above 0 and at most 1"),
        ({"top_p": -1.0}, "top_p", "above 0 and at most 1"),
        ({"top_k": -1}, "top_k", "from 0"),
        ({"seed": -1}, "seed", "from 0"),
        ({"stop": ("a", "")}, "stop[1]", "is empty"),
        ({"stop": ("a",) * 17}, "stop", "at most 16 texts, got 17"),
        ({"stop": ("a" * 2000,)}, "stop[0]", "at most 1024 bytes"),
        ({"slots": 0}, "slots", "from 1"),
        ({"kv_tokens": 0}, "kv_tokens", "from 1"),
        ({"slots": 1, "kv_tokens": 99}, "kv_tokens", "one of both"),
        ({"policy": "best"}, "policy", "one of auto, "),
        ({"logprobs": 1}, "logprobs", "true or false"),
    ],
)
def test_values_that_are_not_allowed(change: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parameters(**change)
    assert caught.value.field == field
    assert words in caught.value.detail


@pytest.mark.parametrize(
    ("change", "offer", "field", "words"),
    [
        ({"max_tokens": 62}, OFFER, "max_tokens", "context of 64: ask for at most 61"),
        ({"max_tokens": 1}, replace(OFFER, context=3), "max_tokens", "give a shorter prompt"),
        ({"slots": 17}, OFFER, "slots", "from 1 to 16 here, got 17"),
        ({"slots": 5}, replace(OFFER, kv_tokens=108), "slots", "from 1 to 4 here"),
        ({"slots": 4}, replace(OFFER, kv_tokens=108, block_tokens=12), "slots", "from 1 to 3 here"),
        ({"kv_tokens": 26}, OFFER, "kv_tokens", "at least 27"),
        ({}, replace(OFFER, kv_tokens=26), "max_tokens", "--generation-memory"),
        ({"stop": (".",)}, OFFER, "stop", "has no tokenizer"),
        (
            {"n": 4096, "max_tokens": 1000},
            replace(OFFER, context=2000),
            "n",
            "12288000 in all, and may be at most 2097152, which take 32 MiB",
        ),
        ({}, None, "model", "'toy': start it otherwise"),
    ],
)
def test_values_that_do_not_fit_the_model(
    change: dict[str, Any], offer: GenerationOffer | None, field: str, words: str
) -> None:
    asked = parameters(**change)
    with pytest.raises(InvalidRequestError) as caught:
        Generate().check(asked, resolved(offer, why="" if offer else "start it otherwise"))
    assert caught.value.field == field
    assert words in caught.value.detail


def test_samples_of_all_prompts_are_bounded() -> None:
    method, prompts = Generate(), [(1,), (2,), (3,), (4,), (5,)]
    method.check(parameters(n=4096), resolved(prompts=prompts[:4]))
    with pytest.raises(InvalidRequestError, match="are 20480, and may be at most 16384"):
        method.check(parameters(n=4096), resolved(prompts=prompts))


def test_a_finished_token_takes_as_much_memory_as_the_limit_reckons() -> None:
    sample = FinishedSample(0, range(1000), (0.5,) * 1000, "length", "")
    tracemalloc.start()
    try:
        kept = [replace(sample, key=key) for key in range(100)]
        assert tracemalloc.get_traced_memory()[0] <= len(kept) * 1000 * TOKEN_BYTES
    finally:
        tracemalloc.stop()


def test_zero_stands_for_the_usual() -> None:
    assert GenerateParameters(max_tokens=1, n=0, policy="") == GenerateParameters(max_tokens=1)


def test_what_may_mislead() -> None:
    method = Generate()
    assert method.warnings(parameters(), resolved()) == ()
    (repeated,) = method.warnings(parameters(), resolved(prompts=[(1,), (2,), (1,)]))
    assert repeated.startswith("1 of 3 prompts are repetitions")
    (greedy,) = method.warnings(parameters(temperature=0), resolved())
    assert "all 8 samples of a prompt are the same" in greedy
    assert method.warnings(parameters(temperature=0, n=1), resolved()) == ()


def test_a_backend_that_loses_tokens_is_no_success() -> None:
    context = MethodContext(resolved(), parameters(n=1, logprobs=True))
    steps = Generate().run(context)
    operation = next(steps)
    broken = Decoded(
        tuple(DecodedSample((1, 2), (-0.5,), (), "stop") for _ in operation.requests), DecodeUsage(1, 1, 0, 0)
    )
    with pytest.raises(ServerError, match="cannot be right"):
        steps.send(broken)


# Under a circuit


def edges(circuit: Circuit, revision: str = "c0ffee") -> EdgeSet:
    return EdgeSet(circuit.graph, revision, np.packbits(circuit.kept, bitorder="little").tobytes())


FULL = edges(Circuit.full(GRAPH))


def under_circuit(ablation: str = "zero", corrupted: bool = False, **changes: Any) -> ResolvedObjective:
    """An objective on a server that generates no text otherwise."""
    prompts = tuple(tuple(99 - token for token in ids) for ids in PROMPTS)
    fields: dict[str, Any] = {
        "objective": replace(OBJECTIVE, ablation=ablation, **changes),
        "task": TokenTask(PROMPTS, prompts if corrupted else None),
        "circuit_generation": CIRCUIT_OFFER,
    }
    return replace(resolved(None, why="no backend"), **fields)


@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_samples_under_a_circuit_and_after_interruptions(ablation: str) -> None:
    asked = parameters(circuit=FULL, logprobs=True)
    objective = under_circuit(ablation, corrupted=True)
    Generate().check(asked, objective)
    expected, journal = reference(asked), [b""]
    for stop_after in (1, 70, 20, None):
        context = MethodContext(objective, asked, journal)
        steps, result, done = Generate().run(context), None, 0
        artifact: Artifact | None = None
        while done != stop_after and artifact is None:
            try:
                operation = steps.send(result)
            except StopIteration as end:
                artifact = end.value
                break
            assert type(operation) is DecodeUnderCircuit
            assert operation.circuit.kept.all()
            assert operation.steps == 1
            (request,) = operation.requests
            assert operation.corrupted == (
                (tuple(99 - token for token in request.prompt),) if ablation == "resample" else ()
            )
            assert operation.weight > 0
            result = decode(operation)
            journal.append(context.take_records().data)
            done += 1
        journal.append(context.take_records().data)
    assert artifact is not None
    assert artifact.data == expected
    assert context.counts["slots"] == 1
    assert context.counts["peak_kv_bytes"] == 0


def test_the_weight_is_that_of_the_operations() -> None:
    """Where all samples have their most tokens; those of a fake end earlier."""
    asked, objective = parameters(n=2, max_tokens=5, circuit=FULL), under_circuit("resample", corrupted=True)
    lengths = [len(ids) + number for ids in PROMPTS for _ in range(2) for number in range(5)]
    assert Generate().weight(asked, objective) == 3 * sum(lengths) / objective.task.num_tokens


@pytest.mark.parametrize(
    ("circuit", "objective", "field", "words"),
    [
        (FULL, under_circuit("mean"), "ablation", "for text under a circuit, got 'mean'"),
        (FULL, under_circuit("resample"), "task.corrupted", "needs corrupted prompts"),
        (FULL, under_circuit(precision="pahq"), "precision", "must be 'fp32'"),
        (FULL, replace(under_circuit(), circuit_generation=None, no_circuit_generation="too large"), "model",
         "'toy': too large"),
        (FULL, replace(under_circuit(), circuit_generation=replace(CIRCUIT_OFFER, context=20)), "max_tokens",
         "the 20 that a text under a circuit may have: ask for at most 17"),
        (replace(FULL, bits=FULL.bits[1:]), under_circuit(), "circuit.bits", "one bit for each"),
        (edges(Circuit.full(GRAPH), "bad"), under_circuit(), "circuit", "another model"),
        (edges(Circuit.full(Graph(1, 2, 2))), under_circuit(), "circuit", "another model"),
    ],
)  # fmt: skip
def test_circuits_that_do_not_do(
    circuit: EdgeSet, objective: ResolvedObjective, field: str, words: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Generate().check(parameters(circuit=circuit), objective)
    assert caught.value.field == field
    assert words in caught.value.detail
    assert isinstance(caught.value, OtherModelError) == ("another model" in words)
    assert "allow_other_model" not in caught.value.detail


def test_a_circuit_that_names_shared_keys_otherwise() -> None:
    grouped = Graph(2, 4, 2, "query")
    objective = replace(under_circuit(), graph=Graph(2, 4, 2, "group"))
    with pytest.raises(InvalidRequestError) as caught:
        Generate().check(parameters(circuit=edges(Circuit.full(grouped))), objective)
    assert caught.value.field == "kv_receivers"


def test_a_circuit_is_stored_and_told() -> None:
    method, asked = Generate(), parameters(circuit=FULL)
    assert method.read_stored(json.loads(json.dumps(method.stored(asked)))) == asked
    assert method.read_stored(method.stored(parameters())) == parameters()
    assert "circuit" not in method.identity(parameters())
    other = parameters(circuit=edges(Circuit.empty(GRAPH)))
    assert method.identity(asked) != method.identity(other)
    assert method.determinants(asked, under_circuit()) == {"generation": {"backend": "pahq", "version": "0"}}
    assert method.determinants(parameters(), under_circuit()) == {}


def test_a_circuit_that_leads_nowhere_is_warned_of() -> None:
    empty = parameters(circuit=edges(Circuit.empty(GRAPH)))
    (told,) = Generate().warnings(empty, under_circuit())
    assert "does not depend on the prompt" in told
    assert Generate().warnings(parameters(circuit=FULL), under_circuit()) == ()


def test_corrupted_prompts_that_mislead() -> None:
    def told(ablation: str, *pairs: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[str, ...]:
        task = TokenTask(tuple(clean for clean, _ in pairs), tuple(corrupted for _, corrupted in pairs))
        return Generate().warnings(parameters(circuit=FULL), replace(under_circuit(ablation), task=task))

    assert told("resample", ((1, 2), (3, 2)), ((1, 2), (4, 2))) == ()
    (repeated,) = told("resample", ((1, 2), (3, 2)), ((1, 2), (3, 2)))
    assert repeated.startswith("1 of 2 prompts are repetitions")
    (same,) = told("resample", ((1, 2), (1, 2)), ((5, 2), (4, 2)))
    assert "are the same in 1 of 2 pairs" in same
    (unused,) = told("zero", ((1, 2), (3, 2)))
    assert "have no effect" in unused
