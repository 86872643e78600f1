"""The texts of one task: turned into token ids within the limits of the model, and quoted in messages.

Nothing is tokenized before its size is checked: a tokenizer takes hundreds of bytes of memory for each byte
of a text. Whatever a tokenizer raises becomes an InvalidRequestError that names the field and the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import Prompt, TokenIds, Tokenizer, UntokenizableError, VocabularyTokenizer

# A text may have so many bytes whatever the model: small contexts and vocabularies would leave very little.
MIN_TEXT_BYTES = 64 * 1024
# Beyond the most that the context could hold in the longest tokens, for what tokenizers leave out or shorten,
# such as spaces between words.
SHRINKING = 2
# Of a tokenizer that does not tell: longer than any token that is a word.
USUAL_LONGEST_TOKEN = 128
# Texts beyond so many characters per token of the context are tokenized in growing pieces from the front.
_USUAL_CHARACTERS, _MIN_PIECE = 8, 4096
# Characters of a text, and tokens of a list, that messages quote at most.
_QUOTED, _SHOWN_TOKENS = 80, 12
# Warnings of one kind that are told one by one.
_MOST_OF_A_KIND = 3
GIB = 2**30


@dataclass(frozen=True)
class Limits:
    """What a model accepts: token ids below ``vocabulary``, at most ``context`` tokens per prompt.

    Answers are outputs: their ids are below ``output_vocabulary``. A job may take ``memory`` bytes, of which
    each token of a clean prompt needs ``token_bytes``; 0 where nothing is known of that.
    """

    vocabulary: int
    output_vocabulary: int
    context: int
    memory: int = 0
    token_bytes: int = 0

    @property
    def tokens(self) -> int | None:
        """How many tokens all clean prompts together may have; None for any number."""
        return self.memory // self.token_bytes if self.token_bytes else None


class OutOfTimeError(Exception):
    """Nobody waits for the token ids any more."""


def never() -> bool:
    """For those who have all the time in the world."""
    return False


class TaskTexts:
    """Tokenizes the texts of one task. Itself a `Tokenizer`, for generators.

    Args:
        tokenizer: of the model; None if it has none.
        limits: of the model.
        out_of_time: whether to give up, asked before each text.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, limits: Limits, out_of_time: Callable[[], bool] = never
    ) -> None:
        self._tokenizer, self.limits, self._out_of_time = tokenizer, limits, out_of_time
        self.vocabulary = tokenizer if isinstance(tokenizer, VocabularyTokenizer) else None
        self._longest = self.vocabulary.longest_token_bytes if self.vocabulary else USUAL_LONGEST_TOKEN
        self._known: dict[tuple[str, bool], list[int]] = {}
        self._warnings: dict[str, list[str]] = {}

    def separate_warnings(self) -> TaskTexts:
        """The same texts and limits, with warnings of its own."""
        other = TaskTexts(self._tokenizer, self.limits, self._out_of_time)
        other._known = self._known
        return other

    # As a tokenizer

    def encode(self, text: str) -> list[int]:
        return self._encode(text, special=True)

    def encode_plain(self, text: str) -> list[int]:
        return self._encode(text, special=False)

    def _encode(self, text: str, special: bool) -> list[int]:
        """Raises UntokenizableError, OutOfTimeError; ValueError without a tokenizer."""
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

    # With sizes checked and errors that name the field

    def check_tokenizer(self, field: str) -> None:
        """Raises InvalidRequestError if there is no tokenizer."""
        if self._tokenizer is None:
            raise InvalidRequestError(field, "is text, but the model has no tokenizer: send token ids")

    def ids(self, field: str, text: str, special: bool = True) -> TokenIds:
        """Token ids of a text as large as a prompt. Raises InvalidRequestError.

        Args:
            field: that holds it.
            text: to tokenize.
            special: whether to add the special tokens that the tokenizer adds by itself.
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
        """Checks the bytes of all texts of a field, before any of them is tokenized."""
        if self.limits.tokens is None:
            return
        size = sum(_bytes(prompt) for prompt in prompts if isinstance(prompt, str))
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
        """The bytes that a text may have."""
        return max(MIN_TEXT_BYTES, SHRINKING * self.limits.context * self._longest)

    @property
    def most_answer_bytes(self) -> int:
        """The bytes that the text of an answer may have: it is one token."""
        return max(1024, 4 * self._longest)

    def _check_bytes(self, field: str, text: str) -> None:
        size = _bytes(text)
        if size > self.most_bytes:
            detail = (
                f"the text has {size} bytes; at most {self.most_bytes} are taken, as the model's context is"
            )
            raise InvalidRequestError(field, f"{detail} {self.limits.context} tokens: shorten it")

    def _check_beginnings(self, field: str, text: str) -> None:
        """Refuses a text by its beginning where that has too many tokens: memory goes by their number."""
        context = self.limits.context
        length = max(_MIN_PIECE, _USUAL_CHARACTERS * context)
        while length < len(text):
            count = len(self._encode_once(text[:length]))
            # Where a text is cut, words may fall into more tokens than they have in one piece.
            if count > 2 * context:
                detail = (
                    f"its first {length} characters are {count} tokens already, but the model's context is"
                )
                raise InvalidRequestError(field, f"{detail} {context}")
            length *= 4

    def _encode_once(self, text: str) -> list[int]:
        ids = self.encode_plain(text)
        self._known.pop((text, False), None)
        return ids

    # Messages

    def shown(self, ids: Sequence[int], mark: int | None = None) -> str:
        """Tokens such as ``'▁', '▁Tom'``, or ids where the vocabulary is not known; long lists are shortened.

        Args:
            ids: of the tokens.
            mark: position to put between >> and <<; what is left out is far from it.
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
        """Each token in quotes; its id where the vocabulary is not known."""
        if self.vocabulary is None:
            return [str(token) for token in ids]
        return [repr(token) for token in self.vocabulary.token_strings(ids)]

    def warn(self, kind: str, message: str) -> None:
        """Keeps a warning for the client; of each kind only the first few are told in full."""
        self._warnings.setdefault(kind, []).append(message)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is to be told to the client."""
        told: list[str] = []
        for messages in self._warnings.values():
            told += messages[:_MOST_OF_A_KIND]
            if len(messages) > _MOST_OF_A_KIND:
                told[-1] += f" (The same holds for {len(messages) - _MOST_OF_A_KIND} more.)"
        return tuple(told)


def too_large(needed: int, allowed: int) -> InvalidRequestError:
    """The error of a task that needs more memory than a job may take."""
    detail = f"needs about {needed / GIB:.1f} GiB; a job may take {allowed / GIB:.1f}"
    return InvalidRequestError("task", f"{detail}: use fewer or shorter prompts")


def quoted(text: str) -> str:
    """The text in quotes, or its start and its end."""
    if len(text) <= _QUOTED:
        return repr(text)
    return f"{text[: _QUOTED // 2]!r}…{text[-_QUOTED // 2 :]!r}"


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
