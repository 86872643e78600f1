"""Which token a text is as an answer.

An answer is one token. Which one depends on the tokenizer and on the prompt: "Tom" and " Tom" are different
tokens of GPT-2. Tokenizers like that of Llama 2 put a space before every text: "Tom" alone is already "▁Tom",
and " Tom" is two tokens alone, but one after a prompt. The rule:

1. A text that is one token by itself is that token.
2. Otherwise it is the token that follows the prompt when both are tokenized together, if that is exactly one.

Where the two disagree, or where the same word with or without a space would follow the prompt better, the
client is warned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import Prompt, TokenIds, UntokenizableError
from pahq_server.tasks.texts import TaskTexts, quoted


@dataclass(frozen=True)
class _Joined:
    """A prompt and a text, tokenized together.

    Args:
        tail: tokens after those that the prompt has by itself.
        merged: whether the prompt's own tokens are not there any more, since one crosses the border. Then the
            tail begins where the two differ.
    """

    tail: TokenIds
    merged: bool

    @property
    def single(self) -> int | None:
        """The one token that follows the prompt, if it is one."""
        return self.tail[0] if len(self.tail) == 1 and not self.merged else None


class AnswerReader:
    """Finds the tokens of answers.

    Args:
        texts: of the task.
        prompt: that is answered; None, or token ids, where nothing is known about what comes before.
        at_end: whether the answer follows the end of the prompt: metrics may be read elsewhere.
    """

    def __init__(self, texts: TaskTexts, prompt: Prompt | None, at_end: bool = True) -> None:
        self._texts, self._at_end = texts, at_end
        self._prompt = prompt if isinstance(prompt, str) and prompt else None

    def read(self, field: str, answer: str) -> int:
        """The token of an answer. Raises InvalidRequestError that says what it was tokenized to."""
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
        joined = self._join(answer)
        token = alone[0] if len(alone) == 1 else joined.single if joined else None
        if token is None:
            raise InvalidRequestError(field, self._not_single(answer, alone, joined))
        if self._stands_for_any(token, answer):
            detail = (
                f"{quoted(answer)} is not in the model's vocabulary: it becomes {self._texts.shown([token])}"
            )
            detail = f"{detail}, as any other unknown text does{self._advice(answer)}"
            raise InvalidRequestError(field, detail)
        if joined is not None and self._at_end:
            self._warn(field, answer, token, joined)
        return token

    def _check_size(self, field: str, answer: str) -> None:
        size, most = len(answer.encode(errors="surrogatepass")), self._texts.most_answer_bytes
        if size > most:
            detail = f"the text has {size} bytes; an answer is exactly one token, of which none has {most}"
            raise InvalidRequestError(field, detail)

    def _join(self, answer: str) -> _Joined | None:
        """None without a prompt that is text, or where the two cannot be tokenized together."""
        if self._prompt is None:
            return None
        try:
            before = self._texts.encode_plain(self._prompt)
            both = self._texts.encode_plain(self._prompt + answer)
        except UntokenizableError:
            return None
        merged = both[: len(before)] != before
        start = first_difference(before, both) if merged else len(before)
        return _Joined(tuple(both[start:]), merged)

    def _stands_for_any(self, token: int, answer: str) -> bool:
        """Whether it is the unknown token, which was not asked for by its own name."""
        vocabulary = self._texts.vocabulary
        if vocabulary is None or token != vocabulary.unknown_id:
            return False
        return vocabulary.token_strings([token]) != [answer.strip()]

    # What is told about an answer

    def _warn(self, field: str, answer: str, token: int, joined: _Joined) -> None:
        """Warns where the token is not what follows the prompt, or probably not what was meant."""
        other = _with_other_space(answer)
        then = self._follows(other)
        is_token = f"{field}: {quoted(answer)} is {self._named(token)}"
        if joined.single is not None and joined.single != token:
            message = (
                f"{is_token} by itself, which is used; right after the prompt, without a space between them,"
            )
            message = f"{message} the same text is {self._named(joined.single)}. Send the token id to choose."
            self._texts.warn("differs", message)
        elif joined.single is None and then != token:
            message = f"{is_token}, but it does not follow the prompt: {self._ending(joined)}."
            if then is not None:
                message = f"{message} {quoted(other)} does, as {self._named(then)}."
            self._texts.warn("does not follow", message)
        elif then not in (None, token) and self._continues_a_word(answer):
            message = f"{is_token} and goes on with the last word of the prompt, as in"
            message = f"{message} {quoted(self._last_word() + answer)}; {quoted(other)}, with a space, is"
            self._texts.warn("continues a word", f"{message} {self._named(then)}.")

    def _not_single(self, answer: str, alone: Sequence[int], joined: _Joined | None) -> str:
        quotes = self._texts.vocabulary is not None
        detail = f"{quoted(answer)} is {len(alone)} tokens"
        if quotes and alone:
            detail = f"{detail}: {self._texts.shown(alone)}"
        elif quotes and answer:
            detail = f"{detail}: the tokenizer leaves all of it out"
        if quotes and joined is not None and (joined.merged or joined.tail != tuple(alone)):
            detail = f"{detail} ({self._ending(joined)})"
        return f"{detail}; an answer is exactly one token{self._advice(answer) if quotes else ''}"

    def _ending(self, joined: _Joined) -> str:
        shown = self._texts.shown(joined.tail) if joined.tail else "nothing"
        if joined.merged:
            ending = f"tokenized together, they do not begin with the tokens of the prompt but end in {shown}"
            return f"{ending}; leave out spaces at the end of the prompt" if self._ends_in_space() else ending
        return f"after the prompt it is {len(joined.tail)} tokens: {shown}"

    def _advice(self, answer: str) -> str:
        """What to write instead, tried out."""
        bare = answer.strip()
        for text in (f" {bare}", bare) if answer[:1].isspace() else (bare, f" {bare}"):
            if bare and text != answer and self._works(text):
                return f"; try {quoted(text)}"
        return "; write another word or send a token id"

    def _works(self, text: str) -> bool:
        try:
            alone = self._texts.encode_plain(text)
        except UntokenizableError:
            return False
        token = alone[0] if len(alone) == 1 else self._follows(text)
        lost = self._texts.vocabulary.left_out(text) if self._texts.vocabulary else ""
        return token is not None and not lost and not self._stands_for_any(token, text)

    def _follows(self, text: str) -> int | None:
        """The one token that a text is after the prompt, unless it stands for anything."""
        joined = self._join(text)
        if joined is None or joined.single is None or self._stands_for_any(joined.single, text):
            return None
        return joined.single

    def _named(self, token: int | None) -> str:
        assert token is not None
        if self._texts.vocabulary is None:
            return f"token {token}"
        return f"the token {self._texts.shown([token])} ({token})"

    def _continues_a_word(self, answer: str) -> bool:
        assert self._prompt is not None
        border = self._prompt[-1] + answer[:1]
        # The rest of a number is often meant to be just that.
        return len(border) == 2 and border.isalnum() and not border.isdigit()

    def _last_word(self) -> str:
        assert self._prompt is not None
        return self._prompt.split()[-1]

    def _ends_in_space(self) -> bool:
        return self._prompt is not None and self._prompt[-1].isspace()


def _with_other_space(text: str) -> str:
    """With a space in front if it has none, else without."""
    return text.lstrip() if text[:1].isspace() else f" {text}"


def first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """The first position at which two lists differ; the length of the shorter one if it begins the other."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
