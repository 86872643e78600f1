"""Samples of steered neurons: those of a plain model with hooks, and nobody else's change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.steering import random_steering, sized_steering, steered

from pahq_server.core.activations import Steering
from pahq_server.core.errors import NonFiniteMetricError
from pahq_server.core.generation import SampleRequest
from pahq_server.demo import model_path
from pahq_server.engine.generation import transformers_backend
from pahq_server.engine.generation.steering import SteeredRows
from pahq_server.engine.generation.transformers_backend import BLOCK_TOKENS
from pahq_server.engine.neuron_edits import layer_edits
from pahq_server.engine.transformers_model import load_causal_lm
from pahq_server.models.loading import LoadedModel, load

from .test_transformers_backend import FAMILIES, family, generator_of, greedy, run_all

__all__ = ["family"]

PROMPT = [5, 5, 1, 2, 3, 7, 9, 12, 20, 4, 4, 8, 0, 1, 6, 3, 2, 2, 9]


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load(str(model_path()))


@pytest.mark.parametrize("seed", range(5))
def test_edits_are_those_of_each_row(seed: int) -> None:
    """Several sequences of one batch, some of them steered alike, against a loop over all values."""
    source = np.random.default_rng(seed)
    layers, width = int(source.integers(1, 4)), int(source.integers(2, 9))
    edits = [None, sized_steering(seed, layers * width), sized_steering(seed + 50, layers * width)]
    batch = [(edits[source.integers(3)], int(source.integers(1, 5))) for _ in range(6)]
    rows = [steering for steering, count in batch for _ in range(count)]
    given = torch.from_numpy(source.normal(size=(layers, 1, len(rows), width)).astype(np.float32))
    expected = copy.deepcopy(given)
    for layer in range(layers):
        for row, steering in enumerate(rows):
            for unit in range(width) if steering is not None else ():
                assert steering is not None
                number, value = layer * width + unit, given[layer, 0, row, unit]
                if number in steering.lowered:
                    value = min(value, torch.tensor(0.0))
                for amount in steering.amounts[steering.raised == number]:
                    value = value + torch.tensor(amount, dtype=torch.float32)
                expected[layer, 0, row, unit] = value
    editing = SteeredRows(layers, width, torch.device("cpu"))
    with editing.batch(batch):
        found = torch.stack([editing.edit(layer, given[layer].clone()) for layer in range(layers)])
    assert torch.equal(found, expected)
    assert torch.equal(editing.edit(0, given[0].clone()), given[0]), "the batch is over"


def test_layers_without_an_edit_have_none() -> None:
    edit = Steering(np.array([5]), np.array([2.0]), np.array([4, 11]))
    first, second, third = layer_edits(edit, 3, 4, torch.device("cpu"), torch.float32)
    assert first is None
    assert second is not None
    assert third is not None
    assert (second.raised.tolist(), second.lowered.tolist()) == ([1], [0])
    assert (third.raised.tolist(), third.lowered.tolist()) == ([], [3])


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_samples_are_those_of_a_model_with_hooks(
    name: str, family: Callable[[str], LoadedModel]
) -> None:
    """Three edits and none in one batch, beyond blocks of the cache and pieces of prompts."""
    loaded = family(name)
    edits = [random_steering(seed, loaded.model.architecture) for seed in range(3)]
    asked = [
        replace(greedy(PROMPT[: 19 - key % 3], 30, key), steering=[None, *edits][key % 4]) for key in range(8)
    ]
    found = run_all(generator_of(loaded, batch_tokens=40), asked, 7)
    for request, sample in zip(asked, found, strict=True):
        plain = load_causal_lm(loaded.directory)
        if request.steering is not None:
            steered(plain, request.steering)
        ids = torch.tensor(request.prompt)
        with torch.inference_mode():
            for _ in range(30):  # without a cache
                ids = torch.cat((ids, plain(ids[None]).logits[0, -1:].argmax(-1)))
            logprobs = plain(ids[None]).logits[0].double().log_softmax(-1)
        length = len(request.prompt)
        assert sample.ids == tuple(ids[length:].tolist())
        expected = logprobs[length - 1 : -1].gather(-1, ids[length:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(sample.logprobs).double(), expected, rtol=0, atol=2e-5)
    assert len({sample.logprobs for sample in found[4:]}) == 4, "each edit changes something"


def test_others_keep_every_bit(demo: LoadedModel) -> None:
    asked = [greedy(range(40 + key, 60), 20, key) for key in range(4)]
    edit = random_steering(0, demo.model.architecture)
    beside = [replace(each, key=10 + each.key, steering=edit) for each in asked]
    alone, mixed = run_all(generator_of(demo), asked), run_all(generator_of(demo), [*beside, *asked])
    assert mixed[4:] == alone
    assert all(mixed[key].logprobs != alone[key].logprobs for key in range(4))


def test_an_edit_that_changes_nothing_keeps_every_bit(demo: LoadedModel) -> None:
    neurons = np.arange(0, 50, 2)
    nothing = Steering(neurons, np.zeros(len(neurons)), np.array([], np.int64))
    request = greedy(range(40, 60), 20)
    assert run_all(generator_of(demo), [replace(request, steering=nothing)]) == run_all(
        generator_of(demo), [request]
    )


def test_blocks_are_shared_by_samples_of_one_edit_only(family: Callable[[str], LoadedModel]) -> None:
    loaded = family("gpt2")
    generator = generator_of(loaded)
    first, second = (random_steering(seed, loaded.model.architecture) for seed in (1, 2))
    # What an equal edit computed is found again, and what others computed is not.
    equal = Steering(first.raised.copy(), first.amounts.copy(), first.lowered.copy())
    edits, prompt = [None, first, second, None, equal, second], PROMPT[: 2 * BLOCK_TOKENS + 3]
    for key, edit in enumerate(edits):
        generator.add((0, key), replace(greedy(prompt, 9, key), steering=edit))
    generator.run([(0, key) for key in range(6)], 2)
    whole, shared = len(prompt), 2 * BLOCK_TOKENS
    usage = generator.usage()
    assert [usage.prompt_reused[0, key] for key in range(6)] == [0] * 3 + [shared] * 3
    assert [usage.prompt_computed[0, key] for key in range(6)] == [whole] * 3 + [whole - shared] * 3
    held = {block for blocks in generator._allocator.block_table.values() for block in blocks}
    assert len(held) == 3 * 2 + 6, "two blocks of each edit, and one of each sample"


@pytest.mark.parametrize("order", [(None, 1, 2), (2, None, 1), (1, 2, None)])
def test_blocks_that_a_sample_filled_itself_are_not_taken_for_anothers(
    order: tuple[int | None, ...], family: Callable[[str], LoadedModel]
) -> None:
    """Sequences go on with the same tokens, which were computed with another edit before."""
    loaded = family("gpt2")
    arch = loaded.model.architecture
    edits = [None if seed is None else random_steering(seed, arch) for seed in order]
    request = greedy(PROMPT[:10], 30)
    generator = generator_of(loaded)
    (said,) = run_all(generator, [request])
    tokens = (*request.prompt, *said.ids[:20])
    asked = [replace(greedy(tokens, 8), steering=edit) for edit in edits]
    after_others = [run_all(generator, [each])[0] for each in asked]
    assert after_others == [run_all(generator_of(loaded), [each])[0] for each in asked]


def test_without_marks_blocks_would_be_mixed_up(
    family: Callable[[str], LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests above would notice."""
    monkeypatch.setattr(transformers_backend._Sequence, "block_tokens", lambda self, tokens: list(tokens))
    loaded = family("gpt2")
    plain = greedy(PROMPT, 8)
    asked = replace(plain, steering=random_steering(1, loaded.model.architecture))
    generator = generator_of(loaded)
    run_all(generator, [plain])
    assert run_all(generator, [asked]) != run_all(generator_of(loaded), [asked])


