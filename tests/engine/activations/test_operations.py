"""What is refused, what happens without memory, and how much memory texts take."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import random_models as make
from helpers.outputs import random_prompts
from helpers.texts import Texts, whole
from helpers.zoo import Zoo

from pahq_server.core.activations import ScoreContinuations, Span, Steering
from pahq_server.core.engine import Objective, Work
from pahq_server.core.errors import InvalidRequestError, NonFiniteMetricError, ResourceExhaustedError
from pahq_server.core.task import PromptTask, TokenTask
from pahq_server.engine.activations.run import TextRun
from pahq_server.engine.activations.texts import PackedTexts
from pahq_server.engine.engine import ModelEngine
from pahq_server.models.folding import FOLDING
from pahq_server.models.loading import LoadedModel, load

NONE = np.empty(0, dtype=np.int64)
TEXTS = [(1, 2, 3), (4, 5)]


@pytest.fixture
def loaded(zoo: Zoo) -> LoadedModel:
    return load(str(zoo.path("gpt2")), FOLDING)


@pytest.mark.parametrize(
    ("ask", "field", "text"),
    [
        (lambda texts: texts.sums([Span(2, 0, 1)]), "spans", "there are 2 texts, got the text 2"),
        (lambda texts: texts.sums([Span(1, 0, 3)]), "spans", "text 1 has 2 tokens, got positions from 0"),
        (lambda texts: texts.sums([Span(0, 2, 1)]), "spans", "from 2 until 1"),
        (lambda texts: texts.sums([Span(0, -1, 1)]), "spans", "from -1 until 1"),
        (lambda texts: texts.sums([Span(0, 0, 0)]), "spans", "from 0 until 0"),
        (lambda texts: texts.details(whole(TEXTS), [3, 96], 1), "neurons", "from 0 until 96, got some"),
        (lambda texts: texts.details(whole(TEXTS), [-1, 5], 1), "neurons", "from -1 to 5"),
        (lambda texts: texts.states(whole(TEXTS), [0, 3]), "layers", "must be from 0 to the model's 2"),
        (lambda texts: texts.states(whole(TEXTS), [-1]), "layers", r"got \[-1\]"),
        (lambda texts: texts.scores([Span(0, 0, 2)]), "spans", "must have a token before it"),
        (
            lambda texts: texts.scores([Span(0, 1, 2)], Steering(NONE, np.empty(0), np.array([100]))),
            "neurons",
            "from 0 until 96",
        ),
    ],
)
def test_what_the_model_or_the_texts_do_not_have(
    ask: Callable[[Texts], object], field: str, text: str, loaded: LoadedModel
) -> None:
    with pytest.raises(InvalidRequestError, match=text) as caught:
        ask(Texts(loaded, TEXTS))
    assert caught.value.field == field


def test_a_text_beyond_the_context(loaded: LoadedModel) -> None:
    """Tasks are checked before; whoever asks the engine without is told, too."""
    texts = Texts(loaded, TEXTS)
    state = texts._engine.worker._states[texts._state]
    object.__setattr__(state.resolved, "task", TokenTask(((1,) * (make.CONTEXT + 1),)))
    with pytest.raises(InvalidRequestError, match="text 0 has 17 tokens, but the model's context is 16"):
        texts.sums([Span(0, 0, 1)])


def test_models_without_neurons(zoo: Zoo) -> None:
    texts = Texts(load(str(zoo.path("hooked attention only")), FOLDING), TEXTS)
    for ask in (
        lambda: texts.sums(whole(TEXTS)),
        lambda: texts.details(whole(TEXTS), [], 1),
        lambda: texts.scores([Span(0, 1, 2)], Steering(NONE, np.empty(0), NONE)),
    ):
        with pytest.raises(InvalidRequestError, match="'model' has attention only: without MLPs"):
            ask()
    assert texts.scores([Span(0, 1, 2)]) < 0
    assert texts.states(whole(TEXTS), [1]).shape == (5, 1, 8)


@pytest.mark.parametrize("name", ["hooked", "hooked bidirectional"])
def test_models_that_do_not_predict_the_next_token(name: str, zoo: Zoo) -> None:
    texts = Texts(load(str(zoo.path(name)), FOLDING), TEXTS)
    with pytest.raises(InvalidRequestError, match="does not predict the next token"):
        texts.scores([Span(0, 1, 2)])
    assert texts.sums(whole(TEXTS)).tokens == 5


@pytest.mark.parametrize("precision", ["rtn-int8", "paper"])
def test_policies_that_round_activations(precision: str, loaded: LoadedModel) -> None:
    text = f"texts do not run in '{precision}'.*'pahq-int8'"
    with pytest.raises(InvalidRequestError, match=text) as caught:
        Texts(loaded, TEXTS, precision).sums(whole(TEXTS))
    assert caught.value.field == "precision"


def test_the_literal_executor_keeps_models_as_they_are(zoo: Zoo) -> None:
    plain, folded = (load(str(zoo.path("gpt2")), *transform) for transform in ((), (FOLDING,)))
    engine = ModelEngine({"model": plain}, executor="literal")
    found = Texts(plain, TEXTS, engine=engine).states(whole(TEXTS), [0, 2])
    assert found.tobytes() == Texts(folded, TEXTS).states(whole(TEXTS), [0, 2]).tobytes()


def test_nothing_to_look_at(loaded: LoadedModel) -> None:
    texts = Texts(loaded, TEXTS)
    for spans in ([], [Span(0, 1, 1), Span(1, 2, 2)]):
        sums = texts.sums(spans)
        assert (sums.tokens, sums.positive.sum(), sums.total.sum(), sums.squares.sum()) == (0, 0, 0, 0)
        details = texts.details(spans, [0, 5], 3)
        assert (details.top.texts == -1).all()
        assert not details.histogram.any()
        assert texts.states(spans, [0, 1]).shape == (0, 2, 12)
    assert texts.details(whole(TEXTS), [], 3).histogram.shape == (0, 301)
    assert texts.states(whole(TEXTS), []).shape == (5, 0, 12)
    assert texts.scores([]).shape == (0,)
    assert texts.scores([Span(0, 2, 2), Span(1, 1, 2)])[0] == 0


def test_activations_that_are_not_finite(zoo: Zoo) -> None:
    loaded = load(str(zoo.path("llama")), FOLDING)
    loaded.model.weights.w_e[3] = torch.nan
    texts = Texts(loaded, [(1, 2, 3, 1), (1, 2, 4)])
    spoilt, fine = [Span(0, 0, 4)], [Span(0, 0, 2), Span(1, 0, 3)]
    for ask in (
        lambda spans: texts.sums(spans),
        lambda spans: texts.details(spans, [0], 1),
        lambda spans: texts.states(spans, [1]),
        lambda spans: texts.scores([Span(span.text, 1, span.last) for span in spans]),
    ):
        with pytest.raises(NonFiniteMetricError):
            ask(spoilt)
        ask(fine)
    # What one text spoils does not reach the others that run with it.
    scores = texts.run_unchecked(ScoreContinuations([Span(0, 1, 4), Span(1, 1, 3)], None, 7))
    assert np.isnan(scores).tolist() == [True, False]
    assert scores[1] == texts.scores([Span(1, 1, 3)])[0]


def failing(times: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets the next passes fail; returns how many were tried."""
    finish, tried = TextRun.finish_layer, [0]

    def finish_layer(run: TextRun) -> None:
        tried[0] += 1
        if tried[0] <= times:
            raise error
        finish(run)

    monkeypatch.setattr(TextRun, "finish_layer", finish_layer)
    return tried


