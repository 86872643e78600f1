"""Contrast pairs out of samples: texts of the model's own that do something, beside such that do not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pahq_client import checks
from pahq_client.errors import InvalidRequest, WarningDisplay
from pahq_client.samples import Sample, Samples

if TYPE_CHECKING:
    from pahq_client.task import AnswerLike

Predicate = Callable[[Sample], object]


def contrast_pairs(
    samples: Samples | Iterable[Sample],
    positive: Predicate,
    negative: Predicate | None,
    tokens: int | None,
    same_prompt: bool,
    answers: AnswerLike | Mapping[int, AnswerLike] | None,
    wrong_answers: AnswerLike | Mapping[int, AnswerLike] | None,
    limit: int | None,
) -> dict[str, Any]:
    """The arguments of a `Task` of pairs; described at `Task.from_samples`."""
    given = tuple(samples)
    if not all(isinstance(sample, Sample) for sample in given):
        raise InvalidRequest("samples", "must be Samples, as Client.generate returns them")
    if not callable(positive) or not (negative is None or callable(negative)):
        name = "negative" if callable(positive) else "positive"
        raise InvalidRequest(name, "must be a function of a Sample that says whether it is one")
    if tokens is not None and checks.integer("tokens", tokens) < 1:
        raise InvalidRequest("tokens", f"must be an integer from 1 on, got {tokens}")
    if limit is not None and checks.integer("limit", limit) < 1:
        raise InvalidRequest("limit", f"must be an integer from 1 on, got {limit}")
    good = [sample for sample in given if positive(sample)]
    if negative is None:
        bad = [sample for sample in given if not positive(sample)]
    else:
        bad = [sample for sample in given if negative(sample)]
    both = [sample for sample in good if any(sample is other for other in bad)] if negative else []
    if both:
        raise InvalidRequest("negative", f"is true of a sample that is positive, too: {both[0]!r}")
    pairs = _pairs(good, bad, tokens, checks.flag("same_prompt", same_prompt))
    _tell(len(pairs), len(good), len(bad), given)
    pairs = pairs[:limit]
    task: dict[str, Any] = {
        "clean": [_ids(clean, tokens) for clean, _ in pairs],
        "corrupted": [_ids(corrupted, tokens) for _, corrupted in pairs],
    }
    for name, value in (("answers", answers), ("wrong_answers", wrong_answers)):
        if value is not None:
            task[name] = [_answer(name, value, clean) for clean, _ in pairs]
    return task


def _pairs(
    good: list[Sample], bad: list[Sample], tokens: int | None, same_prompt: bool
) -> list[tuple[Sample, Sample]]:
    """Pairs each positive sample with a negative one that is as long and in no other pair.

    Those of one prompt are paired first; samples that are equal in all tokens count once, and those that
    ended at once not at all.
    """
    waiting: dict[object, list[Sample]] = defaultdict(list)
    for sample in _distinct(bad, tokens):
        waiting[sample.prompt_ids, len(_ids(sample, tokens))].append(sample)
    pairs, left = [], []
    for sample in _distinct(good, tokens):
        partners = waiting[sample.prompt_ids, len(_ids(sample, tokens))]
        if partners:
            pairs.append((sample, partners.pop(0)))
        else:
            left.append(sample)
    if same_prompt:
        return pairs
    by_length: dict[int, list[Sample]] = defaultdict(list)
    for rest in waiting.values():
        for sample in rest:
            by_length[len(_ids(sample, tokens))].append(sample)
    for sample in left:
        partners = by_length[len(_ids(sample, tokens))]
        if partners:
            pairs.append((sample, partners.pop(0)))
    return pairs


def _distinct(samples: list[Sample], tokens: int | None) -> list[Sample]:
    return list({_ids(sample, tokens): sample for sample in samples if _said(sample)}.values())


def _ids(sample: Sample, tokens: int | None) -> tuple[int, ...]:
    """The tokens of a prompt and of its sample, or of the sample's beginning.

    The token that ended a sample is left out: what a model says after an end of text means nothing.
    """
    return sample.prompt_ids + _said(sample)[:tokens]


def _said(sample: Sample) -> tuple[int, ...]:
    return sample.ids[:-1] if sample.finish_reason == "stop" else sample.ids


def _answer(field: str, value: Any, sample: Sample) -> AnswerLike:
    if not isinstance(value, Mapping):
        answer: AnswerLike = value
        return answer
    if sample.prompt_number not in value:
        raise InvalidRequest(field, f"has no answer of prompt {sample.prompt_number}: give one for each")
    found: AnswerLike = value[sample.prompt_number]
    return found


def _tell(pairs: int, good: int, bad: int, given: tuple[Sample, ...]) -> None:
    """Says how many samples are left out. Raises InvalidRequest if there is no pair."""
    what = f"{good} of {len(given)} samples are positive, {bad} negative"
    advice = "draw more samples, or compare their beginnings only, with tokens="
    if not pairs:
        raise InvalidRequest("samples", f"give no pair of equal length: {what}. To get some, {advice}")
    left = good + bad - 2 * pairs
    if left:
        text = f"{what}; {left} are left out, because they repeat others or have no partner of their length"
        WarningDisplay().show([f"{text}. For more than {pairs} pair{'s' * (pairs > 1)}, {advice}"])
