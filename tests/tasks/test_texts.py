"""Sizes are checked before texts are tokenized; messages quote tokens; lost characters give warnings."""

from __future__ import annotations

import pytest
from helpers.tokenizers import gpt_like, letters_only, llama_like, loaded, with_bomb, words_only

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import BuiltinTask, PromptTask
from pahq_server.models.tokenizer import PretrainedTokenizer
from pahq_server.tasks.resolve import (
    MAX_SHOWN_BYTES,
    MAX_SHOWN_TEXTS,
    MAX_SHOWN_TOKENS,
    Limits,
    has_text,
    resolve,
    resolve_task,
    tokenize,
)
from pahq_server.tasks.texts import MIN_TEXT_BYTES, OutOfTimeError, TaskTexts, quoted

LIMITS = Limits(vocabulary=1000, output_vocabulary=1000, context=10)
GPT = gpt_like(["Tom", "Lily"])


class Recording:
    """One token per character; records the lengths of the texts that it tokenizes."""

    longest_token_bytes, unknown_id = 4, None

    def __init__(self, tokens_per_character: int = 1) -> None:
        self._tokens = tokens_per_character
        self.lengths: list[int] = []

    def encode(self, text: str) -> list[int]:
        self.lengths.append(len(text))
        return [0] * (self._tokens * len(text))

    encode_plain = encode

    def token_strings(self, ids: list[int]) -> list[str]:
        return ["x" for _ in ids]

    def left_out(self, text: str) -> str:
        return ""


def refusal(task: PromptTask, tokenizer: object, limits: Limits = LIMITS) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        resolve_task(task, tokenizer, limits)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize("field", ["clean", "corrupted"])
def test_texts_that_no_context_could_hold_are_not_tokenized(field: str) -> None:
    tokenizer = Recording()
    long = "é" * MIN_TEXT_BYTES
    error = refusal(PromptTask(**({"clean": ("a",)} | {field: ("a", long)})), tokenizer)
    assert error.field == f"task.{field}[1]"
    assert error.detail == (
        f"the text has {2 * MIN_TEXT_BYTES} bytes; at most {MIN_TEXT_BYTES} are taken, as the model's "
        "context is 10 tokens: shorten it"
    )
    assert max(tokenizer.lengths, default=0) <= 1


def test_what_a_context_holds_of_the_longest_tokens_is_taken_twice() -> None:
    texts = TaskTexts(Recording(), Limits(10, 10, context=1_000_000))
    assert texts.most_bytes == 2 * 4 * 1_000_000


def test_long_texts_are_judged_by_their_beginnings() -> None:
    tokenizer = Recording()
    error = refusal(PromptTask(clean=("a" * 60_000,)), tokenizer)
    assert (
        error.detail
        == "its first 4096 characters are 4096 tokens already, but the model's context is 10 tokens"
    )
    assert tokenizer.lengths == [4096]


def test_texts_are_no_longer_than_a_job_has_memory_for() -> None:
    limits = Limits(1000, 1000, context=1_000_000, memory=100_000, token_bytes=10)
    tokenizer = Recording()
    assert TaskTexts(tokenizer, limits).most_bytes == 2 * 4 * 10_000
    error = refusal(PromptTask(clean=("a" * 80_001,)), tokenizer, limits)
    assert error.detail.endswith("are taken, as a job has memory for 10000 tokens: shorten it")
    # Texts that are only shown take no memory of a job, but must fit into a message.
    assert TaskTexts(tokenizer, limits, most_shown=20_000).most_bytes == 2 * 4 * 20_000


def test_long_texts_of_few_tokens_are_tokenized_whole() -> None:
    tokenizer = words_only(["A"])
    text = " " * 60_000 + "A"
    assert resolve(PromptTask(clean=(text,)), tokenizer, LIMITS).clean == ((0,),)


def test_long_texts_may_be_cut_within_a_word_that_has_a_token_as_a_whole_only() -> None:
    word = "a" * 60
    tokenizer, limits = words_only([word]), Limits(1000, 1000, context=256)
    assert resolve(PromptTask((" ".join([word] * 200),)), tokenizer, limits).clean == ((0,) * 200,)
    error = refusal(PromptTask((" ".join([word] * 200 + ["b"]),)), tokenizer, limits)
    assert "cannot be tokenized: WordLevel error" in error.detail
    few = Limits(1000, 1000, context=10)
    error = refusal(PromptTask((" ".join([word] * 200),)), tokenizer, few)
    assert "but the model's context is 10" in error.detail


def test_the_bytes_of_a_task_are_bounded_by_the_memory_of_a_job() -> None:
    limits = Limits(1000, 1000, context=1000, memory=1000, token_bytes=10)
    tokenizer = Recording()
    error = refusal(PromptTask(clean=("a" * 500,) * 200), tokenizer, limits)
    assert (error.field, tokenizer.lengths) == ("task.clean", [])
    assert error.detail.startswith(f"its texts have 100000 bytes in all; at most {MIN_TEXT_BYTES} are taken")


