"""Concepts in the states of the demo model, learned by a server, shown and kept by the client."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.demo import D_MODEL, LAYERS

from pahq_client import Client, Codebook, InvalidRequest

from .process import ServerProcess

DRAW = np.random.default_rng(0)
TEXTS = [DRAW.integers(1, 200, DRAW.integers(5, 40)).tolist() for _ in range(40)]
OPTIONS = {"codes": 12, "steps": 20, "batch": 128, "decoder_layers": 1, "learning_rate": 3e-3}


def test_concepts_are_learned_shown_and_kept(tmp_path: Path) -> None:
    with ServerProcess(None) as server, Client(server.address) as client:
        found = client.learn_concepts("demo", TEXTS, layers=(1, LAYERS), **OPTIONS)
        again = client.learn_concepts("demo", TEXTS, layers=(1, LAYERS), **OPTIONS)
        single = client.learn_concepts("demo", TEXTS, layer=1, **OPTIONS)
        with pytest.raises(InvalidRequest, match=f"to {LAYERS}, after the last layer") as caught:
            client.learn_concepts("demo", TEXTS, layer=LAYERS + 1, **OPTIONS)
        assert caught.value.field == "layer"
        with pytest.raises(InvalidRequest, match="use fewer codes or more texts") as caught:
            client.learn_concepts("demo", TEXTS[:1], layer=1, codes=400)
        assert caught.value.field == "codes"
        long = [token for text in TEXTS for token in text]
        with pytest.raises(InvalidRequest) as caught:
            client.learn_concepts("demo", [long], layer=1, **OPTIONS)
        assert caught.value.field == "texts[0]"
        split = client.learn_concepts("demo", [long], layer=1, long_texts="split", **OPTIONS)
    assert found == again
    assert found.canonical_bytes() == again.canonical_bytes()
    assert (found.low, found.high, found.width, len(found)) == (1, LAYERS, D_MODEL, 12)
    assert found.tokens == sum(len(text) - 1 for text in TEXTS)
    assert 1 < found.perplexity <= found.used <= 12
    assert found.history.shape == (20, 3)
    for concept in found:
        for context in concept.contexts:
            text = TEXTS[context.text]
            first = context.position - len(context.before)
            assert context.ids == tuple(text[first : first + len(context.ids)])
    assert split.tokens == len(long) - 1
    for context in (each for concept in split for each in concept.contexts):
        assert long[context.position] == context.ids[len(context.before)]
    path = tmp_path / "concepts.safetensors"
    found.save(path)
    loaded = Codebook.load(path)
    assert loaded == found
    assert loaded.concepts == found.concepts
    pairs = found.compare(loaded)
    assert all(a == near.concept and near.cosine == pytest.approx(1) for a, near in pairs)
    assert len(pairs) == found.used
    assert found.compare(single)
    largest = found.by_size[0]
    assert largest.size == max(concept.size for concept in found)
    near = found.nearest(largest, 3)
    assert [each.cosine for each in near] == sorted((each.cosine for each in near), reverse=True)
    assert largest not in [each.concept for each in near]
    page = tmp_path / "concepts.html"
    found.to_html(page)
    html = page.read_text("utf-8")
    assert all(f'<section id="{concept}">' in html for concept in found.by_size)
    assert "<script" not in html
    assert "concept" in found._repr_html_()
