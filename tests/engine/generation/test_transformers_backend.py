"""Samples by transformers: what its `generate` gives, and the same whatever runs beside them."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_models as make
from helpers.steering import random_steering
from torch import Tensor

from pahq_server.core.errors import (
    ConflictError,
    InvalidRequestError,
    NonFiniteMetricError,
    ResourceExhaustedError,
)
from pahq_server.core.generation import DecodedSample, SampleRequest, Sampling
from pahq_server.demo import model_path
from pahq_server.engine.generation import transformers_backend
from pahq_server.engine.generation.backend import GeneratorFailedError, UnsupportedModelError
from pahq_server.engine.generation.row_independence import ATTENTION
from pahq_server.engine.generation.transformers_backend import (
    BLOCK_TOKENS,
    TransformersBackend,
    TransformersGenerator,
    load_generator,
)
from pahq_server.engine.transformers_model import load_causal_lm
from pahq_server.models.architecture import Architecture
from pahq_server.models.loading import LoadedModel, load

CONTEXT = 90
# By architecture: the name of the context in its configuration.
FAMILIES: dict[str, Callable[..., Any]] = {
    "gpt2": make.gpt2,
    "gpt_neo": make.gpt_neo,
    "gpt_neox": make.gpt_neox,
    "llama": make.llama,
    "mistral": make.mistral,
    "qwen2": make.qwen2,
    "qwen3": make.qwen3,
    "opt": make.opt,
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    """Random models with a longer context, each made once."""
    directory, made = tmp_path_factory.mktemp("families"), dict[str, LoadedModel]()

    def loaded(name: str) -> LoadedModel:
        if name not in made:
            size = {"n_positions" if name == "gpt2" else "max_position_embeddings": CONTEXT}
            FAMILIES[name](**size).save_pretrained(directory / name)
            made[name] = load(str(directory / name))
        return made[name]

    return loaded


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load(str(model_path()))


def generator_of(
    loaded: LoadedModel, kv_tokens: int = 2000, most: int = 32, batch_tokens: int = 512
) -> TransformersGenerator:
    offer = TransformersBackend(1 << 24).offer(loaded)
    offer = replace(offer, kv_tokens=-(-kv_tokens // BLOCK_TOKENS) * BLOCK_TOKENS, most_sequences=most)
    model = load_causal_lm(loaded.directory).requires_grad_(False)
    arch, tokenizer = loaded.model.architecture, loaded.tokenizer
    return TransformersGenerator(model, tokenizer, arch, offer, batch_tokens=batch_tokens)  # type: ignore[arg-type]


def run_all(
    generator: TransformersGenerator, requests: Sequence[SampleRequest], steps: int = 1000
) -> list[DecodedSample]:
    """All samples, run together and dropped as they end."""
    for request in requests:
        generator.add((0, request.key), request)
    ended: dict[int, DecodedSample] = {}
    while left := [request.key for request in requests if request.key not in ended]:
        generator.run([(0, key) for key in left], steps)
        for key in left:
            found = generator.sample((0, key))
            if found.finish:
                ended[key] = found
                generator.drop((0, key))
    return [ended[request.key] for request in requests]


def greedy(prompt: Sequence[int], tokens: int, key: int = 0) -> SampleRequest:
    return SampleRequest(key, tuple(prompt), 0, Sampling(tokens, temperature=0, logprobs=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_samples_are_those_of_transformers(name: str, family: Callable[[str], LoadedModel]) -> None:
    """Beyond windows (3 or 4 tokens), several lengths of slices of keys, and blocks of the cache."""
    loaded = family(name)
    prompts = [[3, 1, 2], list(range(2, 22)), list(range(2, 22)), [5, 5, 1, 2, 3, 7, 9, 12, 20] * 5]
    found = run_all(generator_of(loaded), [greedy(p, 40, key) for key, p in enumerate(prompts)], 7)
    plain = load_causal_lm(loaded.directory)
    for prompt, sample in zip(prompts, found, strict=True):
        with torch.inference_mode():
            ids = plain.generate(
                torch.tensor([prompt]), do_sample=False, max_new_tokens=40, pad_token_id=0, eos_token_id=None
            )[0]
            logprobs = plain(ids[None]).logits[0].double().log_softmax(-1)
        assert sample.ids == tuple(ids[len(prompt) :].tolist())
        assert sample.finish == "length"
        expected = logprobs[len(prompt) - 1 : -1].gather(-1, ids[len(prompt) :, None])[:, 0]
        torch.testing.assert_close(torch.tensor(sample.logprobs).double(), expected, rtol=0, atol=2e-5)


class Recorder:
    """Keeps the logits from which each token was drawn, and finds those that were others before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.logits: dict[tuple[int, int], Tensor] = {}
        self.different: list[tuple[int, int]] = []
        self.compared = 0
        self._draw = transformers_backend.draw
        monkeypatch.setattr(transformers_backend, "draw", self)

    def __call__(self, logits: Tensor, sampling: Any, seeds: Any, numbers: Any, ends: Any) -> Any:
        for row, *drawn in zip(logits, seeds, numbers, strict=True):
            name = (drawn[0], drawn[1])
            self.compared += name in self.logits
            if not torch.equal(self.logits.setdefault(name, row.clone()), row):
                self.different.append(name)
        return self._draw(logits, sampling, seeds, numbers, ends)


