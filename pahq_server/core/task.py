"""Tasks: what the model is asked to do, as sent by a client and as token ids."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Protocol

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

    def metric_positions(self) -> list[tuple[int, int]]:
        """(prompt, position) of every place where the metric is read, prompt by prompt."""
        return [
            (prompt, position)
            for prompt, ids in enumerate(self.clean)
            for position in (self.positions or (len(ids) - 1,))
        ]


class Tokenizer(Protocol):
    """What tasks need of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Token ids with the special tokens that the tokenizer adds by itself."""
        ...

    def encode_plain(self, text: str) -> list[int]:
        """Token ids without special tokens."""
        ...
