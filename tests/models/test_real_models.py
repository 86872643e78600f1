"""Published models."""

from __future__ import annotations

import pytest
from helpers.outputs import assert_close, product_logits, random_prompts, transformers_logits
from helpers.shared import shared_model

from pahq_server.models.loading import load

# Number of parameters as published; see PROVENANCE.md beside the models.
PARAMETERS = {
    "tinytalk-gptneo-hf": 3_410_560,
    "stories260K-hf": 260_032,
    "atome-vanilla1m-gpt2-hf": 954_712,
    "gptnano-sort-gpt2-hf": 85_728,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_logits_equal_transformers_at_every_position(name: str) -> None:
    directory = shared_model(name)
    model = load(str(directory)).model
    context = model.architecture.context
    prompts = random_prompts(model.architecture.vocabulary, [min(n, context) for n in (40, 1, 11)])
    assert_close(product_logits(model, prompts), transformers_logits(directory, prompts))


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name: str) -> None:
    assert load(str(shared_model(name))).model.parameters == PARAMETERS[name]


def test_tinytalk_knows_who_gets_the_ball() -> None:
    """Tokenizer and model together: the indirect object is the likeliest next token."""
    directory = shared_model("tinytalk-gptneo-hf")
    loaded = load(str(directory))
    assert loaded.tokenizer is not None
    ids = loaded.tokenizer.encode(" Lily and Tom went to the park. Lily gave the ball to")
    (tom,) = loaded.tokenizer.encode_plain(" Tom")
    (logits,) = product_logits(loaded.model, [ids])
    assert logits[-1].argmax() == tom


def test_the_sorter_sorts() -> None:
    model = load(str(shared_model("gptnano-sort-gpt2-hf"))).model
    letters, ordered = [2, 0, 1, 1, 0, 2], [0, 0, 1, 1, 2, 2]
    (logits,) = product_logits(model, [letters + ordered[:-1]])
    assert logits[5:].argmax(-1).tolist() == ordered
