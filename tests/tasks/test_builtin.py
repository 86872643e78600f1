"""What holds for all built-in tasks, with tokenizers of several kinds."""

from __future__ import annotations

import pytest
from helpers.shared import shared_model
from helpers.tokenizers import gpt_like, letters_only, llama_like, words_only
from transformers import AutoTokenizer

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import BuiltinTask, PromptTask
from pahq_server.models.tokenizer import PretrainedTokenizer
from pahq_server.tasks import docstring, greater_than, induction, ioi, pronoun, subject_verb
from pahq_server.tasks.builtin import BUILTIN_TASKS
from pahq_server.tasks.resolve import Limits, ResolvedTask, resolve_task

LIMITS = Limits(vocabulary=50_000, output_vocabulary=50_000, context=256)
WORDS = (
    *map(str, greater_than.CENTURIES),
    *ioi.NAMES,
    *induction.WORDS,
    *(word for pair in (*pronoun.PRONOUNS, *subject_verb.NOUNS, *subject_verb.VERBS) for word in pair),
    *docstring.NAMES,
)
DIGITS = tuple(f"{number:02}" for number in range(100))
TOKENIZERS = {
    "gpt": gpt_like((*WORDS, *DIGITS)),
    "llama": llama_like(WORDS, bare=DIGITS),
    "end": llama_like(WORDS, bare=DIGITS, end=True),
}
# One pair of each task: they must never change, since circuits that were found are of these prompts.
FIRST = {
    "ioi": (
        " One day, Eric and Peter played at the lake. Eric wanted to give the cookie to",
        " One day, Aaron and Matthew played at the lake. Paul wanted to give the cookie to",
        " Peter",
        " Eric",
    ),
    "greater_than": (
        " The work lasted from the year 1631 to the year 16",
        " The work lasted from the year 1601 to the year 16",
        "60",
        "09",
    ),
    "induction": (
        " dog voice cup room seed picture roof sister orange water dog voice cup room seed",
        " dog voice room seed sister cup roof water picture orange dog voice cup room seed",
        " picture",
        " sister",
    ),
    "pronoun": (
        " I think that Sue is a great farmer, isn't",
        " I think that Daniel is a great farmer, isn't",
        " she",
        " he",
    ),
    "subject_verb": (
        " The author that the students saw",
        " The authors that the students saw",
        " has",
        " have",
    ),
    "docstring": (
        'def corner(self, shape, last, code, weight):\n    """round crime winter\n\n'
        "    :param shape: port sector\n    :param last: unit piece\n    :param",
        'def corner(self, group, mode, level, data):\n    """round crime winter\n\n'
        "    :param index: port sector\n    :param point: unit piece\n    :param",
        " code",
        " weight",
    ),
}

tasks = pytest.mark.parametrize("name", BUILTIN_TASKS)


def resolved(name: str, num_prompts: int = 100, seed: int = 0, tokenizer: str = "gpt") -> ResolvedTask:
    return resolve_task(BuiltinTask(name, num_prompts, seed), TOKENIZERS[tokenizer], LIMITS)


def drawn(name: str, num_prompts: int = 100, seed: int = 0) -> PromptTask:
    return resolved(name, num_prompts, seed).prompts


def test_their_names() -> None:
    expected = ["ioi", "greater_than", "induction", "pronoun", "subject_verb", "docstring"]
    assert list(BUILTIN_TASKS) == expected


@tasks
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_pairs_are_of_equal_length_and_differ(name: str, tokenizer: str) -> None:
    task = resolved(name, tokenizer=tokenizer).task
    assert task.corrupted is not None
    assert task.answers is not None
    assert task.wrong_answers is not None
    for clean, corrupted in zip(task.clean, task.corrupted, strict=True):
        assert len(clean) == len(corrupted)
        assert clean != corrupted
    assert all(right != wrong for right, wrong in zip(task.answers, task.wrong_answers, strict=True))


@tasks
def test_prompts_and_answers_give_no_warning(name: str) -> None:
    assert resolved(name).warnings == ()


@tasks
def test_answers_are_what_follows_the_prompt(name: str) -> None:
    for kind, tokenizer in TOKENIZERS.items():
        found = resolved(name, tokenizer=kind)
        for prompt, sent, token in zip(
            found.prompts.clean, found.prompts.answers, found.task.answers or (), strict=True
        ):
            (string,) = tokenizer.token_strings([token])
            text = string.replace("Ġ", " ").replace("▁", " ")
            assert sent in (text, (token,))
            assert tokenizer.encode_plain(str(prompt) + text) == [*tokenizer.encode_plain(str(prompt)), token]


@tasks
def test_the_seed_and_nothing_else_decides(name: str) -> None:
    assert drawn(name, 20, 3) == drawn(name, 20, 3)
    assert drawn(name, 20, 3).clean != drawn(name, 20, 4).clean
    assert drawn(name, 20, 3).clean[:5] == drawn(name, 5, 3).clean


@tasks
def test_prompts_are_distinct(name: str) -> None:
    assert len(set(drawn(name, 500).clean)) == 500


@tasks
def test_the_prompts_of_a_seed_never_change(name: str) -> None:
    prompts = drawn(name, 1)
    assert (*prompts.clean, *prompts.corrupted, *prompts.answers, *prompts.wrong_answers) == FIRST[name]


@tasks
@pytest.mark.parametrize("num_prompts", [0, -1])
def test_no_prompts_is_an_error(name: str, num_prompts: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"task.num_prompts: must be at least 1, got {num_prompts}"):
        resolved(name, num_prompts)


@tasks
@pytest.mark.parametrize(
    "tokenizer",
    [gpt_like(()), llama_like(()), words_only(["A"]), words_only(["A"], "<unk>"), letters_only("A")],
)
def test_words_without_tokens_are_refused_by_name(name: str, tokenizer: PretrainedTokenizer) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        resolve_task(BuiltinTask(name, 2, 0), tokenizer, LIMITS)
    assert raised.value.field == "task"
    assert raised.value.detail.startswith(f"{name} needs ")
    assert "send prompts of your own" in raised.value.detail
    missing = ("Tom", " 1132", "apple", "Sara", "he/she", "boy/boys", "load")
    assert any(repr(word) in raised.value.detail for word in missing)


def test_an_unknown_task_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidRequestError, match=r"unknown task 'ioj'.*'ioi', 'greater_than', 'induction'"):
        resolved("ioj")


@pytest.mark.parametrize(
    ("model", "works"),
    [
        ("tinytalk-gptneo-hf", {"ioi", "induction", "pronoun", "subject_verb", "docstring"}),
        ("stories260K-hf", set()),
        ("atome-vanilla1m-gpt2-hf", set()),
    ],
)
def test_real_tokenizers(model: str, works: set[str]) -> None:
    tokenizer = PretrainedTokenizer(AutoTokenizer.from_pretrained(shared_model(model)))
    for name in BUILTIN_TASKS:
        if name in works:
            found = resolve_task(BuiltinTask(name, 30, 0), tokenizer, LIMITS)
            assert len(set(found.task.clean)) == 30
            assert found.warnings == ()
        else:
            with pytest.raises(InvalidRequestError, match=f"{name} needs .*: send prompts of your own"):
                resolve_task(BuiltinTask(name, 30, 0), tokenizer, LIMITS)
