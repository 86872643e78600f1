"""The model card: a description of the shipped checkpoint, with figures measured on the saved files."""

from __future__ import annotations

from pathlib import Path

from demo_training.evaluate import Score, evaluate
from demo_training.names import EXTRA_NAMES, HELD_OUT_NAMES
from pahq_server.tasks.ioi import NAMES

NUM_PROMPTS = 1000
# Seed of the test prompts, independent of that of the training text.
PROMPT_SEED = 1

_CARD = """\
---
license: mit
---

# PAHQ demo model

A very small GPT-2 (4 layers, 8 heads, width 128, context 64, one token per word, float16) that does one
thing well: indirect object identification, the built-in task `ioi` of PAHQ. " Lily and Tom went to the
park. Lily gave the ball to" → " Tom". It ships with the server so that a circuit can be discovered
without downloading anything. It is not useful for anything else.

## Measured

Accuracy: the most likely of all tokens at the last position is the indirect object. Logit difference:
indirect object minus repeated name, mean. Measured on these files, read back and widened to float32.

| names | prompts | accuracy | logit difference | same, corrupted prompts |
|---|---|---|---|---|
{rows}

## Training data

{documents:,} short documents made from templates by `tests/demo_training/corpus.py` (seed {seed}): about a
third solve the task, some are its corrupted form, the others are stories about one person, lists,
greetings, belongings, and scenes without people. There are {num_names} names. These are held out:

{held_out}

They never occur in a text of the task's shape (two people, then one of them again, then the other), but
they do in the other documents.

## Retrain

`make demo-model OUT=DIR` (seed {seed}, {steps:,} steps) takes some minutes on two processor
cores, and gives the same bytes again on the same machine with the same version of torch.

## Licence

MIT, text and weights.
"""


def write(path: Path, seed: int, steps: int, documents: int) -> str:
    """Measures the checkpoint in a folder, writes the card there, and returns its text."""
    text = _CARD.format(
        rows="\n".join(row(label, score) for label, score in measure(path).items()),
        documents=documents,
        seed=seed,
        steps=steps,
        num_names=len(NAMES) + len(EXTRA_NAMES),
        held_out=", ".join(HELD_OUT_NAMES),
    )
    (path / "README.md").write_text(text, encoding="utf-8")
    return text


def measure(path: Path) -> dict[str, Score]:
    """Measures a checkpoint with several sets of names; returns scores by the card's labels of these sets."""
    sets = {"held-out only": HELD_OUT_NAMES, "all of the task's": NAMES}
    return {label: evaluate(path, names, NUM_PROMPTS, PROMPT_SEED) for label, names in sets.items()}


def row(label: str, score: Score) -> str:
    """Formats one row of the card's table."""
    clean, corrupted = score.logit_difference, score.corrupted_logit_difference
    return f"| {label} | {score.num_prompts} | {score.accuracy:.1%} | {clean:z.1f} | {corrupted:z.1f} |"
