"""Tokenizes the texts of one task within the limits of the model, and quotes texts and tokens in messages.

The size of a text is checked before it is tokenized, because tokenizers take hundreds of bytes of memory for
each byte of a text. Errors of a tokenizer become an InvalidRequestError with the field and the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import Prompt, TokenIds, Tokenizer, UntokenizableError, VocabularyTokenizer

# How many bytes a text may have with any model. Limits by context and vocabulary alone would be too low for
# small models.
MIN_TEXT_BYTES = 64 * 1024
# How many times the bytes of a context full of the longest token a text may have. More than 1, because
# tokenizers may leave out or shorten parts of a text, such as spaces between words.
SHRINKING = 2
# Assumed length in bytes of the longest token, if a tokenizer does not tell it: longer than any word.
USUAL_LONGEST_TOKEN = 128
# A text with more characters than this per token of the context is first tokenized in pieces from its
# beginning, of at least _MIN_PIECE characters and growing, so that one with far too many tokens is refused
# early.
_USUAL_CHARACTERS, _MIN_PIECE = 8, 4096
# Most characters of a text, and most tokens of a list, that messages quote.
_QUOTED, _SHOWN_TOKENS = 80, 12
# Most warnings of one kind that are given in full.
_MOST_OF_A_KIND = 3
GIB = 2**30


@dataclass(frozen=True)
class Limits:
    """What a model accepts.

    Args:
        vocabulary: token ids of prompts are below this.
        output_vocabulary: token ids of answers are below this.
        context: most tokens of a prompt.
        memory: bytes that a job may take.
        token_bytes: bytes that a job takes for each token of a clean prompt; 0 if that is not known.
    """

    vocabulary: int
    output_vocabulary: int
    context: int
    memory: int = 0
    token_bytes: int = 0

    @property
    def tokens(self) -> int | None:
        """Most tokens of all clean prompts together; None for any number."""
        return self.memory // self.token_bytes if self.token_bytes else None


class OutOfTimeError(Exception):
    """Tokenizing was given up, because nobody waits for the result any more."""


def never() -> bool:
    """Returns False: an ``out_of_time`` for callers without a time limit."""
    return False


class TaskTexts:
    """Tokenizes the texts of one task, each once, and collects warnings for the client.

    It is a `core.task.Tokenizer` itself, for built-in tasks, which generate their texts.

    Args:
        tokenizer: of the model; None if it has none.
        limits: of the model.
        out_of_time: called before each text; True if nobody waits for the result any more.
        most_shown: most tokens of a text, where texts are only shown; None for texts of a task.

    Attributes:
        limits: as given.
        vocabulary: the tokenizer, if it can tell about its vocabulary; otherwise None.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        limits: Limits,
        out_of_time: Callable[[], bool] = never,
        most_shown: int | None = None,
    ) -> None:
        self._tokenizer, self.limits, self._out_of_time = tokenizer, limits, out_of_time
        self._room, self._why = _room(limits, most_shown)
        self.vocabulary = tokenizer if isinstance(tokenizer, VocabularyTokenizer) else None
        self._longest = self.vocabulary.longest_token_bytes if self.vocabulary else USUAL_LONGEST_TOKEN
        self._known: dict[tuple[str, bool], list[int]] = {}
        self._warnings: dict[str, list[str]] = {}

    def separate_warnings(self) -> TaskTexts:
        """Returns an object for the same texts and limits that collects its own warnings."""
        other = TaskTexts(self._tokenizer, self.limits, self._out_of_time)
        other._room, other._why, other._known = self._room, self._why, self._known
        return other

    # As a tokenizer

    def encode(self, text: str) -> list[int]:
        """Tokenizes a text with special tokens, without checking its size."""
        return self._encode(text, special=True)

    def encode_plain(self, text: str) -> list[int]:
        """Tokenizes a text without special tokens, without checking its size."""
        return self._encode(text, special=False)

    def _encode(self, text: str, special: bool) -> list[int]:
        """Tokenizes a text, unless it has been tokenized before.

        Raises UntokenizableError, OutOfTimeError, and ValueError if there is no tokenizer.
        """
        known = self._known.get((text, special))
        if known is not None:
            return known
        if self._out_of_time():
            raise OutOfTimeError
        if self._tokenizer is None:
            raise ValueError("there is no tokenizer")
        ids = self._tokenizer.encode(text) if special else self._tokenizer.encode_plain(text)
        self._known[text, special] = ids
        return ids

    # Checks, with errors that name the field

    def check_tokenizer(self, field: str) -> None:
        """Raises InvalidRequestError if there is no tokenizer."""
        if self._tokenizer is None:
            raise InvalidRequestError(field, "is text, but the model has no tokenizer: send token ids")

    def ids(self, field: str, text: str, special: bool = True) -> TokenIds:
        """Tokenizes a prompt, after checking its size.

        Args:
            field: of the request, for errors.
            text: to tokenize.
            special: whether to add the tokenizer's special tokens.

        Raises InvalidRequestError if the text is too large or cannot be tokenized.
        """
        self.check_tokenizer(field)
        self._check_bytes(field, text)
        try:
            self._check_beginnings(field, text)
            return tuple(self._encode(text, special))
        except UntokenizableError as error:
            detail = f"{quoted(text)} cannot be tokenized: {error}; change the text, or send token ids"
            raise InvalidRequestError(field, detail) from None

    def check_total(self, field: str, prompts: Iterable[Prompt]) -> None:
        """Raises InvalidRequestError if a field's texts are too large, before any of them is tokenized."""
        size = 0
        for i, prompt in enumerate(prompts):
            if isinstance(prompt, str):
                self._check_bytes(f"{field}[{i}]", prompt)
                size += _bytes(prompt)
        if self.limits.tokens is None:
            return
        most = max(MIN_TEXT_BYTES, SHRINKING * self.limits.tokens * self._longest)
        if size > most:
            detail = f"its texts have {size} bytes in all; at most {most} are taken, as a job may take"
            detail = f"{detail} {self.limits.memory / GIB:.1f} GiB: use fewer or shorter prompts"
            raise InvalidRequestError(field, detail)

    def check_memory(self, tokens: int) -> None:
        """Raises InvalidRequestError if clean prompts of so many tokens cannot fit into a job's memory."""
        if self.limits.tokens is not None and tokens > self.limits.tokens:
            raise too_large(tokens * self.limits.token_bytes, self.limits.memory)

    @property
    def most_bytes(self) -> int:
        """Most bytes of a text."""
        return max(MIN_TEXT_BYTES, SHRINKING * self._room * self._longest)

    @property
    def most_answer_bytes(self) -> int:
        """Most bytes of the text of an answer, which is one token."""
        return max(1024, 4 * self._longest)

    def _check_bytes(self, field: str, text: str) -> None:
        size = _bytes(text)
        if size > self.most_bytes:
            detail = f"the text has {size} bytes; at most {self.most_bytes} are taken, as {self._why}"
            raise InvalidRequestError(field, f"{detail}: shorten it")

    def _check_beginnings(self, field: str, text: str) -> None:
        """Refuses a long text if its beginning has too many tokens already, before all are in memory."""
        length = max(_MIN_PIECE, _USUAL_CHARACTERS * self._room)
        while length < len(text):
            count = self._count_beginning(text, length)
            # A word that is cut may have more tokens than as a whole.
            if count > max(_MIN_PIECE // 4, 2 * self._room):
                detail = f"its first {length} characters are {count} tokens already, but {self._why}"
                raise InvalidRequestError(field, detail)
            length *= 4

    def _count_beginning(self, text: str, length: int) -> int:
        """Counts the tokens of the first ``length`` characters of a text."""
        try:
            return len(self._encode_once(text[:length]))
        except UntokenizableError:
            # The cut may split a word that only has a token as a whole.
            end = length
            while end and text[end - 1].isalnum():
                end -= 1
            if end in (0, length):
                raise
            return len(self._encode_once(text[:end]))

    def _encode_once(self, text: str) -> list[int]:
        """Tokenizes a text without remembering the result."""
        ids = self.encode_plain(text)
        self._known.pop((text, False), None)
        return ids

    # Messages

    def shown(self, ids: Sequence[int], mark: int | None = None) -> str:
        """Quotes tokens, such as ``'▁', '▁Tom'``, or ids if the vocabulary is not known. Shortens long lists.

        Args:
            ids: of the tokens.
            mark: position of a token that is put between >> and <<, and is always shown.
        """
        around = 0 if mark is None else max(0, min(mark - _SHOWN_TOKENS // 2, len(ids) - _SHOWN_TOKENS))
        window = range(around, min(around + _SHOWN_TOKENS, len(ids)))
        strings = self.strings(ids[window.start : window.stop])
        parts = [f">>{part}<<" if i == mark else part for i, part in zip(window, strings, strict=True)]
        if window.start:
            parts.insert(0, "…")
        if window.stop < len(ids):
            parts.append("…")
        if mark == len(ids):
            parts.append(">>end<<")
        return ", ".join(parts)

    def strings(self, ids: Sequence[int]) -> list[str]:
        """Quotes each token; gives its id if the vocabulary is not known."""
        if self.vocabulary is None:
            return [str(token) for token in ids]
        return [repr(token) for token in self.vocabulary.token_strings(ids)]

    def warn(self, kind: str, message: str) -> None:
        """Adds a warning for the client. Of each kind only the first few are given in full."""
        self._warnings.setdefault(kind, []).append(message)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings for the client, in sentences."""
        told: list[str] = []
        for messages in self._warnings.values():
            told += messages[:_MOST_OF_A_KIND]
            if len(messages) > _MOST_OF_A_KIND:
                told[-1] += f" (The same holds for {len(messages) - _MOST_OF_A_KIND} more.)"
        return tuple(told)


def _room(limits: Limits, most_shown: int | None) -> tuple[int, str]:
    """Returns the most tokens that a text may have, and the reason in words."""
    bounds = [(limits.context, f"the model's context is {limits.context} tokens")]
    if most_shown is not None:
        bounds.append((most_shown, f"at most {most_shown} tokens are shown at a time"))
    elif limits.tokens is not None:
        bounds.append((limits.tokens, f"a job has memory for {limits.tokens} tokens"))
    return min(bounds)


def too_large(needed: int, allowed: int) -> InvalidRequestError:
    """Makes the error for a task that needs more memory than a job may take; both in bytes."""
    detail = f"needs about {needed / GIB:.1f} GiB; a job may take {allowed / GIB:.1f}"
    return InvalidRequestError("task", f"{detail}: use fewer or shorter prompts")


def quoted(text: str) -> str:
    """Quotes a text, or the beginning and end of a long one."""
    if len(text) <= _QUOTED:
        return repr(text)
    return f"{text[: _QUOTED // 2]!r}…{text[-_QUOTED // 2 :]!r}"


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
