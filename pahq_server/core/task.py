"""Tasks: prompts and answers, as a client sends them and as token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol, runtime_checkable

TokenIds = tuple[int, ...]
Prompt = str | TokenIds


@dataclass(frozen=True)
class PromptTask:
    """Prompts chosen by a client, as texts or token ids; see `TokenTask` for the fields."""

    clean: tuple[Prompt, ...]
    corrupted: tuple[Prompt, ...] = ()
    answers: tuple[Prompt, ...] = ()
    wrong_answers: tuple[Prompt, ...] = ()
    positions: tuple[int, ...] | None = None


@dataclass(frozen=True)
class BuiltinTask:
    """A task that the server generates for the tokenizer of the served model."""

    name: str
    num_prompts: int
    seed: int


TaskSpec = PromptTask | BuiltinTask


@dataclass(frozen=True)
class TokenTask:
    """A task that has been tokenized and found valid for one model.

    Args:
        clean: token ids of the P clean prompts; lengths may differ.
        corrupted: token ids of the corrupted prompts, of the clean ones' lengths; None if not given.
        answers, wrong_answers: one token id per prompt; None if not given.
        positions: where the metric is read, in every prompt; None for each prompt's last token.
    """

    clean: tuple[TokenIds, ...]
    corrupted: tuple[TokenIds, ...] | None = None
    answers: TokenIds | None = None
    wrong_answers: TokenIds | None = None
    positions: TokenIds | None = None

    @property
    def hash(self) -> str:
        """SHA-256 of the content, hexadecimal."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def num_tokens(self) -> int:
        """Tokens of all prompts, clean and corrupted."""
        return sum(len(ids) for ids in (*self.clean, *(self.corrupted or ())))

    def part(self, prompts: slice) -> TokenTask:
        """Returns a task with some of the prompts."""
        return replace(
            self,
            clean=self.clean[prompts],
            corrupted=self.corrupted and self.corrupted[prompts],
            answers=self.answers and self.answers[prompts],
            wrong_answers=self.wrong_answers and self.wrong_answers[prompts],
        )

    def metric_positions(self) -> list[tuple[int, int]]:
        """Returns (prompt, position) of every position where the metric is read, prompt by prompt."""
        return [
            (prompt, position)
            for prompt, ids in enumerate(self.clean)
            for position in (self.positions or (len(ids) - 1,))
        ]


class UntokenizableError(Exception):
    """A text has no token ids that a model could take. The message says why, without the text."""


class Tokenizer(Protocol):
    """What tasks need of a tokenizer. Both methods raise UntokenizableError."""

    def encode(self, text: str) -> list[int]:
        """Token ids with the special tokens that the tokenizer adds by itself."""
        ...

    def encode_plain(self, text: str) -> list[int]:
        """Token ids without special tokens."""
        ...


@runtime_checkable
class VocabularyTokenizer(Tokenizer, Protocol):
    """A tokenizer that also knows its vocabulary, so that errors and warnings can quote tokens.

    Attributes:
        unknown_id: id of the token that stands for text without a token; None if there is no such token.
        longest_token_bytes: length of the longest token in UTF-8.
    """

    unknown_id: int | None
    longest_token_bytes: int

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """The tokens as the vocabulary writes them, such as "ĠTom" or "▁Tom"."""
        ...

    def left_out(self, text: str) -> str:
        """The characters of a text, each once, that the tokenizer drops because no token has them."""
        ...


@runtime_checkable
class DecodingTokenizer(Protocol):
    """A tokenizer that can say what tokens are as text."""

    def texts_after(self, before: Sequence[int], ids: Sequence[int]) -> list[str]:
        """What each of some tokens adds to the text of the tokens before it, such as " Tom"."""
        ...


@dataclass(frozen=True)
class TokenizedText:
    """How a model tokenizes a text, as a prompt and as an answer.

    Args:
        text: what was tokenized.
        ids: its token ids as a prompt.
        tokens: the same tokens as the vocabulary writes them.
        answer: its token id as an answer; None if it is not a single token.
        answer_token: the same token as the vocabulary writes it; empty if there is none.
        note: why the text cannot be an answer, or what to be careful about; empty if there is nothing to say.
    """

    text: str
    ids: TokenIds
    tokens: tuple[str, ...]
    answer: int | None
    answer_token: str
    note: str
