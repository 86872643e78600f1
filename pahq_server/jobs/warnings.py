"""Warnings: what may mislead about a request although it is valid, in full sentences.

Each warning says what was found, what it means and what to do. It counts and numbers prompts, and never
quotes them. Prompts are numbered as in the request: ``task.clean[3]``. Warnings about circuits are in
`pahq_server.methods.warnings`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.task import TokenIds, TokenTask

# Pairs of a clean and a corrupted prompt.
Pairs: TypeAlias = Sequence[tuple[TokenIds, TokenIds]]


def of_request(resolved: ResolvedObjective, ablates: bool = True) -> tuple[str, ...]:
    """Returns the warnings about a request alone, before anything is computed.

    Args:
        resolved: what is asked for.
        ablates: whether circuits are measured under its ablation; else prompts may be any.
    """
    if not ablates:
        return resolved.warnings
    task, ablation = resolved.task, resolved.objective.ablation
    read_until = _last_positions(resolved)
    found = [*resolved.warnings, *_repetitions(task), *_first_tokens(read_until), *_answers(task)]
    if ablation == "resample" and task.corrupted is not None:
        pairs = list(zip(task.clean, task.corrupted, strict=True))
        found += _pairs(pairs, read_until)
        found += _blind_positions(task.positions, pairs) if resolved.causal else ()
    elif ablation == "mean":
        found += _means(task, read_until)
    return tuple(found)


# The task


def _pairs(pairs: Pairs, read_until: Sequence[int]) -> Iterator[str]:
    """Pairs that resample ablation cannot use: the same prompt twice, or a difference that comes too late."""
    same = [i for i, (clean, corrupted) in enumerate(pairs) if clean == corrupted]
    late = [
        i
        for i, (clean, corrupted) in enumerate(pairs)
        if clean != corrupted and clean[: read_until[i] + 1] == corrupted[: read_until[i] + 1]
    ]
    if len(same) == len(pairs):
        yield (
            f"The clean and the corrupted prompt are the same {_in_all(same, 'pair')}: ablation changes "
            "nothing, so no edge can matter. Give corrupted prompts that differ in what the behaviour "
            "depends on."
        )
    elif same:
        yield (
            f"The clean and the corrupted prompt are the same in {_some(same, pairs, 'pairs')}: these pairs "
            "tell nothing about any edge and only make every effect smaller. Leave them out, or corrupt "
            "them."
        )
    if late:
        where = _in_all(late, "pair") if len(late) == len(pairs) else f"in {_some(late, pairs, 'pairs')}"
        yield (
            "The corrupted prompt differs from the clean one only after the last position at which the "
            f"metric is read {where}: what comes later cannot matter there, so these pairs tell nothing "
            "about any edge. Corrupt an earlier token, or read the metric at a later position."
        )


def _blind_positions(positions: TokenIds | None, pairs: Pairs) -> Iterator[str]:
    """Positions of the metric that no corrupted token comes before, though one comes before others."""
    first = min(_first_difference(clean, corrupted) for clean, corrupted in pairs)
    if positions and min(positions) < first <= max(positions):
        blind = ", ".join(str(position) for position in sorted(positions) if position < first)
        yield (
            "In no pair do clean and corrupted prompt differ up to some of the positions where the metric "
            f"is read ({blind}): nothing can matter there, and every effect is averaged with these zeros. "
            "Leave these positions out."
        )


def _first_difference(a: TokenIds, b: TokenIds) -> int:
    """The first position at which two prompts of a pair differ; their length if they do not."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def _means(task: TokenTask, read_until: Sequence[int]) -> Iterator[str]:
    """Prompts whose mean, position by position, is what they hold themselves."""
    read = [ids[: max(read_until) + 1] for ids in task.clean]
    longest = max(read, key=len)
    if any(ids != longest[: len(ids)] for ids in read):
        return
    several = len(task.clean) > 1
    reason = "the prompts do not differ at any position of the metric" if several else "there is one prompt"
    yield (
        f"The mean over the prompts is what every prompt holds itself, since {reason}: mean ablation "
        "changes nothing, so no edge can matter. Give several prompts that differ, or use another ablation."
    )


def _answers(task: TokenTask) -> Iterator[str]:
    if task.answers is None or task.wrong_answers is None:
        return
    same = [i for i, (a, b) in enumerate(zip(task.answers, task.wrong_answers, strict=True)) if a == b]
    if len(same) == len(task.answers):
        yield (
            f"The answer and the wrong answer are the same token {_in_all(same, 'prompt')}: their logit "
            "difference is 0 whatever the model does. Give wrong answers that differ from the answers."
        )
    elif same:
        yield (
            f"The answer and the wrong answer are the same token in {_some(same, task.answers, 'prompts')}: "
            "their logit difference is 0 there whatever the model does. Correct these prompts, or leave "
            "them out."
        )


def _repetitions(task: TokenTask) -> Iterator[str]:
    columns = [task.clean, task.corrupted, task.answers, task.wrong_answers]
    rows = list(zip(*(column for column in columns if column is not None), strict=True))
    seen: set[object] = set()
    again = []
    for i, row in enumerate(rows):
        if row in seen:
            again.append(i)
        seen.add(row)
    if again:
        yield (
            f"What was given before is repeated in {_some(again, rows, 'prompts')}: repetitions weigh more "
            "and tell nothing new, so the task is smaller than it looks. Leave them out unless the weight "
            "is meant."
        )


def _first_tokens(read_until: Sequence[int]) -> Iterator[str]:
    first = [i for i, position in enumerate(read_until) if position == 0]
    if first:
        every = len(first) == len(read_until)
        where = _in_all(first, "prompt") if every else f"in {_some(first, read_until, 'prompts')}"
        yield (
            f"The metric is read at nothing but the first token {where}: attention has only that token to "
            "look at there, so queries and keys cannot matter. Use longer prompts, or read the metric at a "
            "later position."
        )


def _last_positions(resolved: ResolvedObjective) -> list[int]:
    """The last position that can matter to the metric, of every prompt."""
    positions = resolved.task.positions if resolved.causal else None
    return [len(ids) - 1 if positions is None else max(positions) for ids in resolved.task.clean]


def _in_all(indices: Sequence[int], what: str) -> str:
    return f"in all {len(indices)} {what}s" if len(indices) > 1 else f"in the only {what}"


def _some(indices: Sequence[int], all_: Sequence[object], what: str) -> str:
    return f"{len(indices)} of {len(all_)} {what} (first in task.clean[{indices[0]}])"
