"""Samples of text: what a model says after prompts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, overload

from pahq_client import files, samples_file
from pahq_client.errors import InvalidSamplesFile
from pahq_client.formatting import one_line, printable
from pahq_client.results import WithProvenance, mapping

if TYPE_CHECKING:
    from pahq_client.task import Prompt

# Samples that a notebook or a terminal shows, and characters of a prompt and of a sample.
_SHOWN, _PROMPT, _TEXT = 20, 60, 200


@dataclass(frozen=True)
class Sample:
    """A sample of what follows a prompt.

    Args:
        prompt: as it was given, text or token ids; token ids where the text is not known.
        prompt_ids: token ids of the prompt.
        prompt_number: the prompt's position among those of the request, from 0 on.
        index: the sample's number among those of its prompt, from 0 on.
        ids: its tokens; at the end with the end token, or with the token that completed a stop text.
        text: what they say, without the end token and up to the stop text; empty for models without a
            tokenizer.
        finish_reason: ``stop`` at an end token or a stop text, ``length`` at its most tokens.
        logprobs: log-probability of each token in the model's own distribution (temperature 1, all tokens),
            natural logarithm; empty unless they were asked for.
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    prompt_number: int
    index: int
    ids: tuple[int, ...]
    text: str
    finish_reason: str
    logprobs: tuple[float, ...] = ()

    @property
    def logprob(self) -> float | None:
        """Log-probability of the whole sample; None unless log-probabilities were asked for."""
        return sum(self.logprobs) if self.logprobs else None

    def __repr__(self) -> str:
        said = repr(self.text) if self.text or not self.ids else f"ids={list(self.ids)}"
        place = f"prompt_number={self.prompt_number}, index={self.index}"
        return printable(f"Sample({said}, {place}, {self.finish_reason})")


@dataclass(frozen=True, eq=False, repr=False)
class Samples(WithProvenance, Sequence[Sample]):
    """Samples of one or more prompts, as a sequence: in the order of their prompts, then of their numbers.

    Args:
        prompts: the prompts, as they were given.
        items: the samples.
        provenance: as that of a `Circuit`.
        partial: whether the job was cancelled or failed before its end, so that samples are missing: the long
            ones, mostly.
    """

    prompts: tuple[Prompt, ...]
    items: tuple[Sample, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Sample, ...]: ...
    def __getitem__(self, index: int | slice) -> Sample | tuple[Sample, ...]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.items)

    @property
    def by_prompt(self) -> tuple[tuple[Sample, ...], ...]:
        """The samples of each prompt."""
        groups: list[list[Sample]] = [[] for _ in self.prompts]
        for sample in self.items:
            groups[sample.prompt_number].append(sample)
        return tuple(map(tuple, groups))

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of each sample."""
        return tuple(sample.text for sample in self.items)

    @property
    def figures(self) -> Mapping[str, float]:
        """What the run took, by name; empty if it is not known.

        ``steps`` (forward passes), ``lower_bound`` (the fewest steps of any order), ``slots`` (samples at a
        time), ``peak_kv_tokens`` and ``peak_kv_bytes`` (of keys and values in memory at once),
        ``prompt_tokens_computed`` and ``prompt_tokens_reused``, ``tokens`` of all samples, ``seconds`` and
        ``tokens_per_second``.
        """
        counts = {**mapping(self.run.get("counts")), "seconds": self.run.get("seconds")}
        numbers = (int, float)
        found = {
            name: value
            for name, value in counts.items()
            if isinstance(value, numbers) and not isinstance(value, bool)
        }
        if found.get("seconds") and "tokens" in found:
            found["tokens_per_second"] = found["tokens"] / found["seconds"]
        return found

    @property
    def policy(self) -> str:
        """The policy of the run, also where ``auto`` stood for it; empty if it is not known."""
        name = mapping(self.run.get("chosen")).get("policy")
        return name if isinstance(name, str) else ""

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, allow_partial: bool = False) -> Samples:
        """Reads a file of samples.

        Args:
            path: path of the file.
            allow_partial: whether to read the samples of a job that did not come to its end.

        Raises:
            InvalidSamplesFile: it is not a file of samples, is damaged or too large, has an unknown version,
                or holds partial samples that were not asked for.
            InvalidRequest: the path is none.
            OSError: it cannot be read.
        """
        name = files.path_text("path", path)
        samples = samples_file.decode(files.read(path), name)
        if samples.partial and not allow_partial:
            detail = "holds the samples of a job that did not come to its end: long ones are missing"
            raise InvalidSamplesFile(name, f"{detail}. Pass allow_partial=True to use them anyway")
        return samples

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file of samples, whole or not at all: a safetensors file with their provenance.

        Raises:
            InvalidSamplesFile: the provenance holds what JSON cannot express.
            InvalidRequest: the path is none.
            OSError: it cannot be written.
        """
        files.write(path, samples_file.encode(self, files.path_text("path", path)))

    def summary(self) -> str:
        """Says in one line what these are."""
        prompts, tokens = len(self.prompts), sum(len(sample.ids) for sample in self.items)
        stopped = sum(sample.finish_reason == "stop" for sample in self.items)
        parts = [
            f"{len(self.items)} samples of {prompts} prompt{'' if prompts == 1 else 's'}",
            f"{tokens} tokens",
            f"{stopped} stopped",  # at an end token or a stop text
        ]
        if self.model:
            parts.append(f"model {one_line(self.model)}")
        if self.policy:
            parts.append(f"policy {one_line(self.policy)}")
        return ", ".join([*parts, *(["partial"] if self.partial else [])])

    def __repr__(self) -> str:
        return f"Samples({self.summary()})"

    def _repr_html_(self) -> str:
        warnings = "".join(f"<p><b>Warning</b>: {escape(one_line(text))}</p>" for text in self.warnings)
        rows = "".join(map(_row, self.items[:_SHOWN]))
        more = len(self.items) - _SHOWN
        rest = f"<p>… and {more} more</p>" if more > 0 else ""
        head = "<tr><th>prompt</th><th>sample</th><th>text</th><th>ended</th></tr>"
        return f"<p><b>Samples</b>: {escape(self.summary())}</p>{warnings}<table>{head}{rows}</table>{rest}"


def shown_prompt(prompt: Prompt) -> str:
    """Quotes a prompt in one line, of a long one the end, which decides what follows."""
    text = repr(prompt) if isinstance(prompt, str) else str(list(prompt))
    return printable(text if len(text) <= _PROMPT else f"…{text[-_PROMPT:]}")


def _row(sample: Sample) -> str:
    said = repr(sample.text) if sample.text or not sample.ids else str(list(sample.ids))
    text = said if len(said) <= _TEXT else f"{said[:_TEXT]}…"
    cells = (shown_prompt(sample.prompt), str(sample.index), one_line(text), sample.finish_reason)
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
