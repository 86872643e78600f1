"""Which token a text is as an answer.

An answer is one token. Which one depends on the tokenizer and on the prompt. For GPT-2, "Tom" and " Tom" are
different tokens. Tokenizers like that of Llama 2 put a space before every text: there, "Tom" alone is already
"▁Tom", and " Tom" is two tokens alone but one after a prompt. The rule:

1. A text that is one token by itself is that token.
2. Otherwise it is the token that follows the prompt when both are tokenized together, if that is exactly one.

If the two disagree, or if the same word with or without a space would fit the prompt better, the client gets
a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import Prompt, TokenIds, UntokenizableError
from pahq_server.tasks.texts import TaskTexts, quoted


@dataclass(frozen=True)
class _AfterPrompt:
    """How a text is tokenized together with the prompt before it.

    Args:
        tail: the tokens after those that the prompt has by itself.
        merged: whether the prompt's own tokens have changed, because a token crosses the border between
            prompt and text. The tail then begins at the first token that differs.
    """

    tail: TokenIds
    merged: bool

    @property
    def single(self) -> int | None:
        """The token that follows the prompt; None unless it is exactly one."""
        return self.tail[0] if len(self.tail) == 1 and not self.merged else None


class AnswerReader:
    """Finds the tokens of answers.

    Args:
        texts: tokenizes texts and collects warnings.
        prompt: the prompt that is answered. Without a prompt, or if it is given as token ids, only the answer
            by itself is considered.
        at_end: whether the metric is read at the last position, so that the answer follows the prompt.
    """

    def __init__(self, texts: TaskTexts, prompt: Prompt | None, at_end: bool = True) -> None:
        self._texts, self._at_end = texts, at_end
        self._prompt = prompt if isinstance(prompt, str) and prompt else None

    def read(self, field: str, answer: str) -> int:
        """Finds the token of an answer.

        Args:
            field: of the request, for errors and warnings.
            answer: the text.

        Raises InvalidRequestError with the tokens that the text consists of, if it is not one token.
        """
        self._texts.check_tokenizer(field)
        self._check_size(field, answer)
        try:
            alone = tuple(self._texts.encode_plain(answer))
        except UntokenizableError as error:
            detail = f"{quoted(answer)} cannot be tokenized: {error}{self._advice(answer)}"
            raise InvalidRequestError(field, detail) from None
        lost = self._texts.vocabulary.left_out(answer) if self._texts.vocabulary else ""
        if lost:
            detail = (
                f"the model's tokenizer has no token for {quoted(lost)} and leaves it out of {quoted(answer)}"
            )
            raise InvalidRequestError(field, f"{detail}; write another word or send a token id")
        after = self._after_prompt(answer)
        token = alone[0] if len(alone) == 1 else after.single if after else None
        if token is None:
            raise InvalidRequestError(field, self._not_single(answer, alone, after))
        if self._stands_for_any(token, answer):
            detail = (
                f"{quoted(answer)} is not in the model's vocabulary: it becomes {self._texts.shown([token])}"
            )
            detail = f"{detail}, as any other unknown text does{self._advice(answer)}"
            raise InvalidRequestError(field, detail)
        if after is not None and self._at_end:
            self._warn(field, answer, token, after)
        return token

    def _check_size(self, field: str, answer: str) -> None:
        size, most = len(answer.encode(errors="surrogatepass")), self._texts.most_answer_bytes
        if size > most:
            detail = f"the text has {size} bytes; an answer is exactly one token, of which none has {most}"
            raise InvalidRequestError(field, detail)

    def _after_prompt(self, answer: str) -> _AfterPrompt | None:
        """Tokenizes prompt and answer together; None without a text prompt, or if that is not possible."""
        if self._prompt is None:
            return None
        try:
            before = self._texts.encode_plain(self._prompt)
            both = self._texts.encode_plain(self._prompt + answer)
        except UntokenizableError:
            return None
        merged = both[: len(before)] != before
        start = first_difference(before, both) if merged else len(before)
        return _AfterPrompt(tuple(both[start:]), merged)

    def _stands_for_any(self, token: int, answer: str) -> bool:
        """Whether a token is the unknown token, and the answer is not that token's own name."""
        vocabulary = self._texts.vocabulary
        if vocabulary is None or token != vocabulary.unknown_id:
            return False
        return vocabulary.token_strings([token]) != [answer.strip()]

    # Warnings and messages

    def _warn(self, field: str, answer: str, token: int, after: _AfterPrompt) -> None:
        """Warns if the token is not the one that follows the prompt, or probably not what was meant."""
        if after.single == token and not self._continues_a_word(answer):
            return  # the usual case, for which nothing else is tokenized
        other = _with_other_space(answer)
        then = self._follows(other)
        is_token = f"{field}: {quoted(answer)} is {self._named(token)}"
        if after.single is not None and after.single != token:
            message = (
                f"{is_token} by itself, which is used; right after the prompt, with no space between them,"
            )
            message = f"{message} the same text is {self._named(after.single)}. Send the token id to choose."
            self._texts.warn("differs", message)
        elif after.single is None and then != token:
            message = f"{is_token}, but it does not follow the prompt: {self._ending(after)}."
            if then is not None:
                message = f"{message} {quoted(other)} does, as {self._named(then)}."
            self._texts.warn("does not follow", message)
        elif after.single == token and then not in (None, token):
            message = f"{is_token} and goes on with the last word of the prompt, as in"
            message = f"{message} {quoted(self._last_word() + answer)}; {quoted(other)}, with a space, is"
            self._texts.warn("continues a word", f"{message} {self._named(then)}.")

    def _not_single(self, answer: str, alone: Sequence[int], after: _AfterPrompt | None) -> str:
        quotes = self._texts.vocabulary is not None
        detail = f"{quoted(answer)} is {len(alone)} tokens"
        if quotes and alone:
            detail = f"{detail}: {self._texts.shown(alone)}"
        elif quotes and answer:
            detail = f"{detail}: the tokenizer leaves all of it out"
        if quotes and after is not None and (after.merged or after.tail != tuple(alone)):
            detail = f"{detail} ({self._ending(after)})"
        return f"{detail}; an answer is exactly one token{self._advice(answer) if quotes else ''}"

    def _ending(self, after: _AfterPrompt) -> str:
        """Says how prompt and answer end when they are tokenized together."""
        shown = self._texts.shown(after.tail) if after.tail else "nothing"
        if after.merged:
            ending = f"tokenized together, they do not begin with the tokens of the prompt but end in {shown}"
            return f"{ending}; leave out spaces at the end of the prompt" if self._ends_in_space() else ending
        return f"after the prompt it is {len(after.tail)} tokens: {shown}"

    def _advice(self, answer: str) -> str:
        """Suggests a text that would be accepted."""
        bare = answer.strip()
        for text in (f" {bare}", bare) if answer[:1].isspace() else (bare, f" {bare}"):
            if bare and text != answer and self._works(text):
                return f"; try {quoted(text)}"
        return "; write another word or send a token id"

    def _works(self, text: str) -> bool:
        """Tells whether `read` would accept a text."""
        try:
            alone = self._texts.encode_plain(text)
        except UntokenizableError:
            return False
        token = alone[0] if len(alone) == 1 else self._follows(text)
        lost = self._texts.vocabulary.left_out(text) if self._texts.vocabulary else ""
        return token is not None and not lost and not self._stands_for_any(token, text)

    def _follows(self, text: str) -> int | None:
        """Returns the token that a text is after the prompt; None unless it is exactly one, and known."""
        after = self._after_prompt(text)
        if after is None or after.single is None or self._stands_for_any(after.single, text):
            return None
        return after.single

    def _named(self, token: int | None) -> str:
        """Names a token in a sentence."""
        assert token is not None
        if self._texts.vocabulary is None:
            return f"token {token}"
        return f"the token {self._texts.shown([token])} ({token})"

    def _continues_a_word(self, answer: str) -> bool:
        assert self._prompt is not None
        border = self._prompt[-1] + answer[:1]
        # Digits after digits are usually meant to continue the number.
        return len(border) == 2 and border.isalnum() and not border.isdigit()

    def _last_word(self) -> str:
        assert self._prompt is not None
        return self._prompt.split()[-1]

    def _ends_in_space(self) -> bool:
        return self._prompt is not None and self._prompt[-1].isspace()


def _with_other_space(text: str) -> str:
    """Adds a leading space, or removes it if there is one."""
    return text.lstrip() if text[:1].isspace() else f" {text}"


def first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """Returns the first position at which two lists differ; the shorter length if one begins the other."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
