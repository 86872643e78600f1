"""Concepts of texts, and what states lose without them: on the demo model, by a server."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.demo import LAYERS
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

import pahq_client
from pahq_client import Client, Codebook, InvalidRequest, OtherModel
from pahq_client.cli import main
from pahq_server.demo import model_path

from .process import ServerProcess

DRAW = np.random.default_rng(0)
TEXTS = [DRAW.integers(1, 200, DRAW.integers(5, 40)).tolist() for _ in range(40)]
OTHERS = [DRAW.integers(1, 200, DRAW.integers(2, 30)).tolist() for _ in range(12)]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with ServerProcess(None) as server, Client(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def codebook(client: Client) -> Codebook:
    return client.learn_concepts(
        "demo", TEXTS, layers=(1, LAYERS), codes=12, steps=20, batch=128, decoder_layers=1, learning_rate=3e-3
    )


def dense(codebook: Codebook, ids: list[int]) -> NDArray[np.float64]:
    """The slow, obvious twin: transformers' own states, and all distances, in float64: [tokens, codes]."""
    import torch

    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[codebook.low][0]
    x, d = states.double().numpy(), codebook.width
    x -= x.mean(1, keepdims=True)  # which no norm reads, and the served model leaves out of its weights
    numbers = codebook.encoder.astype(np.float64)
    m = 0.5 / (1 + np.exp(-numbers[0]))
    w, (b, scale, shift) = numbers[1 : 1 + d * d].reshape(d, d), numbers[1 + d * d :].reshape(3, d)
    new = x @ w.T + b
    new = (new - new.mean(1, keepdims=True)) / np.sqrt(new.var(1, keepdims=True) + 1e-5) * scale + shift
    z = (1 - m) * x + m * new
    found: NDArray[np.float64] = ((z[:, None] - codebook.codes[None].astype(np.float64)) ** 2).sum(2)
    return found


def test_texts_that_it_was_learned_from_have_the_concepts_it_tells(
    client: Client, codebook: Codebook
) -> None:
    found = client.assign_concepts("demo", codebook, TEXTS)
    assert found.sizes.tolist() == [concept.size for concept in codebook]
    assert found.perplexity == pytest.approx(codebook.perplexity)
    for concept in codebook:
        for context in concept.contexts:
            assert found[context.text].codes[context.position] == concept.number
    assert found.model == "demo"
    assert len(found.parameters["codebook"]["sha256"]) == 64


def test_other_texts_against_all_distances(client: Client, codebook: Codebook) -> None:
    found = client.assign_concepts("demo", codebook, OTHERS)
    assert [text.ids.tolist() for text in found] == OTHERS
    for text, ids in zip(found, OTHERS, strict=True):
        distances = dense(codebook, ids)[1:]
        assert text.codes[0] == -1
        assert np.isnan(text.distances[0])
        chosen = distances[np.arange(len(ids) - 1), text.codes[1:]]
        np.testing.assert_allclose(text.distances[1:], chosen, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(chosen, distances.min(1), rtol=1e-4, atol=1e-4)
    # Without skip= also the first token has one.
    every = client.assign_concepts("demo", codebook, OTHERS, skip=0)
    assert all((text.codes >= 0).all() for text in every)
    assert [text.codes[1:].tolist() for text in every] == [text.codes[1:].tolist() for text in found]


def test_long_texts_are_refused_or_split(client: Client, codebook: Codebook) -> None:
    context = client.models()[0].context
    long = DRAW.integers(1, 200, 2 * context + 7).tolist()
    with pytest.raises(InvalidRequest) as caught:
        client.assign_concepts("demo", codebook, [[5, 6], long])
    assert caught.value.field == "texts[1]"
    found = client.assign_concepts("demo", codebook, [[5, 6], long, [7, 8, 9]], long_texts="split")
    assert [len(text) for text in found] == [2, len(long), 3]
    assert found[1].ids.tolist() == long
    assert (found[1].codes >= 0).tolist() == [False] + [True] * (len(long) - 1)
    assert len(found[1].tokens) == len(long)
    first = client.assign_concepts("demo", codebook, [long[:context]])
    assert first[0].codes.tolist() == found[1].codes[:context].tolist()
    second = client.assign_concepts("demo", codebook, [long[context - 1 : 2 * context - 1]])
    assert second[0].codes[1:].tolist() == found[1].codes[context : 2 * context - 1].tolist()


def test_codebooks_of_other_models_and_widths(client: Client, codebook: Codebook) -> None:
    other = dataclasses.replace(
        codebook, provenance={"request": {"model_revision": "0" * 64}, "run": {"model": "other"}}
    )
    for call in (client.assign_concepts, client.ablate_concepts):
        with pytest.raises(OtherModel, match="learned from another model") as caught:
            call("demo", other, TEXTS)
        assert caught.value.field == "codebook"
        with pytest.raises(InvalidRequest, match="is empty") as wrong:
            call("demo", codebook, [])
        assert wrong.value.field == "texts"
        with pytest.raises(InvalidRequest, match="must be a Codebook") as wrong:
            call("demo", "book", TEXTS)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest) as wrong:
            call("demo", dataclasses.replace(codebook, codes=codebook.codes * np.float32(np.nan)), TEXTS)
        assert wrong.value.field == "codebook.codes"
    with pytest.raises(InvalidRequest, match=f"to {LAYERS}, after the last layer") as wrong:
        client.ablate_concepts("demo", codebook, TEXTS, layer=LAYERS + 1)
    assert wrong.value.field == "layer"
    with pytest.raises(InvalidRequest, match="less than the tokens of the longest text") as wrong:
        client.assign_concepts("demo", codebook, TEXTS, skip=100)
    assert wrong.value.field == "skip"