def test_a_task_is_given_up_once_it_has_too_many_tokens() -> None:
    limits = Limits(1000, 1000, context=1000, memory=1000, token_bytes=10)
    tokenizer = Recording()
    error = refusal(PromptTask(clean=("a" * 40,) * 100), tokenizer, limits)
    assert (error.field, len(tokenizer.lengths)) == ("task", 1), "equal texts are tokenized once"
    assert error.detail == "needs about 0.0 GiB; a job may take 0.0: use fewer or shorter prompts"
    resolve_task(PromptTask(clean=("a" * 50,) * 2), tokenizer, limits)  # type: ignore[arg-type]


def test_texts_are_given_up_when_time_is_up() -> None:
    tokenizer, asked = Recording(), iter([False, False, True])
    with pytest.raises(OutOfTimeError):
        resolve_task(PromptTask(clean=("a", "b", "c")), tokenizer, LIMITS, lambda: next(asked))
    assert len(tokenizer.lengths) == 2
    with pytest.raises(OutOfTimeError):
        resolve_task(BuiltinTask("ioi", 3, 0), tokenizer, LIMITS, lambda: True)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (PromptTask(((1,),)), False),
        (PromptTask(((1,),), ((1,),), ((1,),), ((1,),)), False),
        (PromptTask(((1,), "a")), True),
        (PromptTask(((1,),), ("a",)), True),
        (PromptTask(((1,),), answers=("a",)), True),
        (PromptTask(((1,),), wrong_answers=("a",)), True),
        (BuiltinTask("ioi", 1, 0), True),
    ],
)
def test_what_needs_a_tokenizer(task: PromptTask | BuiltinTask, expected: bool) -> None:
    assert has_text(task) is expected


def test_pairs_of_unequal_length_show_both() -> None:
    error = refusal(PromptTask(("a Tom c",), ("a b c",)), GPT)
    assert error.field == "task.corrupted[0]"
    assert error.detail == (
        "pair 0: the clean prompt has 4 tokens, the corrupted one 5; "
        "clean: 'a', >>'ĠTom'<<, 'Ġ', 'c'; corrupted: 'a', >>'Ġ'<<, 'b', 'Ġ', 'c'"
    )


def test_long_lists_of_tokens_are_shown_around_the_difference() -> None:
    limits = Limits(1000, 1000, context=200)
    error = refusal(PromptTask(("x" * 50 + "a" + "y" * 50,), ("x" * 50 + "b" + "y" * 49,)), GPT, limits)
    x = "'x', " * 6
    assert f"clean: …, {x}>>'a'<<, 'y', 'y', 'y', 'y', 'y', …; corrupted: …, {x}>>'b'<<, 'y'" in error.detail
    assert len(error.detail) < 800


def test_a_prompt_that_only_goes_on() -> None:
    error = refusal(PromptTask(("ab",), ("abc",)), GPT)
    assert error.detail.endswith("; clean: 'a', 'b', >>end<<; corrupted: 'a', 'b', >>'c'<<")


@pytest.mark.parametrize("field", ["clean", "corrupted"])
def test_texts_that_cannot_be_tokenized_are_named(field: str) -> None:
    task = PromptTask(**({"clean": ("A",)} | {field: ("A", "A D")}))
    error = refusal(task, words_only(["A"]))
    assert error.field == f"task.{field}[1]"
    assert error.detail.startswith("'A D' cannot be tokenized: WordLevel error")
    assert error.detail.endswith("; change the text, or send token ids")


def test_a_panic_names_the_text() -> None:
    error = refusal(PromptTask(("a" * 40 + "!",)), loaded(with_bomb(r"(a+)+$")))
    assert error.detail.startswith(f"'{'a' * 40}!' cannot be tokenized: Onig: Regex search error")


def test_texts_of_which_nothing_is_left() -> None:
    assert refusal(PromptTask(("zz",)), letters_only("AB")).detail == (
        "the prompt is empty: the tokenizer leaves out all of 'zz'"
    )
    assert refusal(PromptTask(("",)), letters_only("AB")).detail == "the prompt is empty"


def test_tokens_that_the_model_does_not_have_are_quoted() -> None:
    error = refusal(PromptTask((" Tom",)), GPT, Limits(5, 5, 10))
    assert error.detail == (
        f"token id {GPT.encode(' Tom')[0]} is outside of [0, 5): the tokenizer has the token 'ĠTom', but the "
        "model does not; use another word"
    )


