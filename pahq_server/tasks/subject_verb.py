"""The built-in task "subject_verb": agreement of verbs in number (Finlayson et al. 2021, arXiv:2106.06087).

A verb agrees with its subject, not with the noun right before it: " The boys near the car" → " are". In the
corrupted sentence the subject has the other number, for which the wrong answer would be right; all else,
with the noun that distracts, is the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from pahq_server.core.task import PromptTask, Tokenizer
from pahq_server.tasks.generation import Example, draw_prompts, pick, pick_distinct, usable_pairs

Pair = tuple[str, str]


def _plurals(text: str) -> tuple[Pair, ...]:
    return tuple((noun, f"{noun}s") for noun in text.split())


# Singular and plural.
NOUNS = (
    *_plurals("boy girl teacher doctor farmer dog cat bird car tree book house king student friend player"),
    *_plurals(
        "writer guard driver parent lawyer artist actor author worker officer horse boat chair picture"
    ),
)
VERBS = (("is", "are"), ("was", "were"), ("has", "have"))
# Three prepositions and a relative clause put a noun of either number between subject and verb.
TEMPLATES = (
    " The {subject} near the {other}",
    " The {subject} behind the {other}",
    " The {subject} beside the {other}",
    " The {subject} that the {other} saw",
)
_NOUNS_NEEDED = 4
_BEFORE_ANSWERS = " The boys near the car"


def generate(tokenizer: Tokenizer, num_prompts: int, seed: int, nouns: Sequence[Pair] = NOUNS) -> PromptTask:
    """Draws prompts; the answer is the verb in the subject's number, the wrong answer in the other.

    Args:
        tokenizer: of the served model. Only nouns and verbs that are a single token in both numbers are used.
        num_prompts, seed: as in `generation.draw_prompts`.
        nouns: pairs of singular and plural to draw from.

    Raises:
        InvalidRequestError: if the task does not work with the tokenizer.
    """
    usable = usable_pairs(
        "subject_verb", "nouns in singular and plural", tokenizer, nouns, _NOUNS_NEEDED, " The"
    )
    verbs = usable_pairs("subject_verb", "verb in singular and plural", tokenizer, VERBS, 1, _BEFORE_ANSWERS)

    def draw(rng: random.Random) -> Example:
        template, verb = pick(rng, TEMPLATES), pick(rng, verbs)
        subject, distractor = pick_distinct(rng, usable, 2)
        number, other = pick(rng, [(0, 1), (1, 0)]), pick(rng, distractor)
        clean, corrupted = (template.format(subject=subject[n], other=other) for n in number)
        return Example(clean, corrupted, f" {verb[number[0]]}", f" {verb[number[1]]}")

    return draw_prompts("subject_verb", tokenizer, draw, num_prompts, seed)
