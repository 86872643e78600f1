"""The shipped demo model, its card, and the text that it was trained on."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from demo_training import card, corpus
from demo_training.evaluate import SIDE_TASKS, TASKS, evaluate
from demo_training.names import ALL_NAMES, HELD_OUT_NAMES, HELD_OUT_STARTS
from demo_training.tokenizer import build
from demo_training.train import CONTEXT, Recipe, pack, train
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging

from pahq_server.demo import model_path
from pahq_server.tasks import induction, pronoun

logging.disable_progress_bar()

PEOPLE = {*ALL_NAMES, "Mom", "Dad", "Grandma", "Grandpa"}
# Mean logit difference of the corrupted prompts as a share of that of the clean ones: where nothing tells the
# answer it is near 0, where the wrong answer is right it is negative.
CORRUPTED = {"ioi": (-0.1, 0.1), "greater_than": (-0.3, 0.3), "induction": (-2, -0.3), "pronoun": (-2, -0.5)}


@pytest.mark.parametrize(("name", "items"), [(name, items) for name, task in TASKS.items() for items in task])
def test_it_solves_its_tasks(name: str, items: str) -> None:
    score = evaluate(model_path(), TASKS[name][items], num_prompts=400, seed=7)
    assert score.accuracy >= 0.98
    assert score.above_wrong >= 0.98
    assert score.logit_difference > 3
    least, most = CORRUPTED[name]
    assert least < score.corrupted_logit_difference / score.logit_difference < most


@pytest.mark.parametrize("name", SIDE_TASKS)
def test_tasks_that_it_learned_on_the_side(name: str) -> None:
    assert evaluate(model_path(), SIDE_TASKS[name], num_prompts=400, seed=7).above_wrong >= 0.98


def test_the_card_says_what_is_measured() -> None:
    text = (model_path() / "README.md").read_text(encoding="utf-8")
    for labels, score in card.measure(model_path()).items():
        assert card.row(*labels, score) in text


def test_it_is_a_small_gpt2() -> None:
    config = AutoConfig.from_pretrained(model_path())
    assert (config.model_type, config.activation_function) == ("gpt2", "gelu_new")
    assert (config.n_layer, config.n_head, config.n_embd, config.n_positions) == (4, 4, 128, 64)
    assert config.n_embd / config.n_head == 32  # some attention kernels take heads of width 32 and none below
    assert sum(file.stat().st_size for file in model_path().iterdir()) < 8e6


def test_years_are_two_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    assert tokenizer.tokenize(" the year 1732 to 17") == ["▁the", "▁year", "▁17", "32", "▁to", "▁17"]
    assert tokenizer.decode(tokenizer(" 1732")["input_ids"]) == " 1732"


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
    words = {word for document in corpus.generate(9, 2000) for word in tokenizer.tokenize(document.text)}
    assert tokenizer.unk_token not in words


def texts(seed: int) -> list[str]:
    return [document.text for document in corpus.generate(seed, 20_000)]


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_names_are_in_the_text_but_not_in_the_task(seed: int) -> None:
    documents = texts(seed)
    for name in HELD_OUT_NAMES:
        found = [text for text in documents if re.search(rf"\b{name}\b", text)]
        assert len(found) > 20
        assert not [text for text in found if has_shape_of_task(text) or "n't" in text]
    assert any(has_shape_of_task(text) for text in documents)
    assert any("n't" in text for text in documents)


def test_names_have_one_pronoun_in_the_text() -> None:
    for text in texts(0):
        said = set(re.findall(r"\b(he|she)\b", text))
        assert len(said) <= 1
        for name in re.findall(r"\w+", text) if said else ():
            assert name not in (pronoun.MALE_NAMES if "she" in said else pronoun.FEMALE_NAMES)


def test_held_out_years_start_no_text_but_their_parts_do() -> None:
    years = set(map(int, re.findall(r"\d{4}", " ".join(texts(0)))))
    starts = {int(start) for text in texts(0) for start in re.findall(r"from the year (\d+)", text)}
    assert not starts & set(HELD_OUT_STARTS)
    assert {year // 100 for year in HELD_OUT_STARTS} <= {year // 100 for year in starts}
    assert {year % 100 for year in HELD_OUT_STARTS} <= {year % 100 for year in starts}
    assert {year % 100 for year in years} == set(range(1, 100))


def test_how_far_a_repetition_is_from_its_origin_does_not_tell_what_comes_next() -> None:
    known = set(induction.WORDS)
    lists = [text.split() for text in texts(0) if known.issuperset(text.split())]
    repeated = [words for words in lists if len(set(words)) < len(words)]
    assert 1000 < len(repeated) < len(lists) - 500
    assert {words.index(words[0], 1) for words in repeated} == set(range(3, 13))
    assert known == {word for words in repeated for word in words}


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


def test_what_the_text_tells_weighs_more() -> None:
    documents = [
        corpus.Document(" Lily met Tom."),
        corpus.Document.solved(" dog cat dog", " cat dog", "."),
    ] * 12
    words = build((document.text for document in documents), CONTEXT)
    rows = pack(words, documents, rest=0.25)
    assert (rows.ids.shape, rows.weights.shape) == ((2, CONTEXT), (2, CONTEXT))
    plain, solved = [0.25] * 5, [0.25] * 3 + [1.0] * 2 + [0.25] * 2
    assert rows.weights[0].tolist() == ((plain + solved) * 12)[:CONTEXT]
    assert rows.ids[0, :5].tolist() == [*words(" Lily met Tom.")["input_ids"], words.eos_token_id]


def test_documents_of_a_row_do_not_see_each_other() -> None:
    documents = corpus.generate(0, 100)
    words = build((document.text for document in documents), CONTEXT)
    rows = pack(words, documents, rest=1)
    mask = rows.mask(torch.tensor([0, 1]))
    assert mask.shape == (2, 1, CONTEXT, CONTEXT)
    for to in range(CONTEXT):
        seen = {place for place in range(CONTEXT) if mask[1, 0, to, place]}
        begin = max(
            (place for place in range(1, to + 1) if rows.ids[1, place - 1] == words.eos_token_id), default=0
        )
        assert seen == set(range(begin, to + 1))


def test_finding_the_model_does_not_import_torch() -> None:
    code = "import sys, pahq_server.demo as d; d.model_path(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