def test_an_edit_beyond_all_numbers_is_an_error(demo: LoadedModel) -> None:
    arch = demo.model.architecture
    everything = np.arange(arch.layers * arch.d_mlp)
    huge = Steering(everything, np.full(len(everything), 3e38), np.array([], np.int64))
    generator, plain = generator_of(demo), greedy(range(40, 60), 8)
    generator.add((0, 0), plain)
    generator.add((0, 1), replace(plain, key=1, steering=huge))
    with pytest.raises(NonFiniteMetricError):
        generator.run([(0, 0), (0, 1)], 5)
    generator.drop((0, 1))
    generator.run([(0, 0)], 8)
    assert [generator.sample((0, 0))] == run_all(generator_of(demo), [plain])


def test_a_sample_goes_on_from_any_token(demo: LoadedModel) -> None:
    edit = random_steering(3, demo.model.architecture, share=0.05)
    request: Any = replace(greedy(range(40, 60), 20), steering=edit)
    (whole,) = run_all(generator_of(demo), [request])
    for known in range(1, len(whole.ids)):
        rest = replace(request, key=known, prefix=whole.ids[:known])
        (found,) = run_all(generator_of(demo), [rest])
        assert (found.ids, found.logprobs) == (whole.ids[known:], whole.logprobs[known:])
    assert isinstance(request, SampleRequest)
