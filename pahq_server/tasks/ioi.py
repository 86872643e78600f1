"""The built-in task "ioi": indirect object identification (Wang et al. 2022, arXiv:2211.00593).

A sentence introduces two people and names one of them, the subject, again; what comes next is the
other one, the indirect object: " Lily and Tom went to the park. Lily gave the ball to" → " Tom".
The corrupted sentence differs in its three names only, which are unrelated to each other and to the
clean ones: same form, same length, but nothing in it tells who gets the ball.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import Tokenizer, UntokenizableError
from pahq_server.tasks.ioi_sentences import NAMES, Frame, pick, pick_distinct

_NAMES_PER_EXAMPLE = 5
# The last word of every template.
_BEFORE_ANSWERS = "to"
# How often a prompt that was drawn before is drawn anew. Even five names give 51,840 prompts.
_MAX_REDRAWS = 20


@dataclass(frozen=True)
class IoiPrompts:
    """Prompts by index. Prompts may differ in length, the two of a pair never do.

    Args:
        clean: sentences in which one of two names comes twice.
        corrupted: the same sentences with three names that come once.
        answers: the indirect objects, with a leading space.
        wrong_answers: the repeated names, with a leading space.
    """

    clean: list[str]
    corrupted: list[str]
    answers: list[str]
    wrong_answers: list[str]


@dataclass(frozen=True)
class _Example:
    clean: str
    corrupted: str
    answer: str
    wrong_answer: str


def generate(tokenizer: Tokenizer, num_prompts: int, seed: int, names: Sequence[str] = NAMES) -> IoiPrompts:
    """Prompts for this tokenizer: the same ones for the same arguments, with any version of Python.

    Args:
        tokenizer: of the served model; only names that are one token for it are used.
        num_prompts: how many pairs, at least 1; all distinct unless that is most of all there are.
        seed: of the draw.
        names: the names to draw from.

    Raises:
        InvalidRequestError: num_prompts is below 1, or the tokenizer does not fit the task.
    """
    if num_prompts < 1:
        raise InvalidRequestError("task", f"ioi needs at least 1 prompt, not {num_prompts}")
    usable = _usable_names(tokenizer, names)
    if len(usable) < _NAMES_PER_EXAMPLE:
        detail = f"ioi needs {_NAMES_PER_EXAMPLE} names that are single tokens with a leading space; "
        raise InvalidRequestError("task", f"{detail}the model's tokenizer has {len(usable)}: {usable}")
    examples = _draw_distinct(random.Random(seed), usable, num_prompts)
    for example in examples:
        _check_equal_length(tokenizer, example)
    return IoiPrompts(
        clean=[e.clean for e in examples],
        corrupted=[e.corrupted for e in examples],
        answers=[f" {e.answer}" for e in examples],
        wrong_answers=[f" {e.wrong_answer}" for e in examples],
    )


def _usable_names(tokenizer: Tokenizer, names: Sequence[str]) -> list[str]:
    """The names with a token of their own: alone, or in a sentence, if the tokenizer always adds a space."""
    alone = single_token_names(tokenizer, names)
    if len(alone) >= _NAMES_PER_EXAMPLE:
        return alone
    return max(alone, single_token_names(tokenizer, names, after=_BEFORE_ANSWERS), key=len)


def single_token_names(tokenizer: Tokenizer, names: Sequence[str], after: str = "") -> list[str]:
    """The names that have a token of their own, which stands for the name and the space before it.

    Args:
        tokenizer: of the model.
        names: to choose from.
        after: a text that they follow; the token is what comes after its own tokens.
    """
    ids = {name: _following(tokenizer, after, f" {name}") for name in names}
    # Word-level tokenizers map every unknown word to one token: no name may share the nonsense word's.
    unknown = _following(tokenizer, after, " Qxzvkj")
    # Nor may two names share one, as they do where a tokenizer leaves out what it does not know.
    shared = {tokens for tokens, count in Counter(ids.values()).items() if count > 1}
    return [
        name
        for name, tokens in ids.items()
        if len(tokens) == 1 and tokens != unknown and tokens not in shared
    ]


def _following(tokenizer: Tokenizer, before: str, text: str) -> tuple[int, ...]:
    """The tokens of a text after those of another one; none if it has none, or if the two merge."""
    try:
        start = tokenizer.encode_plain(before) if before else []
        both = tokenizer.encode_plain(before + text)
    except UntokenizableError:
        return ()
    return tuple(both[len(start) :]) if both[: len(start)] == start else ()


def _draw_distinct(rng: random.Random, names: Sequence[str], count: int) -> list[_Example]:
    examples: list[_Example] = []
    seen: set[str] = set()
    for _ in range(count):
        example = _draw(rng, names)
        redraws = 0
        while example.clean in seen and redraws < _MAX_REDRAWS:
            example, redraws = _draw(rng, names), redraws + 1
        seen.add(example.clean)
        examples.append(example)
    return examples


def _draw(rng: random.Random, names: Sequence[str]) -> _Example:
    frame = Frame.draw(rng)
    first, second, *unrelated = pick_distinct(rng, names, _NAMES_PER_EXAMPLE)
    # ABBA names the indirect object first, BABA the subject: position alone must not give it away.
    indirect_object, subject = pick(rng, [(first, second), (second, first)])
    clean = frame.fill(first, second, subject)
    return _Example(clean, frame.fill(*unrelated), indirect_object, subject)


def _check_equal_length(tokenizer: Tokenizer, example: _Example) -> None:
    try:
        clean, corrupted = len(tokenizer.encode(example.clean)), len(tokenizer.encode(example.corrupted))
    except UntokenizableError as error:
        detail = f"{example.clean!r} or {example.corrupted!r} cannot be tokenized: {error}"
        raise InvalidRequestError("task", f"ioi does not fit the model's tokenizer: {detail}") from None
    if clean != corrupted:
        detail = f"{example.clean!r} has {clean} tokens, {example.corrupted!r} has {corrupted}"
        raise InvalidRequestError("task", f"ioi does not fit the model's tokenizer: {detail}")
