"""The model card: a description of the shipped checkpoint, with figures measured on the saved files."""

from __future__ import annotations

from pathlib import Path

from demo_training.evaluate import SIDE_TASKS, TASKS, Score, evaluate
from demo_training.names import ALL_NAMES, HELD_OUT_NAMES, HELD_OUT_STARTS

NUM_PROMPTS = 1000
# Seed of the test prompts, independent of that of the training text.
PROMPT_SEED = 1

_CARD = """\
---
license: mit
---

# PAHQ demo model

A very small GPT-2 (4 layers, 4 heads of width 32, width 128, context 64, one token per word, float16) that
does four of PAHQ's built-in tasks: `ioi`, `greater_than`, `induction` and `pronoun`. It ships with the server
so that circuits can be discovered without downloading anything. It is not useful for anything else.

## Measured

Accuracy: the most likely of all tokens at the last position is right: the answer, or for `greater_than` any
later year of the century. Above wrong: the answer is more likely than the wrong answer. Logit difference:
answer minus wrong answer, mean. Measured on these files, read back and widened to float32, with prompts of
held-out items alone and with the prompts that the server draws. Subject-verb agreement was learned on the
side, with nothing held out.

| task | items | prompts | accuracy | above wrong | logit difference | same, corrupted prompts |
|---|---|---|---|---|---|---|
{rows}

## Training data

{documents:,} short documents made from templates by `tests/demo_training/corpus.py` (seed {seed}): solved
tasks, the corrupted form of `ioi`, stories about one person, lists, greetings, belongings, and scenes without
people. There are {num_names} names. Held out are:

- for `ioi` and `pronoun` the names {names}. They are in no text with two people,
  then one of them again, then the other, and in no tag question, but in the other documents;
- for `greater_than` every fifth start year from {first_start} on, {num_starts} of them. They start no
  document, but their centuries and their last two digits do.

The sequences of `induction` are random, in training as in the task. In the loss, what the text before a token
tells about it counts {ratio} times as much as the rest.

## Retrain

`make demo-model OUT=DIR` (seed {seed}, {steps:,} steps) takes some minutes on one processor core. It gives
the same bytes again on the same machine with the same version of torch.

## Licence

MIT, text and weights.
"""


def write(path: Path, seed: int, steps: int, documents: int, ratio: float) -> str:
    """Measures the checkpoint in a folder, writes the card there, and returns its text.

    Args:
        path: the folder.
        seed, steps, documents: of the training.
        ratio: weight of what can be told in the loss to that of the rest.
    """
    text = _CARD.format(
        rows="\n".join(row(*labels, score) for labels, score in measure(path).items()),
        documents=documents,
        seed=seed,
        steps=steps,
        ratio=round(ratio),
        num_names=len(ALL_NAMES),
        names=", ".join(HELD_OUT_NAMES),
        num_starts=len(HELD_OUT_STARTS),
        first_start=HELD_OUT_STARTS[0],
    )
    (path / "README.md").write_text(text, encoding="utf-8")
    return text


def measure(path: Path) -> dict[tuple[str, str], Score]:
    """Measures a checkpoint; returns scores by the task and what its prompts are made of."""
    drawn = {(name, items): generate for name, task in TASKS.items() for items, generate in task.items()}
    drawn |= {(name, "all"): generate for name, generate in SIDE_TASKS.items()}
    return {labels: evaluate(path, generate, NUM_PROMPTS, PROMPT_SEED) for labels, generate in drawn.items()}


def row(task: str, items: str, score: Score) -> str:
    """Formats one row of the card's table."""
    clean, corrupted = score.logit_difference, score.corrupted_logit_difference
    return (
        f"| `{task}` | {items} | {score.num_prompts} | {score.accuracy:.1%} | {score.above_wrong:.1%} "
        f"| {clean:z.1f} | {corrupted:z.1f} |"
    )
