"""Resolving a task. Errors name the field, the prompt and the value."""

from __future__ import annotations

import pytest

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import BuiltinTask, Prompt, PromptTask, TokenTask
from pahq_server.tasks.builtin import BUILTIN_TASKS
from pahq_server.tasks.resolve import Limits, resolve

LIMITS = Limits(vocabulary=50, output_vocabulary=60, context=5)
NO_TOKENIZER = "is text, but the model has no tokenizer: send token ids"


class Letters:
    """One token per letter, numbered by the alphabet. Puts 0 before each prompt, as a BOS token."""

    def encode(self, text: str) -> list[int]:
        return [0, *self.encode_plain(text)]

    def encode_plain(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") + 1 for letter in text]


class Silent:
    """Without special tokens, so that an empty text is an empty prompt."""

    def encode(self, text: str) -> list[int]:
        return Letters().encode_plain(text)

    encode_plain = encode


def task(*clean: Prompt, **rest: object) -> PromptTask:
    return PromptTask(clean=clean or ((1, 2, 3), (4, 5)), **rest)  # type: ignore[arg-type]


def test_token_ids_are_taken_as_given() -> None:
    spec = task(
        (1, 2, 3), (0,), corrupted=((1, 2, 49), (7,)), answers=((59,), (0,)), wrong_answers=((1,), (2,))
    )
    expected = TokenTask(((1, 2, 3), (0,)), ((1, 2, 49), (7,)), (59, 0), (1, 2))
    assert resolve(spec, None, LIMITS) == expected
    assert resolve(spec, Letters(), LIMITS) == expected


def test_texts_are_tokenized_as_the_tokenizer_would_and_answers_without_special_tokens() -> None:
    spec = task("abc", "z", corrupted=("abd", "y"), answers=("a", "b"), wrong_answers=("c", "d"))
    assert resolve(spec, Letters(), LIMITS) == TokenTask(
        ((0, 1, 2, 3), (0, 26)), ((0, 1, 2, 4), (0, 25)), (1, 2), (3, 4)
    )


def test_texts_and_token_ids_may_be_mixed() -> None:
    spec = task("ab", (9, 9), answers=((5,), "c"))
    assert resolve(spec, Letters(), LIMITS) == TokenTask(((0, 1, 2), (9, 9)), None, (5, 3))


def test_what_is_left_out_is_none() -> None:
    found = resolve(task(), None, LIMITS)
    assert (found.corrupted, found.answers, found.wrong_answers, found.positions) == (None, None, None, None)


def test_positions_up_to_the_end_of_the_shortest_prompt() -> None:
    assert resolve(task(positions=(1, 0)), None, LIMITS).positions == (1, 0)


def test_a_prompt_may_fill_the_context_and_use_the_last_token_id() -> None:
    assert resolve(task((49,) * 5), None, LIMITS).clean == ((49,) * 5,)


def test_identical_pairs_are_allowed() -> None:
    assert resolve(task((1, 2), corrupted=((1, 2),)), None, LIMITS).corrupted == ((1, 2),)


@pytest.mark.parametrize(
    ("spec", "field", "detail"),
    [
        (PromptTask(clean=()), "task.clean", "at least one prompt is needed"),
        # Empty prompts
        (task((1,), ()), "task.clean[1]", "the prompt is empty"),
        (task((1,), corrupted=((),)), "task.corrupted[0]", "the prompt is empty"),
        # Token ids out of range
        (task((1,), (2, 50)), "task.clean[1]", "token id 50 is outside of [0, 50)"),
        (task((1,), (-1,)), "task.clean[1]", "token id -1 is outside of [0, 50)"),
        (task((1,), (2**40,)), "task.clean[1]", f"token id {2**40} is outside of [0, 50)"),
        (task((1,), corrupted=((51,),)), "task.corrupted[0]", "token id 51 is outside of [0, 50)"),
        # Beyond the context
        (task((1,), (1,) * 6), "task.clean[1]", "6 tokens, but the model's context is 5"),
        (task((1,), corrupted=((1,) * 9,)), "task.corrupted[0]", "9 tokens, but the model's context is 5"),
        # Pairs
        (
            task((1, 2), (3, 4), corrupted=((1, 2), (3,))),
            "task.corrupted[1]",
            "pair 1: the clean prompt has 2 tokens, the corrupted one 1",
        ),
        (task((1,), (2,), corrupted=((1,),)), "task.corrupted", "1 prompts for 2 clean ones"),
        (task((1,), corrupted=((1,), (2,))), "task.corrupted", "2 prompts for 1 clean ones"),
        # Positions
        (
            task(positions=(0, 2)),
            "task.positions",
            "position 2 is outside of prompt 1, which has 2 tokens",
        ),
        (
            task(positions=(-1,)),
            "task.positions",
            "position -1 is outside of prompt 0, which has 3 tokens",
        ),
        (
            task(positions=(2**40,)),
            "task.positions",
            f"position {2**40} is outside of prompt 0, which has 3 tokens",
        ),
        (task(positions=()), "task.positions", "at least one position is needed"),
        (task(positions=(1, 0, 1)), "task.positions", "positions repeat in [1, 0, 1]"),
        # Answers
        (task(answers=((1,),)), "task.answers", "1 answers for 2 prompts"),
        (task(wrong_answers=((1,),) * 3), "task.wrong_answers", "3 answers for 2 prompts"),
        (task(answers=((1,), (2, 3))), "task.answers[1]", "2 tokens; an answer is exactly one token"),
        (task(answers=((1,), ())), "task.answers[1]", "0 tokens; an answer is exactly one token"),
        (task(wrong_answers=((60,), (1,))), "task.wrong_answers[0]", "token id 60 is outside of [0, 60)"),
        # Texts without a tokenizer
        (task((1,), "ab"), "task.clean[1]", NO_TOKENIZER),
        (
            task((1,), answers=("a",)),
            "task.answers[0]",
            NO_TOKENIZER,
        ),
        (BuiltinTask("ioi", 4, 0), "task", "'ioi' is text, but the model has no tokenizer"),
        (
            BuiltinTask("anaphora", 4, 0),
            "task",
            f"unknown task 'anaphora'; built-in tasks: {list(BUILTIN_TASKS)}",
        ),
    ],
)
def test_bad_input(spec: PromptTask | BuiltinTask, field: str, detail: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        resolve(spec, None, LIMITS)
    assert (caught.value.field, caught.value.detail) == (field, detail)


@pytest.mark.parametrize(
    ("spec", "field", "detail"),
    [
        (task("abcde"), "task.clean[0]", "6 tokens, but the model's context is 5"),
        (
            task("abc", corrupted=("ab",)),
            "task.corrupted[0]",
            "pair 0: the clean prompt has 4 tokens, the corrupted one 3",
        ),
        (task("a", answers=("bc",)), "task.answers[0]", "'bc' is 2 tokens; an answer is exactly one token"),
        (task("a", answers=("",)), "task.answers[0]", "'' is 0 tokens; an answer is exactly one token"),
        (BuiltinTask("ioi", 0, 0), "task.num_prompts", "must be at least 1, got 0"),
        (BuiltinTask("ioi", -3, 0), "task.num_prompts", "must be at least 1, got -3"),
        (BuiltinTask("", 1, 0), "task", f"unknown task ''; built-in tasks: {list(BUILTIN_TASKS)}"),
    ],
)
def test_bad_text(spec: PromptTask | BuiltinTask, field: str, detail: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        resolve(spec, Letters(), LIMITS)
    assert (caught.value.field, caught.value.detail) == (field, detail)


def test_an_empty_text_is_empty_only_if_the_tokenizer_adds_nothing() -> None:
    assert resolve(task(""), Letters(), LIMITS).clean == ((0,),)
    with pytest.raises(InvalidRequestError) as caught:
        resolve(task("a", ""), Silent(), LIMITS)
    assert (caught.value.field, caught.value.detail) == ("task.clean[1]", "the prompt is empty")


def test_a_tokenizer_that_knows_more_words_than_the_model_is_found_out() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        resolve(task("az"), Letters(), Limits(vocabulary=20, output_vocabulary=20, context=5))
    assert (caught.value.field, caught.value.detail) == (
        "task.clean[0]",
        "token id 26 is outside of [0, 20)",
    )
