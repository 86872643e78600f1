"""The registry of built-in tasks: a new one is a module with ``generate``, and an entry here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from pahq_server.core.task import PromptTask, Tokenizer
from pahq_server.tasks import docstring, greater_than, induction, ioi, pronoun, subject_verb


class Generator(Protocol):
    """Draws the prompts of a task; see `generation.draw_prompts`."""

    def __call__(self, tokenizer: Tokenizer, num_prompts: int, seed: int) -> PromptTask: ...


BUILTIN_TASKS: Mapping[str, Generator] = MappingProxyType(
    {
        "ioi": ioi.generate,
        "greater_than": greater_than.generate,
        "induction": induction.generate,
        "pronoun": pronoun.generate,
        "subject_verb": subject_verb.generate,
        "docstring": docstring.generate,
    }
)