def test_labels_are_read_in_states_and_less_without_concepts(client: Client, codebook: Codebook) -> None:
    texts = [[*DRAW.integers(1, 200, 4).tolist(), 20 if number % 3 else 90] for number in range(300)]
    labels = ["twenty" if ids[-1] == 20 else "ninety" for ids in texts]
    found = client.ablate_concepts("demo", codebook, texts, labels, layer=1)
    assert found.classes == ("twenty", "ninety")[:: 1 if labels[0] == "twenty" else -1]
    assert [found.classes[each] for each in found.labels.tolist()] == labels
    assert found.accuracy > 0.9
    assert found.chance == pytest.approx(2 / 3)
    assert found.positions.tolist() == [4] * 300
    assert set(found.predicted) == {"nothing", "code", "random", "other_code", "component"}
    assert found.drop == found.accuracy - found.ablated
    assert sum(each.states for each in found.by_concept) == 300
    own = client.assign_concepts("demo", codebook, texts)
    assert found.codes.tolist() == [text.codes[-1] for text in own]
    again = client.ablate_concepts("demo", codebook, texts, iter(labels), layer=1)
    assert {name: told.tolist() for name, told in again.predicted.items()} == {
        name: told.tolist() for name, told in found.predicted.items()
    }
    context = client.models()[0].context
    long = [[7] * context + ids for ids in texts[:20]]
    cut = client.ablate_concepts("demo", codebook, long, labels[:20], layer=1, long_texts="split")
    assert cut.positions.tolist() == [context + 4] * 20
    assert "accuracy" in repr(found)
    assert "random direction" in found._repr_html_()


def test_without_labels_next_tokens_are_told_apart(client: Client, codebook: Codebook) -> None:
    found = client.ablate_concepts("demo", codebook, [[1, 2, 3, 4] * 6 for _ in range(8)])
    assert found.next_tokens
    assert found.layer == LAYERS
    assert found.accuracy == 1
    assert len(found.classes) == 4
    assert all(isinstance(each, str) and each for each in found.classes)


def test_the_command_line(client: Client, codebook: Codebook, tmp_path: Path, capsys: Any) -> None:
    texts, out, other = tmp_path / "texts.txt", tmp_path / "book", tmp_path / "other"
    said = ["The dog was happy.", "Lily gave the ball to Tom.", "Tom and Lily went to the park to play."]
    texts.write_text("\n".join(said * 5))
    options = ["--codes", "5", "--steps", "5", "--decoder-layers", "1", "--quiet", "--server", client.address]
    command = ["concepts", "demo", "--texts", str(texts), "--layer", "1", *options, "--out", str(out)]
    assert main(command) == 0
    assert "concepts used" in capsys.readouterr().out
    found = pahq_client.Codebook.load(out)
    assert (found.low, found.high, len(found)) == (1, 1, 5)
    assert main(["show", str(out)]) == 0
    assert f"# {found.summary()}" in capsys.readouterr().out
    assert main(["view", str(out), "--output", str(tmp_path / "page.html"), "--no-open"]) == 0
    assert "<h1" in (tmp_path / "page.html").read_text("utf-8")
    codebook.save(other)
    assert main(["compare", str(out), str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("a\tb\tcosine")
    assert main(["compare", str(out), str(out), "--json"]) == 0
    assert main(["view", str(out), str(other)]) == 2
    assert "does not go with a codebook" in capsys.readouterr().err
    evaluate = ["evaluate", "--circuit", str(out), "--model", "demo", "--task", "ioi"]
    assert main([*evaluate, "--server", client.address]) == 2
    assert "holds concepts, not edges" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--layers", "1", "2"])
    assert main(["concepts", "demo", "--texts", str(tmp_path / "none"), "--layer", "1"]) == 2
