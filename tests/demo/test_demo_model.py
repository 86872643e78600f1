"""The shipped demo model, its card, and the text that it was trained on."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from demo_training import card, corpus
from demo_training.evaluate import evaluate
from demo_training.names import ALL_NAMES, HELD_OUT_NAMES
from demo_training.train import Recipe, train
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging

from pahq_server.demo import model_path
from pahq_server.tasks.ioi import NAMES

logging.disable_progress_bar()

PEOPLE = {*ALL_NAMES, "Mom", "Dad", "Grandma", "Grandpa"}


def test_it_solves_the_task_with_names_it_never_saw_in_it() -> None:
    score = evaluate(model_path(), HELD_OUT_NAMES, num_prompts=400, seed=7)
    assert score.accuracy >= 0.99
    assert score.logit_difference > 3
    assert abs(score.corrupted_logit_difference) < 0.5


def test_it_solves_the_task_as_the_server_generates_it() -> None:
    score = evaluate(model_path(), NAMES, num_prompts=400, seed=7)
    assert score.accuracy >= 0.99
    assert score.logit_difference > 4


def test_the_card_says_what_is_measured() -> None:
    text = (model_path() / "README.md").read_text(encoding="utf-8")
    for label, score in card.measure(model_path()).items():
        assert card.row(label, score) in text


def test_it_is_a_small_gpt2() -> None:
    config = AutoConfig.from_pretrained(model_path())
    assert (config.model_type, config.activation_function) == ("gpt2", "gelu_new")
    assert (config.n_layer, config.n_head, config.n_embd, config.n_positions) == (4, 8, 128, 64)
    assert sum(file.stat().st_size for file in model_path().iterdir()) < 8e6


def test_a_token_is_a_word_with_its_space() -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    text = " Lily and Tom went to the park. Lily gave the ball to"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(re.findall(r"\w+|\.", text))
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer(" Tom")["input_ids"]) == " Tom"
    assert tokenizer("Lily and Tom")["input_ids"] == tokenizer(" Lily and Tom")["input_ids"]


def test_unknown_words_are_one_unknown_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    assert tokenizer(" Qxzvkj")["input_ids"] == [tokenizer.unk_token_id]
    words = {word for text in corpus.generate(9, 2000) for word in tokenizer.tokenize(text)}
    assert tokenizer.unk_token not in words


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_names_are_in_the_text_but_not_in_the_task(seed: int) -> None:
    documents = corpus.generate(seed, 20_000)
    for name in HELD_OUT_NAMES:
        texts = [text for text in documents if re.search(rf"\b{name}\b", text)]
        assert len(texts) > 20
        assert not [text for text in texts if has_shape_of_task(text)]


def has_shape_of_task(text: str) -> bool:
    """Two people, then one of them again, then the other."""
    people = [word for word in re.findall(r"\w+", text) if word in PEOPLE]
    return any(
        {first, second} == {subject, receiver} and first != second
        for first, second, subject, receiver in zip(people, people[1:], people[2:], people[3:], strict=False)
    )


def test_the_shape_of_the_task_is_recognized() -> None:
    assert has_shape_of_task(" Lily and Tom went to the park. Lily gave the ball to Tom.")
    assert has_shape_of_task(" Lily met Mom. Mom gave the ball to Lily.")
    assert not has_shape_of_task(" Lily was sad. Mom gave a ball to Lily. Lily was happy.")


def test_training_is_reproducible() -> None:
    recipe = Recipe(steps=3, documents=300)
    (first, words), (second, _) = train(recipe), train(recipe)
    other, _ = train(Recipe(seed=1, steps=3, documents=300))
    assert words("x")["input_ids"] == [words.unk_token_id]
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert not torch.equal(next(first.parameters())[:50], next(other.parameters())[:50])


def test_finding_the_model_does_not_import_torch() -> None:
    code = "import sys, pahq_server.demo as d; d.model_path(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
