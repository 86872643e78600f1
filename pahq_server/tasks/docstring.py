"""The built-in task "docstring": parameters in their order (Heimersheim and Janiak 2023, "A circuit for
Python docstrings in a 4-layer attention-only transformer").

The docstring of a function describes its parameters in the order of the definition, and breaks off before the
next one; the answer is that parameter's name:

    def port(self, load, size, files, last):
        \"""oil column piece

        :param load: crime population
        :param size: unit dark
        :param

The corrupted prompt has other names, in the definition as in the docstring, and those of the docstring are
not those of the definition ("random_random" in the paper): nothing tells which one comes next.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from pahq_server.core.task import PromptTask, Tokenizer
from pahq_server.tasks.generation import Example, draw_prompts, pick, pick_distinct, usable_words, words

NAMES = words(
    """
    load size files last name value item color shape width height point line text data key index list path
    type code test field order group model image table label count start end time date user target source
    state level mode number result price weight speed page title
    """
)
# Words of function names and descriptions; they are the same in both prompts, and need not be single tokens.
_PROSE = words(
    """
    oil column piece crime population unit dark port song river garden board winter bridge market round
    sister teacher story green sector paper voice limit season corner kind simple north summer party glass
    """
)
_TEMPLATE = '''def {function}(self, {parameters}):
    """{summary}

    :param {first}: {first_words}
    :param {second}: {second_words}
    :param'''
_PARAMETERS = 4
# Of the clean definition, the corrupted definition, and the corrupted docstring.
_NAMES_PER_EXAMPLE = 2 * _PARAMETERS + 2


def generate(tokenizer: Tokenizer, num_prompts: int, seed: int, names: Sequence[str] = NAMES) -> PromptTask:
    """Draws prompts; the answer is the third parameter, the wrong answer one of the other three.

    Args:
        tokenizer: of the served model. Only names that are a single token are used.
        num_prompts, seed: as in `generation.draw_prompts`.
        names: of parameters, to draw from.

    Raises:
        InvalidRequestError: if the task does not work with the tokenizer.
    """
    usable = usable_words("docstring", "names of parameters", tokenizer, names, _NAMES_PER_EXAMPLE, ":param")
    return draw_prompts("docstring", tokenizer, lambda rng: _draw(rng, usable), num_prompts, seed)


def _draw(rng: random.Random, names: Sequence[str]) -> Example:
    function, *prose = pick_distinct(rng, _PROSE, 8)
    drawn = pick_distinct(rng, names, _NAMES_PER_EXAMPLE)
    parameters, others, documented = drawn[:4], drawn[4:8], drawn[8:]

    def fill(defined: Sequence[str], described: Sequence[str]) -> str:
        return _TEMPLATE.format(
            function=function,
            parameters=", ".join(defined),
            summary=" ".join(prose[:3]),
            first=described[0],
            first_words=" ".join(prose[3:5]),
            second=described[1],
            second_words=" ".join(prose[5:7]),
        )

    wrong = pick(rng, (parameters[0], parameters[1], parameters[3]))
    return Example(fill(parameters, parameters), fill(others, documented), f" {parameters[2]}", f" {wrong}")
