"""The built-in task "greater_than": years that come later (Hanna et al. 2023, arXiv:2305.00586).

Something lasts from one year to another one of the same century, so that the second year is the larger one:
" The war lasted from the year 1732 to the year 17" → "45". The corrupted prompt begins in the year 01, as in
the paper: every other year comes later, and nothing tells which one is wrong. The answer is drawn from the
later years of the century, the wrong answer from the start year and those before it.

The metric needs one answer and one wrong answer per prompt; the paper sums probabilities over all of them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Sequence

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import Prompt, PromptTask, Tokenizer, UntokenizableError
from pahq_server.tasks.generation import ADVICE, Example, draw_prompts, following, pick, quoted_words, words

# Of the paper's nouns, those that last for years and are common.
NOUNS = words(
    """
    war battle conflict siege campaign reign rule trial search expedition voyage journey mission tour
    dispute debate strike program project plan work study marriage friendship
    """
)
CENTURIES = tuple(range(11, 18))
FIRST, LAST = 2, 99
# All years with which a prompt may begin: at least one year comes later.
STARTS = tuple(100 * century + year for century in CENTURIES for year in range(FIRST, LAST))
_CORRUPTED_START = 1
TEMPLATE = " The {noun} lasted from the year {start} to the year {century}"
_BEFORE_YEAR = " The war lasted from the year"


def generate(
    tokenizer: Tokenizer, num_prompts: int, seed: int, starts: Collection[int] = STARTS
) -> PromptTask:
    """Draws prompts; the answer is a later year of the century, the wrong one the start year or one before.

    Args:
        tokenizer: of the served model. Only years that are two tokens, the century and two digits, are used.
        num_prompts, seed: as in `generation.draw_prompts`.
        starts: years with which prompts may begin, of `STARTS`.

    Raises:
        InvalidRequestError: if the task does not work with the tokenizer.
    """
    endings = {century: _endings(tokenizer, century) for century in CENTURIES}
    usable = [year for year in starts if _is_usable(year, endings)]
    if not usable:
        raise InvalidRequestError("task", _refusal(tokenizer))
    return draw_prompts("greater_than", tokenizer, lambda rng: _draw(rng, usable, endings), num_prompts, seed)


def _endings(tokenizer: Tokenizer, century: int) -> dict[int, Prompt]:
    """Finds the two-digit endings of years that are one token after the token of the century.

    Returns:
        The endings with what to send as an answer: the digits, or the token id where they are another token
        by themselves. Empty if the century is not a single token.
    """
    start = following(tokenizer, _BEFORE_YEAR, f" {century}")
    if len(start) != 1:
        return {}
    found: dict[int, int] = {}
    for ending in range(LAST + 1):
        tokens = following(tokenizer, _BEFORE_YEAR, f" {century}{ending:02}")
        if len(tokens) == 2 and tokens[0] == start[0]:
            found[ending] = tokens[1]
    # Tokenizers with an unknown token may map several numbers to it.
    shared = {token for token, count in Counter(found.values()).items() if count > 1}
    return {
        ending: _as_answer(tokenizer, f"{ending:02}", token)
        for ending, token in found.items()
        if token not in shared
    }


def _as_answer(tokenizer: Tokenizer, digits: str, token: int) -> Prompt:
    """Returns the digits if they are this token by themselves, too; else the token."""
    try:
        return digits if tokenizer.encode_plain(digits) == [token] else (token,)
    except UntokenizableError:
        return (token,)


def _is_usable(year: int, endings: dict[int, dict[int, Prompt]]) -> bool:
    """Whether a start year, a later year and the corrupted start year are each a century and an ending."""
    century, ending = divmod(year, 100)
    known = endings[century]
    return _CORRUPTED_START in known and ending in known and any(other > ending for other in known)


def _draw(rng: random.Random, years: Sequence[int], endings: dict[int, dict[int, Prompt]]) -> Example:
    noun, year = pick(rng, NOUNS), pick(rng, years)
    century, start = divmod(year, 100)
    known = endings[century]
    later = [ending for ending in known if ending > start]
    earlier = [ending for ending in known if FIRST <= ending <= start]
    clean, corrupted = (
        TEMPLATE.format(noun=noun, start=f"{century}{ending:02}", century=century)
        for ending in (start, _CORRUPTED_START)
    )
    return Example(clean, corrupted, known[pick(rng, later)], known[pick(rng, earlier)])


def _refusal(tokenizer: Tokenizer) -> str:
    """Says which years are not two tokens, and what to do."""
    counts = {
        f" {century}32": len(following(tokenizer, _BEFORE_YEAR, f" {century}32")) for century in CENTURIES
    }
    detail = "greater_than needs years that are two tokens, the century with its space and two digits, as"
    detail = f"{detail} ' 17' and '32', all two-digit endings different tokens; the model's tokenizer makes"
    numbers = ", ".join(map(str, dict.fromkeys(counts.values())))
    return f"{detail} {numbers} tokens of {quoted_words(list(counts))}: {ADVICE}"
