"""Which token a text is as an answer, and the warnings where that may not be what was meant."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.tokenizers import gpt_like, letters_only, llama_like, words_only

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import BuiltinTask, PromptTask
from pahq_server.models.tokenizer import PretrainedTokenizer
from pahq_server.tasks.ioi import NAMES
from pahq_server.tasks.resolve import Limits, ResolvedTask, resolve, resolve_task

PROMPT = "Lily and Tom went to the park. Lily gave the ball to"
LIMITS = Limits(vocabulary=10_000, output_vocabulary=10_000, context=256)
LLAMA = llama_like(["Tom", "Lily", "Ben", "un"], bare=["Lily", "happy"])
GPT = gpt_like(["Tom", "Lily", "to", "un", "happy", "Ġthe"])


def ask(tokenizer: PretrainedTokenizer, answer: Any, prompt: Any = PROMPT, **more: Any) -> ResolvedTask:
    task = PromptTask(clean=(prompt,), answers=(answer,), **more)
    return resolve_task(task, tokenizer, LIMITS)


def found(tokenizer: PretrainedTokenizer, answer: str, prompt: Any = PROMPT, **more: Any) -> str:
    """Returns the token of an answer that gives no warning."""
    resolved = ask(tokenizer, answer, prompt, **more)
    assert resolved.warnings == ()
    assert resolved.task.answers is not None
    return tokenizer.token_strings(resolved.task.answers)[0]


def warned(tokenizer: PretrainedTokenizer, answer: str, prompt: Any = PROMPT) -> tuple[str, str]:
    """Returns the token of an answer that gives one warning, and the warning."""
    resolved = ask(tokenizer, answer, prompt)
    assert resolved.task.answers is not None
    (warning,) = resolved.warnings
    assert warning.startswith(f"task.answers[0]: {answer!r} is the token ")
    return tokenizer.token_strings(resolved.task.answers)[0], warning


def refused(tokenizer: PretrainedTokenizer, answer: Any, prompt: Any = PROMPT) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        ask(tokenizer, answer, prompt)
    assert caught.value.field == "task.answers[0]"
    return caught.value.detail


def test_the_token_that_follows_the_prompt() -> None:
    assert found(LLAMA, " Tom") == "▁Tom"
    assert found(GPT, " Tom") == "ĠTom"


def test_one_token_by_itself_is_taken_as_before() -> None:
    assert found(LLAMA, "Tom") == "▁Tom"
    assert found(LLAMA, "Tom", prompt=(1, 2)) == "▁Tom"
    assert found(GPT, "Tom", prompt=(1, 2)) == "Tom"


def test_special_tokens_at_the_end_of_prompts_are_not_in_the_way() -> None:
    tokenizer = llama_like(["Tom"], end=True)
    resolved = ask(tokenizer, " Tom")
    assert tokenizer.token_strings(resolved.task.clean[0])[-1] == "</s>"
    assert resolved.task.answers == (tokenizer.encode_plain("Tom")[0],)


def test_ids_stay_as_they_are() -> None:
    assert ask(LLAMA, (7,)).task.answers == (7,)
    assert refused(LLAMA, (7, 8)) == "2 tokens; an answer is exactly one token"


def test_nothing_is_known_of_what_comes_before_where_prompts_are_ids() -> None:
    detail = refused(LLAMA, " Tom", prompt=(1, 2))
    assert detail == "' Tom' is 2 tokens: '▁', '▁Tom'; an answer is exactly one token; try 'Tom'"
    assert resolve(PromptTask(((1, 2),), answers=("Tom",)), LLAMA, LIMITS).answers is not None


@pytest.mark.parametrize(
    ("tokenizer", "answer", "advice"),
    [
        (GPT, "  Tom", "' Tom'"),
        (GPT, "Tom ", "'Tom'"),
        (GPT, "\nTom", "' Tom'"),
        (LLAMA, "  Tom", "' Tom'"),
        (LLAMA, "Tom ", "'Tom'"),
    ],
)
def test_advice_is_tried_out(tokenizer: PretrainedTokenizer, answer: str, advice: str) -> None:
    detail = refused(tokenizer, answer)
    assert detail.endswith(f"; an answer is exactly one token; try {advice}")
    assert ask(tokenizer, advice.strip("'")).task.answers is not None


@pytest.mark.parametrize("answer", ["Tommy", " Tommy", ""])
def test_where_no_advice_would_work(answer: str) -> None:
    for tokenizer in (LLAMA, GPT):
        assert refused(tokenizer, answer).endswith("; write another word or send a token id")


def test_a_refusal_tells_the_tokens_after_the_prompt_where_they_are_others() -> None:
    detail = refused(LLAMA, "Tommy")
    assert "'Tommy' is 3 tokens: '▁Tom', 'm', 'y' (after the prompt it is 5 tokens: 'T', 'o', " in detail


def test_a_merge_over_the_border_is_told() -> None:
    detail = refused(GPT, "om", prompt=f"{PROMPT} T")
    assert (
        "'om' is 2 tokens: 'o', 'm' (tokenized together, they do not begin with the tokens of the prompt"
        in detail
    )
    assert "but end in 'ĠTom')" in detail


def test_a_space_at_the_end_of_a_prompt() -> None:
    token, warning = warned(GPT, "Tom", prompt=f"{PROMPT} ")
    assert token == "Tom"
    assert "does not follow the prompt: tokenized together, they" in warning
    assert "end in 'ĠTom'; leave out spaces at the end of the prompt." in warning
    assert "' Tom' does, as the token 'ĠTom'" in warning
    # For Llama's tokenizer "Tom" by itself is the token that would also follow a space.
    assert found(LLAMA, "Tom", prompt=f"{PROMPT} ") == "▁Tom"


def test_a_word_without_its_space() -> None:
    token, warning = warned(GPT, "Tom")
    assert token == "Tom"
    assert (
        "goes on with the last word of the prompt, as in 'toTom'; ' Tom', with a space, is the token 'ĠTom'"
        in warning
    )


def test_where_a_space_is_not_missing() -> None:
    assert found(GPT, "Tom", prompt="It is (") == "Tom"
    assert found(GPT, "7", prompt="The year 19") == "7", "the rest of a number"
    assert found(GPT, "b", prompt="a") == "b", "' b' is no token"


def test_two_tokens_of_one_text() -> None:
    token, warning = warned(LLAMA, "Lily")
    assert token == "▁Lily"
    bare, space = LLAMA.encode_plain("toLily")[-1], LLAMA.encode_plain("Lily")[0]
    assert f"'▁Lily' ({space}) by itself, which is used" in warning
    assert f"the same text is the token 'Lily' ({bare})." in warning
    assert found(LLAMA, " Lily") == "▁Lily"


def test_positions_elsewhere_say_nothing_of_the_prompts_end() -> None:
    assert found(GPT, "Tom", positions=(3,)) == "Tom"
    last = len(GPT.encode(PROMPT)) - 1
    assert len(ask(GPT, "Tom", positions=(last,)).warnings) == 1


def test_many_warnings_of_a_kind_are_counted() -> None:
    task = PromptTask(clean=(PROMPT,) * 9, answers=("Tom",) * 9)
    warnings = resolve_task(task, GPT, LIMITS).warnings
    assert len(warnings) == 3
    assert warnings[-1].startswith("task.answers[2]: ")
    assert warnings[-1].endswith(" (The same holds for 6 more.)")


def test_unknown_words_are_no_answers() -> None:
    tokenizer = words_only(["A", "B"], unknown="<unk>")
    assert found(tokenizer, "A", prompt="A B") == found(tokenizer, " A", prompt="A B") == "A"
    detail = refused(tokenizer, "D", prompt="A B")
    assert (
        "'D' is not in the model's vocabulary: it becomes '<unk>', as any other unknown text does" in detail
    )


def test_answers_that_cannot_be_tokenized() -> None:
    detail = refused(words_only(["A", "B"]), "D", prompt="A B")
    assert detail.startswith("'D' cannot be tokenized: ")
    assert detail.endswith("; write another word or send a token id")
    assert refused(GPT, "\ud800").startswith(
        "'\\ud800' cannot be tokenized: it holds half of a surrogate pair"
    )


def test_letters_that_are_left_out_of_answers() -> None:
    for answer in ("D", "AD"):
        assert f"has no token for 'D' and leaves it out of {answer!r}" in refused(
            letters_only("ABC"), answer, "A"
        )


def test_long_answers_are_not_tokenized() -> None:
    class Counting:
        """Counts the calls of a tokenizer."""

        longest_token_bytes, unknown_id = GPT.longest_token_bytes, None
        encode, token_strings, left_out = GPT.encode, GPT.token_strings, GPT.left_out

        def encode_plain(self, text: str) -> list[int]:
            assert len(text) < 1000
            return GPT.encode_plain(text)

    with pytest.raises(
        InvalidRequestError, match=r"answers\[0\]: the text has 5000 bytes; an answer is exactly"
    ):
        resolve_task(PromptTask((PROMPT,), answers=("x" * 5000,)), Counting(), LIMITS)


def test_an_id_that_the_model_does_not_have() -> None:
    few = Limits(vocabulary=10_000, output_vocabulary=5, context=256)
    with pytest.raises(
        InvalidRequestError, match=r"is outside of \[0, 5\): the tokenizer has the token 'ĠTom', but"
    ):
        resolve_task(PromptTask((PROMPT,), answers=(" Tom",)), GPT, few)


def test_the_built_in_task_with_a_space_before_every_text() -> None:
    tokenizer = llama_like(NAMES)
    resolved = resolve_task(BuiltinTask("ioi", 20, 0), tokenizer, LIMITS)
    assert resolved.warnings == ()
    assert resolved.task.answers is not None
    assert resolved.task.wrong_answers is not None
    for answer, wrong, ids, text in zip(
        tokenizer.token_strings(resolved.task.answers),
        tokenizer.token_strings(resolved.task.wrong_answers),
        resolved.task.clean,
        resolved.prompts.clean,
        strict=True,
    ):
        tokens = tokenizer.token_strings(ids)
        assert (tokens.count(answer), tokens.count(wrong)) == (1, 2)
        assert answer.startswith("▁")
        assert text.count(answer[1:]) == 1


def test_the_built_in_task_where_names_have_no_tokens() -> None:
    for tokenizer in (
        llama_like(NAMES[:4]),
        words_only(["A"]),
        words_only(["A"], "<unk>"),
        letters_only("A"),
    ):
        with pytest.raises(InvalidRequestError, match="task: ioi needs 5 names"):
            resolve(BuiltinTask("ioi", 2, 0), tokenizer, LIMITS)


def test_the_built_in_task_where_names_have_tokens_and_nothing_else_has() -> None:
    with pytest.raises(
        InvalidRequestError, match=r"task: ioi does not fit the model's tokenizer: .*cannot be"
    ):
        resolve(BuiltinTask("ioi", 2, 0), words_only(NAMES), LIMITS)