def test_without_memory_other_jobs_are_asked_to_give_some(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = Texts(loaded, TEXTS)
    expected = texts.sums(whole(TEXTS)).total
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    failing(1, error, monkeypatch)
    assert texts.sums(whole(TEXTS)).total.tobytes() == expected.tobytes()
    failing(2, error, monkeypatch)
    with pytest.raises(ResourceExhaustedError, match="activations of some texts"):
        texts.sums(whole(TEXTS))
    failing(1, ValueError("of another kind"), monkeypatch)
    with pytest.raises(ValueError, match="of another kind"):
        texts.sums(whole(TEXTS))


def test_a_refused_operation_leaves_the_others_alone(loaded: LoadedModel) -> None:
    texts = Texts(loaded, TEXTS)
    engine, state = texts._engine, texts._state
    good, bad = (ScoreContinuations([Span(0, first, 3)], None, 5) for first in (1, 0))
    outcomes = engine.run([Work(state, operation) for operation in (good, bad, good)])
    assert isinstance(outcomes[1], InvalidRequestError)
    assert isinstance(outcomes[0], np.ndarray)
    assert isinstance(outcomes[2], np.ndarray)
    assert outcomes[0].tobytes() == outcomes[2].tobytes()


def test_of_the_last_layer_nothing_runs_but_its_neurons(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = Texts(loaded, TEXTS)
    tried = failing(0, ValueError(), monkeypatch)
    texts.sums(whole(TEXTS))
    assert tried == [1]
    texts.details(whole(TEXTS), [0, 3], 1)
    assert tried == [1]
    texts.states(whole(TEXTS), [0, 1])
    assert tried == [2]


def test_tokens_that_texts_share_are_computed_once(loaded: LoadedModel) -> None:
    arch = loaded.model.architecture
    begin, ends = (1, 2, 3, 4), ((5,), (6, 7), (5, 8))
    packed = PackedTexts(arch, [begin + end for end in ends], torch.device("cpu"))
    assert packed.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert packed.positions.tolist() == [0, 1, 2, 3, 4, 4, 5, 5]
    assert [rows.tolist() for rows in packed.rows] == [
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 5, 6],
        [0, 1, 2, 3, 4, 7],
    ]


def test_texts_that_are_read_both_ways_share_nothing_unless_they_are_equal(zoo: Zoo) -> None:
    arch = load(str(zoo.path("hooked bidirectional"))).model.architecture
    packed = PackedTexts(arch, [(1, 2), (1, 2, 3), (1, 2)], torch.device("cpu"))
    assert [rows.tolist() for rows in packed.rows] == [[0, 1], [2, 3, 4], [0, 1]]


def test_states_are_closed_and_opened_again(loaded: LoadedModel) -> None:
    engine = ModelEngine({"model": loaded})
    prompts = random_prompts(make.VOCABULARY, (7, 3), 1)
    found = []
    for _ in range(2):
        texts = Texts(loaded, prompts, engine=engine)
        found.append(texts.sums(whole(prompts)).total.tobytes())
        texts.close()
    assert found[0] == found[1]


def test_the_objective_is_resolved_without_activations(loaded: LoadedModel) -> None:
    """Texts need no answers, no corrupted prompts, and no clean run."""
    engine = ModelEngine({"model": loaded})
    objective = Objective("model", PromptTask(((1, 2),)), "kl_divergence", "zero", "group", "fp32")
    resolved = engine.resolve(objective, activations=False)
    assert resolved.clean_run.margins is None
