"""A token's values have the same bits alone and with other texts, wherever texts are cut, in all models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from helpers import random_models as make
from helpers.texts import Texts, whole
from helpers.zoo import NAMES, Zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from pahq_server.core.activations import Span, Steering
from pahq_server.core.task import TokenIds
from pahq_server.engine.activations import operations
from pahq_server.models.folding import FOLDING
from pahq_server.models.loading import LoadedModel, load
from pahq_server.models.streaming import load_rounded
from pahq_server.precision.policy import POLICIES

# Longer than several blocks of queries; the windows begin within and between blocks.
LONG = 200


@pytest.fixture(scope="module")
def long_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    """Models with widths that no vector register divides, and long contexts."""
    directory = tmp_path_factory.mktemp("long")
    models = {
        "gpt2": make.gpt2(n_positions=LONG, n_embd=33, n_head=3),
        "gpt_neo": make.gpt_neo(max_position_embeddings=LONG, hidden_size=22, window_size=70),
        "mistral": make.mistral(max_position_embeddings=LONG, intermediate_size=37, sliding_window=23),
        "llama": make.llama(max_position_embeddings=LONG, intermediate_size=45),
        "one head": make.gpt2(n_positions=LONG, n_embd=7, n_head=1),
    }
    for name, model in models.items():
        model.save_pretrained(directory / name)
    hooked = {"n_ctx": LONG, "attention_dir": "bidirectional", "d_mlp": 13}
    make.save_hooked(directory / "bidirectional", **hooked)
    return {name: load(str(directory / name), FOLDING) for name in (*models, "bidirectional")}


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def values(loaded: LoadedModel, texts: Sequence[TokenIds], precision: str = "fp32") -> list[list[bytes]]:
    """All values of each text, as bytes: states, activations, and log-probabilities."""
    engine, spans = Texts(loaded, texts, precision), whole(texts)
    ends = np.cumsum([len(ids) for ids in texts])[:-1]
    states = np.split(engine.states(spans, range(engine.arch.layers + 1)), ends)
    found = [[each.tobytes()] for each in states]
    if engine.arch.d_mlp:
        neurons = list(range(engine.arch.layers * engine.arch.d_mlp))
        for each, span in zip(found, spans, strict=True):
            top = engine.details([span], neurons, span.last).top
            order = np.argsort(top.positions, 1)
            each.append(np.take_along_axis(top.values, order, 1).tobytes())
    if engine.arch.causal and engine.arch.vocabulary == engine.arch.output_vocabulary:
        scores = engine.scores([Span(span.text, 1, span.last) for span in spans])
        for each, score in zip(found, scores, strict=True):
            each.append(score.tobytes())
    return found


def random_texts(vocabulary: int, lengths: Sequence[int], seed: int) -> list[TokenIds]:
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(vocabulary, size=length).tolist()) for length in lengths]


@pytest.mark.parametrize("name", NAMES)
def test_alone_and_together(name: str, zoo: Zoo) -> None:
    loaded = load(str(zoo.path(name)), FOLDING)
    texts = random_texts(loaded.model.architecture.vocabulary, (7, 3, 16, 1, 10, 16), 3)
    assert values(loaded, texts) == [values(loaded, [ids])[0] for ids in texts]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "mistral", "llama", "one head", "bidirectional"])
def test_long_texts_alone_and_together(name: str, long_models: dict[str, LoadedModel]) -> None:
    loaded = long_models[name]
    lengths = (LONG, 65, 64, 1, 130, 17, 16, LONG - 1, 128)
    texts = random_texts(loaded.model.architecture.vocabulary, lengths, 4)
    assert values(loaded, texts) == [values(loaded, [ids])[0] for ids in texts]


@pytest.mark.parametrize("name", ["gpt2", "mistral", "bidirectional"])
@settings(max_examples=15)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=6), st.integers(0, 1000), st.integers(0, 5))
def test_random_lengths(
    name: str, long_models: dict[str, LoadedModel], lengths: list[int], seed: int, chosen: int
) -> None:
    loaded = long_models[name]
    texts = random_texts(loaded.model.architecture.vocabulary, lengths, seed)
    chosen %= len(texts)
    assert values(loaded, texts)[chosen] == values(loaded, [texts[chosen]])[0]


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "mistral", "llama", "bidirectional"])
def test_texts_that_begin_alike(name: str, long_models: dict[str, LoadedModel]) -> None:
    """Also equal ones, and those that are the beginning of another."""
    loaded = long_models[name]
    vocabulary = loaded.model.architecture.vocabulary
    (common,) = random_texts(vocabulary, [100], 5)
    ends = random_texts(vocabulary, (3, 40, 90, 1, 28), 6)
    texts = [*(common + end for end in ends), common, common[:64] + ends[1], common[:10], common]
    assert values(loaded, texts) == [values(loaded, [ids])[0] for ids in texts]


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "mistral", "llama"])
def test_what_comes_later_changes_nothing(name: str, long_models: dict[str, LoadedModel]) -> None:
    loaded = long_models[name]
    (text,) = random_texts(loaded.model.architecture.vocabulary, [LONG], 7)
    layers = range(loaded.model.architecture.layers + 1)
    every = Texts(loaded, [text]).states([Span(0, 0, LONG)], layers)
    for last in (1, 15, 16, 17, 63, 64, 65, 127, 128, 150):
        cut = Texts(loaded, [text[:last]]).states([Span(0, 0, last)], layers)
        assert cut.tobytes() == every[:last].tobytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["fp32", "pahq-int8"])
def test_models_of_which_only_rounded_weights_are_in_memory(name: str, precision: str, zoo: Zoo) -> None:
    """In full precision they read their weights from the checkpoint's files."""
    resident = load_rounded(str(zoo.path(name)), POLICIES["pahq-int8"])
    in_memory = load(str(zoo.path(name)), FOLDING)
    texts = random_texts(in_memory.model.architecture.vocabulary, (7, 3, 16), 8)
    found = values(resident, texts, precision)
    assert found == values(in_memory, texts, precision)
    assert found == [values(resident, [ids], precision)[0] for ids in texts]


