"""The built-in task "pronoun": gendered pronouns (Mathwin et al. 2023, "Identifying a Preliminary Circuit for
Predicting Gendered Pronouns in GPT-2 Small").

A tag question needs the pronoun of the person it asks about: " So Evan is a really great friend, isn't" →
" he". The corrupted sentence is about a person of the other gender, for whom the wrong answer would be right.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from pahq_server.core.task import PromptTask, Tokenizer
from pahq_server.tasks.generation import Example, draw_prompts, pick, usable_pairs, usable_words, words

# Names that are rarely given to the other gender; all are names of the task "ioi".
FEMALE_NAMES = words(
    """
    Lily Sara Mia Anna Lucy Amy Mary Sue Jane Kate Emma Jessica Nicole Elizabeth Rachel Laura Michelle
    Emily Lisa
    """
)
MALE_NAMES = words(
    """
    Tom Ben Tim Jack Bob John Leo Michael Matthew Daniel David James Robert Joseph Andrew Ryan Jason Justin
    Peter William Brian Anthony Eric Adam Kevin Thomas Kyle Richard Mark Aaron Charles Jacob Patrick Paul
    Scott
    """
)
PRONOUNS = (("he", "she"),)
# Each template begins with a space or another word, so that a name is the same token everywhere.
TEMPLATES = (
    " So {name} is a really great {role}, isn't",
    " So {name} is such a good {role}, isn't",
    " {name} is a very good {role}, isn't",
    " Yes, {name} is a really good {role}, isn't",
    " Well, {name} was a really great {role}, wasn't",
    " I think that {name} is a great {role}, isn't",
)
# None begins with a vowel, nor is it said of one gender only.
ROLES = words("friend cook singer teacher doctor dancer writer player student farmer driver painter")
_BEFORE_ANSWERS = " isn't"


def generate(
    tokenizer: Tokenizer,
    num_prompts: int,
    seed: int,
    female: Sequence[str] = FEMALE_NAMES,
    male: Sequence[str] = MALE_NAMES,
) -> PromptTask:
    """Draws prompts; the answer is the pronoun of the name's gender, the wrong answer that of the other.

    Args:
        tokenizer: of the served model. Only names that are a single token are used.
        num_prompts, seed: as in `generation.draw_prompts`.
        female, male: names to draw from.

    Raises:
        InvalidRequestError: if the task does not work with the tokenizer.
    """
    ((he, she),) = usable_pairs("pronoun", "pair of pronouns", tokenizer, PRONOUNS, 1, _BEFORE_ANSWERS)
    women = usable_words("pronoun", "female names", tokenizer, female, 2, " So")
    men = usable_words("pronoun", "male names", tokenizer, male, 2, " So")

    def draw(rng: random.Random) -> Example:
        template, role = pick(rng, TEMPLATES), pick(rng, ROLES)
        woman, man = pick(rng, women), pick(rng, men)
        (name, answer), (other, wrong) = pick(rng, [((man, he), (woman, she)), ((woman, she), (man, he))])
        clean, corrupted = (template.format(name=each, role=role) for each in (name, other))
        return Example(clean, corrupted, f" {answer}", f" {wrong}")

    return draw_prompts("pronoun", tokenizer, draw, num_prompts, seed)