def warnings(tokenizer: PretrainedTokenizer, text: str) -> tuple[str, ...]:
    return resolve_task(PromptTask((text,)), tokenizer, LIMITS).warnings


def test_unknown_words_in_prompts_are_told() -> None:
    tokenizer = words_only(["A", "B"], unknown="[UNK]")
    (warning,) = warnings(tokenizer, "A D B E")
    assert warning.startswith("task.clean[0]: 'A D B E' has something that is not in the model's vocabulary")
    assert "at position 1, 3 is the unknown token '[UNK]'" in warning
    assert warnings(tokenizer, "A B") == ()


def test_what_is_left_out_of_prompts_is_told() -> None:
    (warning,) = warnings(letters_only("ABC"), "AzB")
    assert "has no token for 'z' and leaves it out of 'AzB'" in warning
    assert warnings(letters_only("ABC"), "ABC") == warnings(GPT, "zé") == ()


def test_long_texts_are_quoted_by_both_ends() -> None:
    assert quoted("a" * 80) == repr("a" * 80)
    assert quoted("a" * 500 + "\n") == f"'{'a' * 40}'…'{'a' * 39}\\n'"


# Showing how texts are tokenized


def test_a_text_is_shown_as_a_prompt_and_as_an_answer() -> None:
    tokenizer = llama_like(["Tom"])
    (shown,) = tokenize([" Tom"], True, "to", tokenizer, LIMITS)
    assert (shown.text, shown.tokens, shown.answer_token, shown.note) == (
        " Tom",
        ("<s>", "▁", "▁Tom"),
        "▁Tom",
        "",
    )
    assert list(shown.ids) == tokenizer.encode(" Tom")
    assert shown.answer == tokenizer.encode_plain("Tom")[0]


def test_special_tokens_are_left_out_on_request_and_prompts_matter() -> None:
    (shown,) = tokenize([" Tom"], False, "", llama_like(["Tom"]), LIMITS)
    assert shown.tokens == ("▁", "▁Tom")
    assert (shown.answer, shown.answer_token) == (None, "")
    assert shown.note == "' Tom' is 2 tokens: '▁', '▁Tom'; an answer is exactly one token; try 'Tom'"


def test_notes_of_several_texts_are_each_its_own() -> None:
    shown = tokenize(["Tom", " Tom", "Tom"], True, "give to", GPT, LIMITS)
    assert [bool(text.note) for text in shown] == [True, False, True]
    assert shown[0].note.startswith("'Tom' is the token 'Tom' (")


def test_texts_longer_than_the_context_are_shown() -> None:
    (shown,) = tokenize(["a" * 30], True, "", GPT, LIMITS)
    assert len(shown.ids) == 30


@pytest.mark.parametrize(
    ("texts", "prompt", "field", "detail"),
    [
        ([], "", "texts", "at least one text is needed"),
        (["a"] * (MAX_SHOWN_TEXTS + 1), "", "texts", "1001 texts; at most 1000 are taken at a time"),
        (["A", "a" * (MIN_TEXT_BYTES + 1)], "", "texts[1]", "the text has 65537 bytes"),
        (["A"], "a" * (MIN_TEXT_BYTES + 1), "prompt", "the text has 65537 bytes"),
        (["A", "\ud800"], "", "texts[1]", "'\\ud800' cannot be tokenized"),
    ],
)
def test_what_is_not_shown(texts: list[str], prompt: str, field: str, detail: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        tokenize(texts, True, prompt, GPT, LIMITS)
    assert caught.value.field == field
    assert caught.value.detail.startswith(detail)


def test_no_more_tokens_are_shown_than_a_message_holds() -> None:
    tokenizer = Recording(tokens_per_character=MAX_SHOWN_TOKENS // 2)
    assert len(tokenize(["a", "b"], True, "", tokenizer, LIMITS)) == 2
    with pytest.raises(InvalidRequestError, match="texts: more than 100000 tokens in all"):
        tokenize(["a", "b", "c"], True, "", tokenizer, LIMITS)


def test_no_more_bytes_are_shown_than_a_message_holds() -> None:
    class LongTokens(Recording):
        """A vocabulary in which one token is written with very many characters."""

        def token_strings(self, ids: list[int]) -> list[str]:
            return ["\u0120" * (MAX_SHOWN_BYTES // 8) for _ in ids]

    assert len(tokenize(["a"] * 3, True, "", LongTokens(), LIMITS)) == 3
    with pytest.raises(InvalidRequestError, match="texts: they and their tokens are more than 8388608 bytes"):
        tokenize(["a"] * 4, True, "", LongTokens(), LIMITS)


def test_nothing_is_shown_without_a_tokenizer() -> None:
    with pytest.raises(InvalidRequestError, match=r"texts\[0\]: is text, but the model has no tokenizer"):
        tokenize(["a"], True, "", None, LIMITS)