def test_parts_change_no_bits_of_a_token(
    long_models: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = long_models["llama"]
    texts = random_texts(loaded.model.architecture.vocabulary, (30, 70, 5, 5, 120), 9)
    neurons = [0, 3, loaded.model.architecture.d_mlp]

    def found() -> tuple[list[list[bytes]], list[bytes], np.ndarray[tuple[int], np.dtype[np.float64]]]:
        engine = Texts(loaded, texts)
        details = engine.details(whole(texts), neurons, 40)
        arrays = (details.histogram, details.top.values, details.top.texts, details.top.positions)
        return values(loaded, texts), [x.tobytes() for x in arrays], engine.sums(whole(texts)).total

    every = found()
    for tokens in (1, 60, 100):
        monkeypatch.setattr(operations, "PART_TOKENS", tokens)
        monkeypatch.setattr(operations, "LOGITS_AT_ONCE", 7 * tokens)
        parts = found()
        assert parts[:2] == every[:2]
        np.testing.assert_allclose(parts[2], every[2], rtol=1e-12, atol=1e-12)


def test_an_operation_repeated_has_the_same_bits(long_models: dict[str, LoadedModel]) -> None:
    loaded = long_models["gpt2"]
    texts = random_texts(loaded.model.architecture.vocabulary, (30, 70, 5), 9)
    one, other = (Texts(loaded, texts) for _ in range(2))
    for name in ("positive", "total", "squares"):
        found = [getattr(engine.sums(whole(texts)), name).tobytes() for engine in (one, one, other)]
        assert len(set(found)) == 1


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_steering_of_nothing_changes_no_bit(name: str, long_models: dict[str, LoadedModel]) -> None:
    loaded = long_models[name]
    texts = random_texts(loaded.model.architecture.vocabulary, (30, 70, 5), 10)
    engine, spans = Texts(loaded, texts), [Span(0, 1, 30), Span(1, 60, 70), Span(2, 4, 5)]
    none = np.empty(0, dtype=np.int64)
    plain = engine.scores(spans)
    assert engine.scores(spans, Steering(none, np.empty(0), none)).tobytes() == plain.tobytes()
    one = np.array([2])
    raised, lowered = Steering(one, np.array([0.5]), none), Steering(none, np.empty(0), one)
    assert len({engine.scores(spans, each).tobytes() for each in (None, raised, lowered)}) == 3
    alone = Texts(loaded, [texts[1]]).scores([Span(0, 60, 70)], raised)
    assert alone.tobytes() == engine.scores(spans, raised)[1:2].tobytes()


def test_saved_models_are_those_that_are_meant(long_models: dict[str, LoadedModel]) -> None:
    """Windows and widths as above: what is compared depends on them."""
    archs = {name: loaded.model.architecture for name, loaded in long_models.items()}
    assert archs["gpt_neo"].windows == (None, 70)
    assert archs["mistral"].windows == (23, 23)
    assert (archs["mistral"].heads, archs["mistral"].kv_heads) == (3, 1)
    assert not archs["bidirectional"].causal
    assert all(arch.context == LONG for arch in archs.values())
