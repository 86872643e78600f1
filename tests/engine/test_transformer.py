"""Padding, and what may be seen through it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.zoo import Zoo

from pahq_server.core.task import TokenTask
from pahq_server.engine import transformer
from pahq_server.engine.transformer import PromptBatch

TASK = TokenTask(clean=((4, 5, 6), (7,)), corrupted=((4, 8, 6), (9,)))


def test_prompts_are_padded_on_the_right() -> None:
    batch = PromptBatch.of(TASK)
    assert batch.lengths == [3, 1]
    assert batch.clean.tolist() == [[4, 5, 6], [7, 0, 0]]
    assert batch.corrupted is not None
    assert batch.corrupted.tolist() == [[4, 8, 6], [9, 0, 0]]
    assert batch.real.tolist() == [[True, True, True], [True, False, False]]


def test_metric_places() -> None:
    last = PromptBatch.of(TASK)
    assert (last.metric_prompt.tolist(), last.metric_position.tolist()) == ([0, 1], [2, 0])
    listed = PromptBatch.of(replace(TASK, clean=((4, 5, 6), (7, 8, 9)), corrupted=None, positions=(2, 0)))
    assert (listed.metric_prompt.tolist(), listed.metric_position.tolist()) == ([0, 0, 1, 1], [2, 0, 2, 0])
    assert listed.corrupted is None


@pytest.mark.parametrize(
    ("name", "layer", "window", "causal"),
    [
        ("gpt2", 0, None, True),
        ("gpt_neo", 0, None, True),
        ("gpt_neo", 1, 4, True),
        ("hooked bidirectional", 0, None, False),
    ],
)
def test_a_real_query_sees_exactly_the_real_keys_it_may(
    name: str, layer: int, window: int | None, causal: bool, zoo: Zoo
) -> None:
    lengths = [8, 3, 1]
    seen = transformer.visible(zoo[name].architecture, layer, lengths)
    assert seen.shape == (3, 8, 8)
    for prompt, length in enumerate(lengths):
        for query in range(length):
            expected = [
                key < length and (not causal or key <= query) and (window is None or query - key < window)
                for key in range(8)
            ]
            assert seen[prompt, query].tolist() == expected


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "hooked bidirectional"])
def test_a_padding_query_sees_something(name: str, zoo: Zoo) -> None:
    """Softmax over nothing is NaN, and NaN would spread through sums that are meant to skip it."""
    arch = zoo[name].architecture
    for layer in range(arch.layers):
        assert transformer.visible(arch, layer, [16, 1]).any(-1).all()


def test_rotation_turns_pairs_of_features_and_leaves_position_zero_alone(zoo: Zoo) -> None:
    rotary = zoo["llama"].weights.rotary
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = transformer.rotate(rotary, x, torch.arange(5))
    assert torch.equal(turned[:, 0], x[:, 0])
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1))
    # What attention sees of two positions is their distance alone.
    there = transformer.rotate(rotary, x, torch.arange(5) + 3)
    assert torch.allclose(turned @ turned.transpose(-1, -2), there @ there.transpose(-1, -2))
    assert not torch.allclose(turned[:, 1:], x[:, 1:])


def test_without_rotary_nothing_is_rotated() -> None:
    x = torch.ones(2, 3, 4)
    assert transformer.rotate(None, x, torch.arange(3)) is x