def random_requests(rng: random.Random, architecture: Architecture) -> list[SampleRequest]:
    """Prompts of all lengths, half of which begin alike; some are steered, in one of two ways."""
    vocabulary, context = architecture.output_vocabulary, architecture.context // 2
    begin = [rng.randrange(vocabulary) for _ in range(context)]
    steerings = [None, None, *(random_steering(rng.randrange(99), architecture) for _ in range(2))]
    requests = []
    for key in range(6):
        length = rng.choice([1, 7, 8, 9, 20, context // 2])
        prompt = begin[:length] if key % 2 else [rng.randrange(vocabulary) for _ in range(length)]
        sampling = Sampling(
            rng.choice([1, 4, 16]),
            temperature=rng.choice([0, 0.7, 1]),
            top_p=rng.choice([0.9, 1]),
            top_k=rng.choice([0, 5]),
            logprobs=True,
        )
        request = SampleRequest(key, tuple(prompt), rng.randrange(2**63), sampling)
        requests.append(replace(request, steering=steerings[key % 4]))
    return requests


WIDE = {
    "gpt2": {"n_positions": 200, "n_embd": 64, "n_head": 1, "vocab_size": 700},
    # 3 x 70 hidden units do not fill vector registers.
    "llama": {"max_position_embeddings": 200, "hidden_size": 64, "intermediate_size": 210},
}


@pytest.mark.parametrize("name", [*FAMILIES, "wide gpt2", "wide llama", "demo"])
def test_samples_do_not_depend_on_their_company(
    name: str,
    family: Callable[[str], LoadedModel],
    demo: LoadedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their logits have the same bits alone and among others, with prompts whole, in pieces or shared, when
    they stand still, lose their memory, are begun again or go on from a prefix."""
    if name.startswith("wide"):
        plain = name.split()[1]
        FAMILIES[plain](**WIDE[plain]).save_pretrained(tmp_path)
        loaded = load(str(tmp_path))
    else:
        loaded = demo if name == "demo" else family(name)
    arch, rng, recorder = loaded.model.architecture, random.Random(name), Recorder(monkeypatch)
    requests = random_requests(rng, arch)
    torch.set_num_threads(1)
    alone = generator_of(loaded, kv_tokens=arch.context)
    expected = {}
    for request in requests:
        (expected[request.key],) = run_all(alone, [request])
        alone._cache.evict_cached_blocks()  # no prompt is shared
    assert not recorder.compared

    longest = max(len(request.prompt) + request.sampling.max_tokens for request in requests)
    layouts = [(2, 512, 2000), (1, 5, 2 * longest), (1, 17, longest + 24)]
    for threads, batch_tokens, kv_tokens in layouts if name == "demo" else layouts[1:]:
        torch.set_num_threads(threads)
        generator = generator_of(
            loaded, kv_tokens, most=3 if batch_tokens == 5 else 32, batch_tokens=batch_tokens
        )
        waiting, running = rng.sample(requests, len(requests)), dict[int, SampleRequest]()
        while waiting or running:
            if waiting and (not running or rng.random() < 0.6):
                request = waiting.pop()
                known = expected[request.key].ids
                prefix = known[: rng.choice([0, 0, rng.randrange(len(known))])]
                running[request.key] = replace(request, prefix=prefix)
                generator.add((0, request.key), running[request.key])
            some = [key for key in running if rng.random() < 0.7] or list(running)
            generator.run([(0, key) for key in some], rng.choice([1, 3, 10]))
            for key, request in list(running.items()):
                found = generator.sample((0, key))
                if found.finish:
                    begun = len(request.prefix)
                    assert request.prefix + found.ids == expected[key].ids
                    assert found.logprobs == expected[key].logprobs[begun:]
                    assert found.signals == expected[key].signals[begun:]
                if found.finish or rng.random() < 0.05:
                    generator.drop((0, key))
                    del running[key]
                    waiting += [] if found.finish else [replace(request, prefix=())]
        assert_empty(generator)
    assert recorder.compared > 20
    assert not recorder.different


def assert_empty(generator: TransformersGenerator) -> None:
    """No sequence holds memory, and none is lost."""
    assert not generator.usage().tokens
    allocator, cache = generator._allocator, generator._cache
    free = cache.compute_free_capacity(relative=False) // allocator.bytes_per_block
    assert free + len(allocator.ledger.cached_blocks) == generator.offer.kv_tokens // BLOCK_TOKENS
    assert not allocator.block_table
    assert not generator._by_name
    assert not generator._scheduler.has_pending_requests()


def test_a_run_ends_with_its_steps_or_with_a_sample(family: Callable[[str], LoadedModel]) -> None:
    generator = generator_of(family("gpt2"))
    prompt = range(5, 15)
    generator.add((0, 0), greedy(prompt, 20))
    generator.add((0, 1), SampleRequest(1, tuple(range(9)), 1, Sampling(4, temperature=5.0)))
    generator.add((7, 1), greedy(prompt, 20))
    assert generator.run([(0, 0)], 3) == 3
    assert len(generator.sample((0, 0)).ids) == 3
    assert generator.sample((0, 1)) == generator.sample((7, 1)) == DecodedSample(())
    assert generator.usage().tokens == {(0, 0): 10 + 2}
    # The other two; of which one ends.
    assert generator.run([(0, 1), (7, 1)], 10) == 4
    ended, going = generator.sample((0, 1)), generator.sample((7, 1))
    assert ended.finish == "length"
    assert len(ended.ids) == 4
    assert not going.finish
    assert generator.run([(0, 1), (7, 1)], 10) == 0, "one has ended already"
    assert generator.sample((7, 1)) == going
    assert len(generator.sample((0, 0)).ids) == 3, "it stood still"
    generator.drop((0, 1))
    generator.drop((0, 1))
    generator.drop((5, 5))
    with pytest.raises(ValueError, match="unknown sequences"):
        generator.run([(0, 1)], 1)
    with pytest.raises(ValueError, match="added already"):
        generator.add((0, 0), greedy(prompt, 2))


def test_samples_of_a_prompt_share_its_blocks(family: Callable[[str], LoadedModel]) -> None:
    generator = generator_of(family("gpt2"))
    prompt = list(range(3, 3 + 2 * BLOCK_TOKENS + 3))
    run_all(generator, [greedy(prompt[:BLOCK_TOKENS], 1, 0)])
    for key in range(5):
        generator.add((1, key), greedy(prompt, 9, key))
    generator.run([(1, key) for key in range(5)], 2)
    usage = generator.usage()
    assert usage.prompt_reused == {(1, 0): 0} | {(1, key): 2 * BLOCK_TOKENS for key in range(1, 5)}
    assert usage.prompt_computed == {(1, 0): len(prompt)} | {(1, key): 3 for key in range(1, 5)}
    assert set(usage.tokens.values()) == {len(prompt) + 1}
    held = {block for blocks in generator._allocator.block_table.values() for block in blocks}
    assert len(held) == 2 + 5, "two blocks are shared, and each sample has one of its own"


def test_end_tokens_and_stop_texts_end_samples(demo: LoadedModel) -> None:
    tokenizer: Any = demo.tokenizer
    prompt = tuple(tokenizer.encode("Mary and John went to the store. John gave a book to"))
    generator = generator_of(demo)
    (whole,) = run_all(generator, [greedy(prompt, 40)])
    assert whole.finish == "stop"
    assert whole.ids[-1] in generator.offer.end_tokens
    assert whole.text == tokenizer.decode(whole.ids[:-1])
    assert whole.text.startswith(" Mary")
    stopping = SampleRequest(1, prompt, 0, Sampling(40, temperature=0, stop=("zz", "ry")))
    (stopped,) = run_all(generator, [stopping])
    assert (stopped.finish, stopped.text, stopped.ids) == ("stop", " Ma", whole.ids[:1])
    assert stopped.logprobs == ()
    for known in range(len(whole.ids)):
        (resumed,) = run_all(generator, [replace(greedy(prompt, 40), prefix=whole.ids[:known])])
        assert resumed.text == whole.text
        assert resumed.ids == whole.ids[known:]
    (done,) = run_all(generator, [replace(greedy(prompt, 40), prefix=whole.ids)])
    assert done == DecodedSample((), finish="stop", text=whole.text)
    (full,) = run_all(generator, [replace(greedy(prompt, 1), prefix=whole.ids[:1])])
    assert full == DecodedSample((), finish="length", text=" Mary")
    assert_empty(generator)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (greedy([], 3), "a prompt is empty"),
        (greedy([749], 3), "token 749 is not among 0 to 748"),
        (greedy([-1], 3), "token -1"),
        (greedy([1] * 60, 5), "60 tokens of a prompt and 5 are 65, and the model's context has room for 64"),
        (greedy([1] * 30, 20), "and the memory for keys and values has room for 48"),
    ],
)
def test_bad_requests(request_: SampleRequest, message: str, demo: LoadedModel) -> None:
    generator = generator_of(demo, kv_tokens=48)
    with pytest.raises(InvalidRequestError, match=message):
        generator.add((0, 0), request_)
    assert generator.run([], 4) == 0


def test_stop_texts_need_a_tokenizer(family: Callable[[str], LoadedModel]) -> None:
    generator = generator_of(family("gpt2"))
    with pytest.raises(InvalidRequestError, match="no tokenizer"):
        generator.add((0, 0), SampleRequest(0, (1,), 0, Sampling(3, stop=("a",))))
    (found,) = run_all(generator, [greedy([1], 3)])
    assert found.text == ""


def test_a_failure_ends_the_generator(demo: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = generator_of(demo)
    generator.add((0, 0), greedy([1], 5))

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(generator._processor.model_runner, "compute_batch", fail)
    with pytest.raises(GeneratorFailedError, match="broken"):
        generator.run([(0, 0)], 1)
    with pytest.raises(GeneratorFailedError, match="broken"):
        generator.usage()


def test_logits_that_are_not_finite_fail_their_job_alone(demo: LoadedModel) -> None:
    generator = generator_of(demo)
    generator.add((0, 0), greedy([1, 2], 5))
    generator.add((1, 0), greedy([3, 4], 5))
    bias = generator._model.transformer.ln_f.bias
    kept = bias.clone()
    bias.fill_(torch.nan)
    with pytest.raises(NonFiniteMetricError):
        generator.run([(0, 0)], 3)
    generator.drop((0, 0))
    bias.copy_(kept)
    assert generator.run([(1, 0)], 2) == 2
    generator.drop((1, 0))
    assert_empty(generator)


def test_no_thread_is_left_or_even_made(demo: LoadedModel) -> None:
    before = set(threading.enumerate())
    generator = load_generator(demo)
    run_all(generator, [greedy([1, 2], 3)])
    assert set(threading.enumerate()) == before
    generator.close()
    generator.close()
    with pytest.raises(GeneratorFailedError, match="closed"):
        generator.run([], 1)


def test_models_without_text(tmp_path: Path) -> None:
    make.save_hooked(tmp_path / "hooked")
    hooked = load(str(tmp_path / "hooked"))
    with pytest.raises(UnsupportedModelError, match="checkpoints of transformers only"):
        TransformersBackend().offer(hooked)
    make.gpt2().save_pretrained(tmp_path / "gpt2")
    plain = load(str(tmp_path / "gpt2"))
    both_ways = replace(plain.model, architecture=replace(plain.model.architecture, causal=False))
    with pytest.raises(UnsupportedModelError, match="no next token"):
        TransformersBackend().offer(replace(plain, model=both_ways))
    with pytest.raises(UnsupportedModelError, match="--generation-memory"):
        TransformersBackend(kv_bytes=100).offer(plain)


def test_the_checkpoint_must_be_the_served_one(tmp_path: Path) -> None:
    make.gpt2(0).save_pretrained(tmp_path / "served")
    make.gpt2(1).save_pretrained(tmp_path / "other")
    loaded = load(str(tmp_path / "served"))
    generator = load_generator(loaded)
    generator.add((0, 0), greedy([1], 9))
    assert generator.run([(0, 0)], 1) == 1
    for name in ("model.safetensors", "config.json"):
        shutil.copyfile(tmp_path / "other" / name, tmp_path / "served" / name)
    with pytest.raises(ConflictError, match="changed while"):
        generator.run([(0, 0)], 1)
    with pytest.raises(ConflictError, match="changed while"):
        load_generator(loaded)


def test_too_little_memory_is_told(demo: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise MemoryError("Memory footprint 9 is more than available memory 8")

    monkeypatch.setattr(transformers_backend, "load_causal_lm", fail)
    with pytest.raises(ResourceExhaustedError, match="not enough memory for generating text"):
        load_generator(demo)


def test_the_model_is_computed_by_this_attention(demo: LoadedModel) -> None:
    generator = generator_of(demo)
    assert generator._model.config._attn_implementation == ATTENTION
    assert not [
        name for name, module in generator._model.named_modules() if type(module).__name__ == "Linear"
    ]
