"""The built-in task "induction": repeated random tokens (Olsson et al. 2022, arXiv:2209.11895).

Random words are repeated in the same order, and the repetition breaks off: " apple chair rain lamp apple
chair" → " rain". A head that finds the token before (layer by layer the first half of an induction circuit)
and one that looks for what followed the last token's earlier occurrence solve it. The corrupted prompt has
the same words at its beginning in another order, in which the wrong answer follows that occurrence: which
words there are tells nothing, only their order does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from pahq_server.core.task import PromptTask, Tokenizer
from pahq_server.tasks.generation import Example, draw_prompts, pick, pick_distinct, usable_words, words

# Common words without a meaning in common; with most tokenizers each is one token.
WORDS = words(
    """
    apple arm baby bag bank bar bed bell bird boat body bowl box bread bridge brush bus cake camp car card
    cat chair chicken church circle city class clock cloud coat coffee corn country cow cup day desk dirt
    doctor dog door dream dress dust ear earth egg engine eye face farm father field finger fire fish floor
    flower food foot forest fox frog fruit game gate glass gold grass hair hand hat head heart hill hole
    horse house ice island key kitchen knife lake lamp leaf leg letter light line lion machine map meat milk
    mind money moon morning mother mountain mouth music nail name neck nest night north nose oil orange
    paint paper park pencil picture pig pocket rain river road rock roof room root rope salt sand school
    sea seed shade sheep ship shirt shoe shop sign silver sister skin sky sleep snow soap song soup south
    spoon star stick stone store story street sugar summer sun table tail tea tooth town toy train tree
    truck voice wall watch water wave wheel wind window wing winter wood wool world yard year
    """
)
# How many different words a prompt has, and how many of them are repeated before it ends.
PERIOD, REPEATED = 10, (3, 9)
# So that no two prompts have mostly the same words.
_WORDS_NEEDED = 2 * PERIOD
_BEFORE_ANSWERS = " and the"


def generate(tokenizer: Tokenizer, num_prompts: int, seed: int, pool: Sequence[str] = WORDS) -> PromptTask:
    """Draws prompts; the answer is the word that followed the last one before, the wrong answer another one.

    Args:
        tokenizer: of the served model. Only words that are a single token are used.
        num_prompts, seed: as in `generation.draw_prompts`.
        pool: words to draw from.

    Raises:
        InvalidRequestError: if the task does not work with the tokenizer.
    """
    usable = usable_words("induction", "words", tokenizer, pool, _WORDS_NEEDED, _BEFORE_ANSWERS)
    return draw_prompts("induction", tokenizer, lambda rng: _draw(rng, usable), num_prompts, seed)


def _draw(rng: random.Random, pool: Sequence[str]) -> Example:
    sequence = pick_distinct(rng, pool, PERIOD)
    repeated = pick(rng, range(REPEATED[0], REPEATED[1] + 1))
    last, answer = sequence[repeated - 1], sequence[repeated]
    wrong = pick(rng, [word for word in sequence if word not in (last, answer)])
    others = pick_distinct(rng, [word for word in sequence if word not in (last, wrong)], PERIOD - 2)
    at = pick(rng, range(PERIOD - 1))
    shuffled = [*others[:at], last, wrong, *others[at:]]
    clean, corrupted = (
        "".join(f" {word}" for word in (*beginning, *sequence[:repeated]))
        for beginning in (sequence, shuffled)
    )
    return Example(clean, corrupted, f" {answer}", f" {wrong}")
