"""What a full model predicts: the likeliest next tokens of prompts, and how well it does a task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import overload

from pahq_client.formatting import one_line, printable
from pahq_client.task import Prompt

# A model that is right less often does not do a task.
LEAST_ACCURACY = 0.9
# Corrupted prompts that leave more of the clean prompts' logit difference than this have changed nothing.
MOST_LEFT = 0.9
# Characters of a prompt that are shown. Its end decides what follows.
_SHOWN = 70


@dataclass(frozen=True)
class PredictedToken:
    """A token that may follow a prompt.

    Args:
        id: its token id.
        text: what it adds to the text of the prompt, such as ``" Tom"``; as the vocabulary writes it if it is
            no whole text, such as a byte of a character; empty for models without a tokenizer.
        probability: from 0 to 1, of all tokens.
        logit: its logit.
    """

    id: int
    text: str
    probability: float
    logit: float

    def __repr__(self) -> str:
        text = f"{self.text!r}, " if self.text else ""
        return f"PredictedToken({text}id={self.id}, {_percent(self.probability)}, logit={self.logit:.4g})"


@dataclass(frozen=True)
class Prediction:
    """What follows one prompt.

    Args:
        prompt: as it was asked for, text or token ids.
        tokens: the likeliest next tokens, the likeliest first.
    """

    prompt: Prompt
    tokens: tuple[PredictedToken, ...]

    def __repr__(self) -> str:
        return "\n".join([_shown(self.prompt), *(f"  {'  '.join(row)}".rstrip() for row in _rows(self))])

    def _repr_html_(self) -> str:
        head = f"<p><code>{escape(_shown(self.prompt))}</code></p>"
        titles = "".join(f"<th>{title}</th>" for title in ("probability", "logit", "id", "token"))
        rows = "".join(
            f"<tr>{''.join(f'<td><code>{escape(cell)}</code></td>' for cell in row)}</tr>"
            for row in _rows(self)
        )
        return f"{head}<table><tr>{titles}</tr>{rows}</table>"


@dataclass(frozen=True)
class Predictions(Sequence[Prediction]):
    """What follows each of some prompts: a sequence of `Prediction`, in the order of the prompts.

    Args:
        model: name of the model that was asked.
        predictions: one for each prompt.
        warnings: what the model does not see of the prompts, each with what to do.
    """

    model: str
    predictions: tuple[Prediction, ...]
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.predictions)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Prediction, ...]: ...

    def __getitem__(self, index: int | slice) -> Prediction | tuple[Prediction, ...]:
        return self.predictions[index]

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.predictions)

    def __repr__(self) -> str:
        return "\n".join([f"Predictions of {self.model!r}", *map(repr, self.predictions)])

    def _repr_html_(self) -> str:
        head = f"<p><b>Predictions</b> of {escape(one_line(self.model))}</p>"
        warnings = "".join(f"<p><b>Warning</b>: {escape(one_line(text))}</p>" for text in self.warnings)
        return head + warnings + "".join(each._repr_html_() for each in self.predictions)


@dataclass(frozen=True)
class TaskAccuracy:
    """How well a full model answers the prompts of a task, over prompts and positions.

    Args:
        above_wrong: share where the answer has a larger logit than the wrong answer.
        likeliest: share where the answer has the largest logit of all tokens.
        logit_difference: mean logit of the answer minus logit of the wrong answer.
    """

    above_wrong: float
    likeliest: float
    logit_difference: float


@dataclass(frozen=True)
class TaskCheck:
    """Whether a full model does a task, so that there is something to find a circuit of.

    Args:
        model: name of the model.
        clean: on the clean prompts.
        corrupted: on the corrupted prompts, with the answers of the clean ones; None if the task has none.
        num_prompts: how many prompts the task has, or pairs.
        warnings: what may mislead about the task, in the words of the server, each with what to do.
    """

    model: str
    clean: TaskAccuracy
    corrupted: TaskAccuracy | None
    num_prompts: int
    warnings: tuple[str, ...] = ()

    @property
    def suspicions(self) -> tuple[str, ...]:
        """What speaks against finding a circuit of this task, each with what to do; empty if nothing does."""
        clean = self.clean
        if clean.logit_difference <= 0 or clean.above_wrong < LEAST_ACCURACY:
            return (
                "The model does not do the task: the answer is above the wrong answer in "
                f"{_percent(clean.above_wrong)} of the clean prompts (mean difference "
                f"{clean.logit_difference:.4g}), and a circuit would show how it guesses. Leave out what it "
                "gets wrong, look at client.predict(), or take another task or model.",
            )
        return tuple(self._of_corrupted())

    def _of_corrupted(self) -> Iterator[str]:
        clean, corrupted = self.clean, self.corrupted
        if corrupted is None:
            return
        same = corrupted.logit_difference > MOST_LEFT * clean.logit_difference
        if same or corrupted.above_wrong >= LEAST_ACCURACY:
            yield (
                "The model answers the corrupted prompts like the clean ones: the answer is above the wrong "
                f"answer in {_percent(corrupted.above_wrong)} of them (mean difference "
                f"{corrupted.logit_difference:.4g}, on the clean prompts {clean.logit_difference:.4g}), so "
                "ablation takes little away that a circuit could show. Corrupt what the answer depends on."
            )

    @property
    def verdict(self) -> str:
        """What the figures mean, in plain English: what is suspicious, or that nothing is."""
        if self.suspicions:
            return " ".join(self.suspicions)
        if self.corrupted is None:
            return "The model does the task. There are no corrupted prompts to compare with."
        return "The model does the task, and no longer does on the corrupted prompts."

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self._table(), strict=True)]
        rows = [
            "  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]).rstrip()
            for first, *rest in self._table()
        ]
        return "\n".join([self._title(), *rows, self.verdict])

    def _repr_html_(self) -> str:
        head, *rows = self._table()
        titles = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        warnings = "".join(f"<p><b>Warning</b>: {escape(one_line(text))}</p>" for text in self.warnings)
        table = f"<table><tr>{titles}</tr>{body}</table>"
        return f"<p><b>{escape(self._title())}</b></p>{table}<p>{escape(self.verdict)}</p>{warnings}"

    def _title(self) -> str:
        prompts = f"{self.num_prompts} prompt{'' if self.num_prompts == 1 else 's'}"
        return f"TaskCheck of {one_line(self.model)!r}, {prompts}"

    def _table(self) -> list[tuple[str, ...]]:
        rows = [("clean", self.clean), ("corrupted", self.corrupted)]
        return [
            ("prompts", "above wrong answer", "likeliest", "mean logit difference, answer - wrong answer"),
            *(
                (name, _percent(each.above_wrong), _percent(each.likeliest), f"{each.logit_difference:.4g}")
                for name, each in rows
                if each is not None
            ),
        ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _shown(prompt: Prompt) -> str:
    """Quotes a prompt, of a long one the end."""
    if isinstance(prompt, str):
        return printable(repr(prompt) if len(prompt) <= _SHOWN else f"…{prompt[-_SHOWN:]!r}")
    ids = ", ".join(map(str, prompt))
    return f"[{ids}]" if len(ids) <= _SHOWN else f"[… {ids[-_SHOWN:].partition(' ')[2]}]"


def _rows(prediction: Prediction) -> Iterator[tuple[str, ...]]:
    """Yields probability, logit, id and text of each token, aligned."""
    for token in prediction.tokens:
        text = printable(repr(token.text)) if token.text else ""
        yield f"{_percent(token.probability):>7}", f"{token.logit:>9.4f}", f"{token.id:>7}", text
