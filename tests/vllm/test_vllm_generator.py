"""Real vLLM with real models. Run by ``make test-vllm``, in an environment of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import random_models, vllm_models
from helpers.processes import in_group, wait_for
from helpers.steering import random_steering, steered

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.generation import DecodedSample, SampleRequest, Sampling
from pahq_server.demo import model_path
from pahq_server.engine.generation import vllm_backend
from pahq_server.engine.generation.backend import GeneratorFailedError
from pahq_server.engine.generation.sampling import draw
from pahq_server.engine.generation.vllm_backend import VllmBackend, VllmGenerator
from pahq_server.engine.self_test import literal_logits
from pahq_server.engine.transformers_model import load_causal_lm
from pahq_server.models.loading import LoadedModel, load
from pahq_server.models.tokenizer import PretrainedTokenizer

pytestmark = vllm_models.needs_vllm

KV_BYTES = 16 << 20
TEXT = "The cat saw the dog and the man gave the"
LONG = Sampling(max_tokens=40, logprobs=True)


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load(str(model_path()))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return vllm_models.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def demo_generator(demo: LoadedModel) -> Iterator[VllmGenerator]:
    generator = VllmBackend(KV_BYTES).generator(demo)
    yield generator
    generator.close()


@pytest.fixture(scope="module")
def llama_generator(llama: LoadedModel) -> Iterator[VllmGenerator]:
    generator = VllmBackend(KV_BYTES).generator(llama)
    yield generator
    generator.close()


@pytest.fixture(params=["demo", "llama"])
def pair(request: pytest.FixtureRequest) -> tuple[LoadedModel, VllmGenerator]:
    return request.getfixturevalue(request.param), request.getfixturevalue(f"{request.param}_generator")


def _prompts(loaded: LoadedModel, count: int) -> list[tuple[int, ...]]:
    """Prompts of different lengths, every other one the same."""
    if isinstance(loaded.tokenizer, PretrainedTokenizer):
        ids = loaded.tokenizer.encode(TEXT)
    else:
        ids = torch.randint(
            vllm_models.VOCABULARY, (40,), generator=torch.Generator().manual_seed(1)
        ).tolist()
    return [tuple(ids[: len(ids) if i % 2 else 2 + i % 7]) for i in range(count)]


def _requests(loaded: LoadedModel, count: int, sampling: Sampling = LONG) -> list[SampleRequest]:
    prompts = _prompts(loaded, count)
    return [
        SampleRequest(i, prompts[i], seed=2**62 + 7919 * i, sampling=sampling, signals=sampling.max_tokens)
        for i in range(count)
    ]


def _generate(
    generator: VllmGenerator, requests: Sequence[SampleRequest], slots: int, steps: int = 1000, job: int = 0
) -> list[DecodedSample]:
    """Generates samples, so many at a time."""
    waiting, running, ended = list(requests), set[int](), dict[int, DecodedSample]()
    while waiting or running:
        while waiting and len(running) < slots:
            request = waiting.pop(0)
            generator.add((job, request.key), request)
            running.add(request.key)
        generator.run([(job, key) for key in running], steps)
        for key in list(running):
            found = generator.sample((job, key))
            if found.finish:
                ended[key] = found
                generator.drop((job, key))
                running.remove(key)
    return [ended[request.key] for request in requests]


def test_tokens_are_drawn_from_the_models_distribution(pair: tuple[LoadedModel, VllmGenerator]) -> None:
    loaded, generator = pair
    how = Sampling(max_tokens=20, temperature=0.8, top_k=20, top_p=0.9, logprobs=True)
    requests = _requests(loaded, 6, how)
    drawn_alike = total = 0
    for request, found in zip(requests, _generate(generator, requests, slots=6), strict=True):
        ids = (*request.prompt, *found.ids)
        logits = literal_logits(loaded, [ids])[0][len(request.prompt) - 1 : -1]
        count = len(found.ids)
        expected = draw(
            logits, [how] * count, [request.seed] * count, range(count), generator.offer.end_tokens
        )
        own = logits.double().log_softmax(-1)
        for number, (token, one) in enumerate(zip(found.ids, expected, strict=True)):
            assert found.logprobs[number] == pytest.approx(float(own[number, token]), abs=1e-4)
            assert found.signals[number].entropy == pytest.approx(one.signal.entropy, abs=1e-4)
            assert found.signals[number].end_logprob == pytest.approx(one.signal.end_logprob, abs=1e-4)
            drawn_alike += token == one.id
        total += count
    # A difference in the last bits may move a token across the edge of a draw, very rarely.
    assert drawn_alike >= total - 1


@pytest.mark.parametrize(("slots", "steps"), [(1, 1000), (3, 1), (5, 4), (16, 7)])
def test_samples_do_not_depend_on_slots_or_steps(
    pair: tuple[LoadedModel, VllmGenerator], slots: int, steps: int
) -> None:
    loaded, generator = pair
    requests = _requests(loaded, 16)
    assert _generate(generator, requests, slots, steps) == _generate(generator, requests, slots=16)


def test_a_sample_goes_on_from_any_prefix(pair: tuple[LoadedModel, VllmGenerator]) -> None:
    loaded, generator = pair
    requests = _requests(
        loaded, 8, Sampling(max_tokens=20, logprobs=True, stop=("zebra",)[: loaded.tokenizer is not None])
    )
    whole = _generate(generator, requests, slots=8)
    longest = max(range(8), key=lambda i: len(whole[i].ids))
    request, sample = requests[longest], whole[longest]
    assert len(sample.ids) > 4
    parts = [replace(request, key=n, prefix=sample.ids[:n]) for n in range(1, len(sample.ids))]
    for part, rest in zip(parts, _generate(generator, parts, slots=4), strict=True):
        n = part.key
        expected = DecodedSample(
            sample.ids[n:], sample.logprobs[n:], sample.signals[n:], sample.finish, sample.text
        )
        assert rest == expected


@pytest.mark.parametrize("logprobs", [False, True])
def test_only_what_is_wanted_of_the_distribution_is_told(
    demo: LoadedModel, demo_generator: VllmGenerator, logprobs: bool
) -> None:
    requests = _requests(demo, 6)
    whole = _generate(demo_generator, requests, slots=6)
    sampling = replace(LONG, logprobs=logprobs)
    fewer = [replace(each, sampling=sampling, signals=2 * each.key) for each in requests]
    for request, sample, found in zip(
        fewer, whole, _generate(demo_generator, fewer, slots=4, steps=3), strict=True
    ):
        told = sample.logprobs if logprobs else ()
        assert found == replace(sample, logprobs=told, signals=sample.signals[: request.signals])
    # Those of a prefix were told before.
    request, sample = fewer[3], whole[3]
    (rest,) = _generate(demo_generator, [replace(request, prefix=sample.ids[:4])], slots=1)
    assert (rest.ids, rest.signals) == (sample.ids[4:], sample.signals[4:6])


def test_steered_samples_are_those_of_a_model_with_hooks(pair: tuple[LoadedModel, VllmGenerator]) -> None:
    """Beside others that are steered otherwise or not at all, which keep every bit."""
    loaded, generator = pair
    edits = [None, *(random_steering(seed, loaded.model.architecture, 0.05) for seed in range(2))]
    how = Sampling(max_tokens=20, temperature=0, logprobs=True)
    requests = [replace(each, steering=edits[each.key % 3]) for each in _requests(loaded, 9, how)]
    found = _generate(generator, requests, slots=9)
    assert _generate(generator, requests, slots=2, steps=3) == found
    assert [found[key] for key in (0, 3, 6)] == _generate(generator, requests[::3], slots=3)
    for edit in edits:
        model = load_causal_lm(loaded.directory)
        plain = model if edit is None else steered(model, edit)
        for request, sample in zip(requests, found, strict=True):
            if request.steering is not edit:
                continue
            with torch.inference_mode():
                logits = plain(torch.tensor([(*request.prompt, *sample.ids)])).logits[0]
            own = logits[len(request.prompt) - 1 : -1].double().log_softmax(-1)
            for number, (token, logprob) in enumerate(zip(sample.ids, sample.logprobs, strict=True)):
                assert logprob == pytest.approx(float(own[number, token]), abs=1e-4)
                assert float(own[number].max()) == pytest.approx(logprob, abs=1e-4)


def test_keys_and_values_are_shared_by_samples_of_one_edit_only(
    llama: LoadedModel, llama_generator: VllmGenerator
) -> None:
    generator, arch = llama_generator, llama.model.architecture
    first, second, equal = (random_steering(seed, arch) for seed in (1, 2, 1))
    prompt = tuple(range(30, 65))
    asked = SampleRequest(0, prompt, 3, Sampling(2, temperature=0, logprobs=True))
    requests = [replace(asked, key=k, steering=edit) for k, edit in enumerate((None, first, second, equal))]
    reused, said = [], []
    for request in requests:
        generator.add((3, request.key), request)
        generator.run([(3, request.key)], 2)
        reused.append(generator.usage().prompt_reused[3, request.key])
        said.append(generator.sample((3, request.key)))
        generator.drop((3, request.key))
    assert reused == [0, 0, 0, vllm_backend.CPU_PAGE]
    assert said[1] == said[3]
    assert len({each.logprobs for each in said}) == 3


def test_a_steered_sample_goes_on_from_any_prefix(llama: LoadedModel, llama_generator: VllmGenerator) -> None:
    edit = random_steering(5, llama.model.architecture)
    (request,) = (replace(each, steering=edit) for each in _requests(llama, 1))
    (whole,) = _generate(llama_generator, [request], slots=1)
    parts = [replace(request, key=n, prefix=whole.ids[:n]) for n in range(1, len(whole.ids))]
    for part, rest in zip(parts, _generate(llama_generator, parts, slots=4), strict=True):
        assert (rest.ids, rest.logprobs) == (whole.ids[part.key :], whole.logprobs[part.key :])


def test_why_samples_end(demo: LoadedModel, demo_generator: VllmGenerator) -> None:
    (prompt,) = _prompts(demo, 2)[1:]
    assert isinstance(demo.tokenizer, PretrainedTokenizer)
    (whole,) = _generate(demo_generator, [SampleRequest(0, prompt, 5, Sampling(40, temperature=0))], 1)
    assert whole.finish == "stop"
    assert whole.ids[-1] in demo_generator.offer.end_tokens
    assert whole.text == demo.tokenizer.decode(whole.ids[:-1])
    (again,) = _generate(demo_generator, [SampleRequest(0, prompt, 6, Sampling(40, top_k=1))], 1)
    assert again.ids == whole.ids
    (short,) = _generate(demo_generator, [SampleRequest(0, prompt, 5, Sampling(2, temperature=0))], 1)
    assert (short.ids, short.finish, short.logprobs) == (whole.ids[:2], "length", ())
    stop = whole.text[2:5]
    how = Sampling(40, temperature=0, stop=("not there", stop))
    (stopped,) = _generate(demo_generator, [SampleRequest(0, prompt, 5, how)], 1)
    assert (stopped.text, stopped.finish) == (whole.text[:2], "stop")
    assert stop in demo.tokenizer.decode(stopped.ids)
    assert stop not in demo.tokenizer.decode(stopped.ids[:-1])


def test_a_full_context_ends_a_sample(llama: LoadedModel, llama_generator: VllmGenerator) -> None:
    prompt = _prompts(llama, 2)[1]
    most = vllm_models.CONTEXT - len(prompt)
    requests = [SampleRequest(i, prompt, i, Sampling(most)) for i in range(12)]
    lengths = {len(found.ids): found.finish for found in _generate(llama_generator, requests, slots=12)}
    assert lengths.pop(most, "length") == "length"
    assert set(lengths.values()) == {"stop"}


def test_run_ends_with_a_sample_or_with_enough_tokens(
    llama: LoadedModel, llama_generator: VllmGenerator
) -> None:
    generator = llama_generator
    requests = _requests(llama, 6, Sampling(max_tokens=30))
    lengths = [len(found.ids) for found in _generate(generator, requests, slots=6)]
    for request in requests:
        generator.add((1, request.key), request)
    running = [(1, request.key) for request in requests]
    assert generator.run(running, 1) == 1
    assert [len(generator.sample(each).ids) for each in running] == [1] * 6
    passes = 1
    while not any(generator.sample(each).finish for each in running):
        passes += generator.run(running, 4)
    assert passes == min(lengths)
    # One that has ended ends every further run at once.
    assert generator.run(running, 4) == 0
    for each in running:
        generator.drop(each)


def test_tokens_got_in_another_jobs_run_count(llama: LoadedModel, llama_generator: VllmGenerator) -> None:
    generator, (mine, other) = llama_generator, _requests(llama, 2, Sampling(max_tokens=30))
    generator.add((1, 0), mine)
    generator.add((2, 0), other)
    assert generator.run([(1, 0)], 1) == 1
    assert len(generator.sample((2, 0)).ids) == 1
    assert generator.run([(2, 0)], 1) == 0
    generator.drop((1, 0))
    generator.drop((2, 0))


def test_usage_counts_keys_and_values(llama: LoadedModel, llama_generator: VllmGenerator) -> None:
    generator = llama_generator
    prompt = tuple(range(40, 75))
    for key in range(2):
        generator.add((1, key), SampleRequest(key, prompt, key, Sampling(30)))
    assert generator.usage().tokens == {}
    generator.run([(1, 0), (1, 1)], 1)
    usage = generator.usage()
    assert usage.tokens == {(1, 0): 35, (1, 1): 35}
    # One page of 32 tokens is shared; the rest of the second prompt is computed.
    assert (usage.prompt_computed, usage.prompt_reused) == ({(1, 0): 35, (1, 1): 3}, {(1, 0): 0, (1, 1): 32})
    generator.drop((1, 0))
    generator.drop((1, 0))
    assert generator.usage().tokens == {(1, 1): 35}
    generator.drop((1, 1))
    assert generator.usage().tokens == {}


def test_a_model_that_vllm_computes_otherwise_is_refused(tmp_path: Path) -> None:
    """vLLM ignores this field of the configuration."""
    model = random_models.gpt2(
        n_embd=96, n_head=3, n_positions=64, vocab_size=vllm_models.VOCABULARY, scale_attn_weights=False
    )
    model.save_pretrained(tmp_path)
    with pytest.raises(InvalidRequestError, match="vLLM computes another model"):
        VllmBackend(KV_BYTES).generator(load(str(tmp_path)))


def test_a_killed_process_is_an_error_and_another_gives_the_same(demo: LoadedModel) -> None:
    requests = _requests(demo, 4)
    generator = VllmBackend(KV_BYTES).generator(demo)
    group = generator.process_id
    assert in_group(group)
    samples = _generate(generator, requests, slots=4)
    for request in requests:
        generator.add((0, request.key), request)
    os.kill(generator.process_id, signal.SIGKILL)
    assert wait_for(lambda: not in_group(group))
    with pytest.raises(GeneratorFailedError, match="SIGKILL"):
        generator.run([(0, 0)], 1000)
    generator.close()
    generator.close()
    # With keys and values of a few samples at once, all others wait or are computed again.
    page = vllm_backend.CPU_PAGE * generator.offer.kv_token_bytes
    generator = VllmBackend(6 * page).generator(demo)
    assert generator.offer.kv_tokens == 5 * vllm_backend.CPU_PAGE
    assert _generate(generator, requests, slots=4) == samples
    group = generator.process_id
    generator.close()
    assert not in_group(group)
