"""What may mislead about an answer although nothing went wrong: said with the answer, in full sentences.

Each warning says what was found, what it means and what to do. They count and number prompts and never quote
them. Prompts are numbered as in the request: ``task.clean[3]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import CleanRun, ResolvedObjective
from pahq_server.core.task import TokenIds, TokenTask
from pahq_server.core.verdict import SearchResult

# Clean and corrupted prompts.
Pairs: TypeAlias = Sequence[tuple[TokenIds, TokenIds]]

# Outside of these, a circuit does not do what the full model does.
LEAST_FAITHFULNESS, MOST_FAITHFULNESS = 0.1, 1.2
# The full model and the empty circuit are told apart by more than this: of the larger one, and in all.
LEAST_RELATIVE_GAP, LEAST_GAP = 0.01, 1e-6
# A circuit with more of all edges than this leaves out next to nothing.
ALMOST_ALL = 0.95


@dataclass(frozen=True)
class Ends:
    """The metric of the full model and of the empty circuit.

    Args:
        name: of the metric.
        full, empty: its values; lower is better.
    """

    name: str
    full: float
    empty: float

    @property
    def close(self) -> bool:
        """Whether the ablation hardly changes the metric, so that there is nothing to explain."""
        gap = abs(self.full - self.empty)
        return gap < LEAST_GAP or gap < LEAST_RELATIVE_GAP * max(abs(self.full), abs(self.empty))


def of_request(resolved: ResolvedObjective) -> tuple[str, ...]:
    """What the request alone shows, before anything is computed."""
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


def of_baseline(ends: Ends, clean_run: CleanRun) -> tuple[str, ...]:
    """What the full model and the empty circuit show, whatever circuit is measured beside them."""
    found = [*_margins(clean_run)]
    if ends.close:
        found.append(
            f"The full model and the empty circuit have {'' if ends.full == ends.empty else 'almost '}the "
            f"same {ends.name} ({_number(ends.full)} and {_number(ends.empty)}): ablation hardly disturbs "
            "the behaviour, so scores and faithfulness are mostly noise. Use corrupted prompts that break "
            "the behaviour, another ablation or another metric."
        )
    elif ends.empty < ends.full and not found:
        found.append(
            f"The empty circuit has a lower, that is better, {ends.name} than the full model "
            f"({_number(ends.empty)} and {_number(ends.full)}): ablating everything improves the behaviour. "
            "Check the answers and the corrupted prompts."
        )
    return tuple(found)


def of_search(resolved: ResolvedObjective, threshold: float | None, found: SearchResult) -> tuple[str, ...]:
    """What the result of a search shows."""
    ends = Ends(resolved.objective.metric, found.metric_full, found.metric_empty)
    return (
        *of_baseline(ends, resolved.clean_run),
        *_sizes(found, threshold),
        *_paths(found.circuit),
        *_faithfulness(ends, found.metric_value, "Use a smaller threshold"),
    )


def of_evaluation(resolved: ResolvedObjective, circuit: Circuit, value: float, ends: Ends) -> tuple[str, ...]:
    """What the measurement of a given circuit shows, the request included."""
    empty = () if circuit.num_kept else ("The circuit has no edges: what was measured is the empty circuit.",)
    return (
        *of_request(resolved),
        *of_baseline(ends, resolved.clean_run),
        *empty,
        *_paths(circuit),
        *_faithfulness(ends, value, "Use a circuit with more edges"),
    )


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


def _number(value: float, digits: int = 6) -> str:
    return f"{value + 0.0:.{digits}g}"  # never "-0"


# The full model


def _margins(clean_run: CleanRun) -> Iterator[str]:
    margins = np.array(clean_run.margins or ())
    if not len(margins):
        return
    mean, right = float(margins.mean()), int((margins > 0).sum())
    told = f"the answer has the larger logit at {right} of {len(margins)} positions"
    if mean <= 0:
        yield (
            "The full model does not do the task: its mean logit difference between the answers and the "
            f"wrong answers is {mean:.4g} on the clean prompts, and {told}. There is no behaviour that a "
            "circuit could explain. Check whether answers and wrong answers are swapped, or use a model "
            "that does it."
        )
    elif 2 * right < len(margins):
        yield (
            f"The full model mostly does not do the task: on the clean prompts {told}, though the mean "
            f"logit difference is {mean:.4g}. The result is about the few prompts that it does. Leave out "
            "the others."
        )


# The circuit


def _sizes(found: SearchResult, threshold: float | None) -> Iterator[str]:
    kept, total = found.circuit.num_kept, found.circuit.graph.num_edges
    if threshold is None:
        return
    if not kept:
        largest = max((verdict.delta for verdict in found.verdicts), default=0.0)
        advice = (
            "Use a smaller threshold" if largest > 0 else "Change the task: a smaller threshold does not help"
        )
        yield (
            f"No edge is kept: no removal worsened the metric by the threshold {threshold:g}, the largest "
            f"change was {_number(largest)}. {advice}."
        )
    elif kept >= ALMOST_ALL * total:
        yield (
            f"{kept} of {total} edges are kept: nearly every removal changes the metric by the threshold "
            f"{threshold:g} or more, so the circuit does not tell what matters. Use a larger threshold."
        )


def _paths(circuit: Circuit) -> Iterator[str]:
    kept = circuit.num_kept
    if kept and not circuit.on_paths().any():
        edges = "The only kept edge is not" if kept == 1 else f"None of the {kept} kept edges is"
        yield (
            f"{edges} on a path from input to logits: nothing of what is special to a prompt gets through, "
            "and the circuit does not explain the behaviour. Use a smaller threshold, or another metric or "
            "ablation."
        )


def _faithfulness(ends: Ends, value: float, advice: str) -> Iterator[str]:
    """Says nothing where the ends are close: the ratio is noise, and that was said."""
    if ends.close:
        return
    faithfulness = (value - ends.empty) / (ends.full - ends.empty)
    values = (
        f"{ends.name} {_number(value)}, of the full model {_number(ends.full)}, of the empty circuit "
        f"{_number(ends.empty)}"
    )
    if faithfulness < LEAST_FAITHFULNESS:
        # A little below 0 is rounding.
        worse = "does worse than the empty circuit" if faithfulness < -0.01 else "has lost the behaviour"
        yield f"The faithfulness is {_number(faithfulness, 3)}: the circuit {worse} ({values}). {advice}."
    elif faithfulness > MOST_FAITHFULNESS:
        yield (
            f"The faithfulness is {_number(faithfulness, 3)}: the circuit goes beyond the full model "
            f"({values}), since edges that work against the behaviour are missing. {advice}, or the metric "
            "kl_divergence, which counts every departure from the full model."
        )
