"""Decode operations of several jobs on one generator: begun, continued, dropped, begun again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.fake_generator import OFFER, FakeBackend, FakeGenerator, whole

from pahq_server.core.engine import EngineStateId, Objective, ResolvedObjective, Work
from pahq_server.core.errors import NonFiniteMetricError, ServerError
from pahq_server.core.generation import Decode, Decoded, GenerationOffer, SampleRequest, Sampling
from pahq_server.core.operations import ScorePasses
from pahq_server.core.task import PromptTask
from pahq_server.demo import model_path
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.generation.backend import SequenceId
from pahq_server.models.loading import LoadedModel, load

SAMPLING = Sampling(max_tokens=40)
PROMPT = (1, 2, 3)


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load(str(Path(model_path())))


def serve(
    demo: LoadedModel, offer: GenerationOffer = OFFER, **backend: object
) -> tuple[ModelEngine, FakeBackend]:
    made = FakeBackend(offer, **backend)  # type: ignore[arg-type]
    return ModelEngine({"demo": demo}, memory_bytes=1 << 26, generation=made), made


def resolve(engine: ModelEngine, metric: str = "l2") -> ResolvedObjective:
    objective = Objective("demo", PromptTask((PROMPT,)), metric, "zero", "group", "fp32")
    return engine.resolve(objective, activations=False)


def request(key: int, prefix: tuple[int, ...] = (), sampling: Sampling = SAMPLING) -> SampleRequest:
    return SampleRequest(key, PROMPT, 1000 + key, sampling, prefix)


def ids(key: int) -> tuple[int, ...]:
    return whole(PROMPT, 1000 + key, SAMPLING.max_tokens).ids


def decode(
    engine: ModelEngine, *work: tuple[EngineStateId, list[SampleRequest]], steps: int = 4
) -> list[object]:
    return engine.run([Work(state, Decode(requests, steps, 3)) for state, requests in work])


def decoded(outcome: object) -> Decoded:
    assert isinstance(outcome, Decoded), outcome
    return outcome


def finish(engine: ModelEngine, state: EngineStateId, keys: list[int]) -> dict[int, tuple[int, ...]]:
    """Runs samples to their ends, with all that is known of each as its prefix."""
    known: dict[int, tuple[int, ...]] = dict.fromkeys(keys, ())
    running = list(keys)
    while running:
        (outcome,) = decode(engine, (state, [request(key, known[key]) for key in running]))
        for key, sample in zip(list(running), decoded(outcome).samples, strict=True):
            known[key] += sample.ids
            if sample.finish:
                running.remove(key)
    return known


def test_no_prompt_is_run_for_a_job_that_needs_no_activations(demo: LoadedModel) -> None:
    engine, _ = serve(demo)
    objective = resolve(engine)
    before = engine.memory_usage().used
    state = engine.open(objective)
    assert engine.memory_usage().used == before
    assert objective.clean_run.margins is None
    (outcome,) = engine.run([Work(state, ScorePasses(()))])
    assert isinstance(outcome, ServerError)
    engine.close(state)


def test_samples_are_run_to_their_ends_and_dropped_with_their_state(demo: LoadedModel) -> None:
    engine, backend = serve(demo)
    state = engine.open(resolve(engine))
    assert backend.made == []  # not before it is needed
    assert finish(engine, state, [0, 1, 2]) == {key: ids(key) for key in range(3)}
    (generator,) = backend.made
    engine.close(state)
    assert generator.sequences == {}
    engine.stop()
    assert generator.closed


def test_logits_that_are_not_finite_end_one_job_alone(
    demo: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeGenerator.run

    def broken(self: FakeGenerator, sequences: Collection[SequenceId], steps: int) -> int:
        passes = run(self, sequences, steps)
        if any(key == 7 for _, key in sequences):  # in the middle of a pass: all have half a token
            raise NonFiniteMetricError("the model gave logits that are not finite")
        return passes

    monkeypatch.setattr(FakeGenerator, "run", broken)
    engine, backend = serve(demo)
    a, b = engine.open(resolve(engine)), engine.open(resolve(engine))
    first, second = decode(engine, (a, [request(0)]), (b, [request(7)]), steps=3)
    assert decoded(first).samples[0].ids == ids(0)[:3]
    assert isinstance(second, NonFiniteMetricError)
    assert finish(engine, a, [0, 1]) == {key: ids(key) for key in range(2)}
    assert [each.closed for each in backend.made] == [True, True, False]


def test_an_operation_ends_early_with_a_sample(demo: LoadedModel) -> None:
    engine, _ = serve(demo)
    state = engine.open(resolve(engine))
    shortest = min(len(ids(key)) for key in range(4))
    (outcome,) = decode(engine, (state, [request(key) for key in range(4)]), steps=1000)
    assert decoded(outcome).usage.steps == shortest
    assert {len(sample.ids) for sample in decoded(outcome).samples} == {shortest}


def test_two_jobs_run_together_and_one_that_is_not_asked_stands_still(demo: LoadedModel) -> None:
    engine, backend = serve(demo)
    a, b = engine.open(resolve(engine)), engine.open(resolve(engine))
    first, second = decode(engine, (a, [request(0)]), (b, [request(1)]), steps=1)
    assert [decoded(each).samples[0].ids for each in (first, second)] == [ids(0)[:1], ids(1)[:1]]
    (generator,) = backend.made
    assert generator.runs == [(((0, 0), (1, 1)), 1)]
    (third,) = decode(engine, (b, [request(1, ids(1)[:1])]), steps=1)
    assert decoded(third).samples[0].ids == ids(1)[1:2]
    assert set(generator.sequences) == {(0, 0), (1, 1)}
    engine.close(a)
    assert set(generator.sequences) == {(1, 1)}


def test_a_sample_that_is_left_out_is_dropped_and_goes_on_from_its_prefix(demo: LoadedModel) -> None:
    engine, backend = serve(demo)
    state = engine.open(resolve(engine))
    decode(engine, (state, [request(0), request(1)]), steps=1)
    decode(engine, (state, [request(1, ids(1)[:1])]), steps=1)
    assert set(backend.made[0].sequences) == {(0, 1)}
    (outcome,) = decode(engine, (state, [request(0, ids(0)[:1])]), steps=1)
    assert decoded(outcome).samples[0].ids == ids(0)[1:2]
    assert decoded(outcome).usage.prompt_computed == len(PROMPT) + 1


def test_a_generator_that_fails_is_made_again_and_nothing_changes(demo: LoadedModel) -> None:
    engine, backend = serve(demo)
    state = engine.open(resolve(engine))
    (outcome,) = decode(engine, (state, [request(0)]), steps=1)
    backend.made[0].fails = 1
    (outcome,) = decode(engine, (state, [request(0, ids(0)[:1])]), steps=1)
    assert decoded(outcome).samples[0].ids == ids(0)[1:2]
    assert [generator.closed for generator in backend.made] == [True, False]


def test_a_generator_that_fails_twice_is_an_error_of_these_jobs_alone(demo: LoadedModel) -> None:
    engine, backend = serve(demo, fails=2)
    state = engine.open(resolve(engine))
    (outcome,) = decode(engine, (state, [request(0)]), steps=1)
    assert isinstance(outcome, ServerError)
    assert "failed twice" in str(outcome)
    assert len(backend.made) == 2
    (outcome,) = decode(engine, (state, [request(0)]), steps=1)
    assert decoded(outcome).samples[0].ids == ids(0)[:1]


def test_samples_that_do_not_fit_wait_and_jobs_take_turns(demo: LoadedModel) -> None:
    engine, backend = serve(demo, replace(OFFER, most_sequences=3))
    a, b = engine.open(resolve(engine)), engine.open(resolve(engine))
    first, second = decode(
        engine, (a, [request(0), request(1), request(2)]), (b, [request(3), request(4)]), steps=1
    )
    assert [len(sample.ids) for sample in decoded(first).samples] == [1, 1, 0]
    assert [len(sample.ids) for sample in decoded(second).samples] == [1, 0]
    assert backend.made[0].most == 3


def test_samples_that_stand_still_give_way_and_go_on_later(demo: LoadedModel) -> None:
    engine, backend = serve(demo, replace(OFFER, most_sequences=3))
    a, b = engine.open(resolve(engine)), engine.open(resolve(engine))
    decode(engine, (a, [request(0), request(1), request(2)]), steps=1)
    (outcome,) = decode(engine, (b, [request(3), request(4)]), steps=1)
    assert [len(sample.ids) for sample in decoded(outcome).samples] == [1, 1]
    assert set(backend.made[0].sequences) == {(0, 0), (1, 3), (1, 4)}
    (outcome,) = decode(engine, (a, [request(key, ids(key)[:1]) for key in range(3)]), steps=1)
    assert [sample.ids for sample in decoded(outcome).samples] == [ids(key)[1:2] for key in range(3)]


def test_keys_and_values_never_take_more_than_there_is(demo: LoadedModel) -> None:
    engine, backend = serve(demo, replace(OFFER, kv_tokens=50))
    state = engine.open(resolve(engine))
    assert finish(engine, state, [0, 1, 2, 3, 4, 5]) == {key: ids(key) for key in range(6)}
    generator: FakeGenerator = backend.made[0]
    assert generator.most > 1


@pytest.mark.parametrize("block_tokens", [1, 3, 8])
def test_memory_is_counted_in_whole_blocks(demo: LoadedModel, block_tokens: int) -> None:
    """Each sample has 4 tokens after its first step."""
    offer = replace(OFFER, kv_tokens=24, block_tokens=block_tokens)
    engine, backend = serve(demo, offer)
    a, b = engine.open(resolve(engine)), engine.open(resolve(engine))
    decode(engine, (a, [request(key) for key in range(6)]), steps=1)
    assert backend.made[0].most == {1: 6, 3: 4, 8: 3}[block_tokens]
    (outcome,) = decode(engine, (b, [request(7), request(8)]), steps=1)
    assert [len(sample.ids) for sample in decoded(outcome).samples] == [1, 1]
    standing = [key for state, key in backend.made[0].sequences if state == 0]
    assert len(standing) == {1: 4, 3: 2, 8: 1}[block_tokens]


def test_a_model_that_the_backend_refuses(demo: LoadedModel) -> None:
    engine, _ = serve(demo, refusal="gpt_neo is not supported: use --generation transformers")
    objective = resolve(engine)
    assert objective.generation is None
    assert "use --generation transformers" in objective.no_generation
    (model,) = engine.models()
    assert (model.generation, model.no_generation) == ("", objective.no_generation)


def test_a_server_without_a_backend_says_how_to_start_one(demo: LoadedModel) -> None:
    engine = ModelEngine({"demo": demo}, memory_bytes=1 << 26)
    assert "--generation transformers" in resolve(engine).no_generation
    assert engine.capabilities().generation == ""
