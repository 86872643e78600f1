"""States in files: planted ones, and those of texts that real models wrote themselves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from helpers.planted_states import PlantedStates
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from bench.methods.subjects import STORIES
from bench.workloads import SHARED, TINYTALK
from pahq_server.core.activations import CaptureStates, Span, part_tokens, span_parts
from pahq_server.core.engine import Objective, Work
from pahq_server.core.pruning import NodeLayout
from pahq_server.core.task import PromptTask
from pahq_server.engine.engine import ModelEngine
from pahq_server.models.folding import FOLDING
from pahq_server.models.loading import load

# Where states are kept between runs.
CACHE = Path(__file__).parents[3] / "build" / "bench" / "concepts"
# Texts that are written or captured at once, and how long they are.
TEXTS_AT_ONCE, TOKENS = 256, 128
# The first token of a text only gives context, as in the method's defaults.
SKIP = 1


@dataclass(frozen=True)
class Subject:
    """A model whose states are looked at.

    Args:
        name: for people.
        path: of its checkpoint.
        layers: low and high.
        first: ids of the tokens that its texts begin with, in turns.
    """

    name: str
    path: Path
    layers: tuple[int, int]
    first: tuple[int, ...]


SUBJECTS = {
    "stories260K": Subject("stories260K", STORIES, (2, 4), (1,)),
    # Without a first token of its own: " Once", " One", " The", " Lily", " Tom".
    "tinytalk": Subject("tinytalk", TINYTALK, (4, 7), ()),
}
BEGINNINGS = (" Once", " One", " The", " Lily", " Tom")


@dataclass(frozen=True)
class States:
    """States of the tokens of some texts, in a folder.

    Args:
        folder: has them.
    """

    folder: Path

    @classmethod
    def written(cls, folder: Path, texts: NDArray[np.int64], states: NDArray[np.float32]) -> States:
        """Writes states whose tokens are known.

        Args:
            folder: to write to.
            texts: token ids: [texts, tokens].
            states: of all but the first `SKIP` tokens of each: [tokens, layers, d_model].
        """
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "texts.npy", texts.astype(np.int64))
        states.astype("<f4").tofile(folder / "states")
        found = cls(folder)
        found._describe(states.shape[1:])
        return found

    @classmethod
    def planted(cls, folder: Path, known: PlantedStates, length: int = TOKENS) -> States:
        """Writes planted states as those of texts of a length; it must divide how many there are."""
        states = np.stack([known.x, known.y], 1)
        ids = known.concepts.reshape(-1, length)
        texts = np.concatenate([np.zeros((len(ids), SKIP), np.int64), ids], 1)
        return cls.written(folder, texts, states)

    @classmethod
    def of(cls, subject: Subject, tokens: int) -> States:
        """Returns at least so many states of texts that a model writes, made where there are none."""
        folder = CACHE / f"{subject.name}-{tokens}"
        if not (folder / "shape.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            _capture(subject, -(-tokens // (TOKENS - SKIP)), folder)
        return cls(folder)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Tokens, layers, d_model."""
        tokens, layers, width = json.loads((self.folder / "shape.json").read_text("utf-8"))
        return tokens, layers, width

    @cached_property
    def texts(self) -> tuple[tuple[int, ...], ...]:
        """Token ids, with the first ones."""
        return tuple(map(tuple, np.load(self.folder / "texts.npy").tolist()))

    def rows(self, first: int, last: int) -> NDArray[np.float32]:
        """Reads some rows: [tokens, layers, d_model]."""
        _, layers, width = self.shape
        count = (last - first) * layers * width
        data = np.fromfile(self.folder / "states", "<f4", count, offset=4 * first * layers * width)
        return data.reshape(-1, layers, width)

    def low(self) -> NDArray[np.float32]:
        """Reads all states of the lower layer."""
        tokens, _, width = self.shape
        found = np.empty((tokens, width), np.float32)
        for first in range(0, tokens, 1 << 14):
            part = self.rows(first, min(tokens, first + (1 << 14)))[:, 0]
            found[first : first + len(part)] = part
        return found

    def row(self, text: NDArray[np.int64], position: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the rows of tokens."""
        return text * (len(self.texts[0]) - SKIP) + position - SKIP

    def _describe(self, each: tuple[int, ...]) -> None:
        texts = np.load(self.folder / "texts.npy")
        tokens = texts.shape[0] * (texts.shape[1] - SKIP)
        assert (self.folder / "states").stat().st_size == 4 * tokens * each[0] * each[1]
        (self.folder / "shape.json").write_text(json.dumps([tokens, *each]), "utf-8")


def missing() -> str | None:
    """Says why there are no real models here, if there are none."""
    return None if SHARED.is_dir() else "real states are not measured: ../shared/models is not here"


def _capture(subject: Subject, texts: int, folder: Path) -> None:
    """Has a model write texts at temperature 1, and captures its states of them, some texts at a time."""
    loaded = load(str(subject.path), FOLDING)
    arch = loaded.model.architecture
    layout = NodeLayout(arch.layers, arch.heads, arch.d_head, arch.d_model, arch.d_mlp)
    engine = ModelEngine({"model": loaded})
    assert loaded.tokenizer is not None
    begin = subject.first or tuple(loaded.tokenizer.encode(text)[0] for text in BEGINNINGS)
    writer = AutoModelForCausalLM.from_pretrained(subject.path, dtype=torch.float32).eval()
    torch.manual_seed(0)
    every = []
    with (folder / "states").open("wb") as file:
        for first in range(0, texts, TEXTS_AT_ONCE):
            numbers = range(first, min(texts, first + TEXTS_AT_ONCE))
            starts = torch.tensor([[begin[number % len(begin)]] for number in numbers])
            ids = _write(writer, starts)
            every.append(ids)
            task = PromptTask(tuple(map(tuple, ids.tolist())))
            objective = Objective("model", task, "l2", "zero", "group", "fp32")
            state = engine.open(engine.resolve(objective, activations=False))
            spans = [Span(text, SKIP, TOKENS) for text in range(len(ids))]
            for part in span_parts(spans, part_tokens(layout)):
                operation = CaptureStates(part, subject.layers, arch.d_model, ids.size)
                (states,) = engine.run([Work(state, operation)])
                operation.check(states)
                file.write(np.ascontiguousarray(states, "<f4").tobytes())
            engine.close(state)
    np.save(folder / "texts.npy", np.concatenate(every))
    States(folder)._describe((len(subject.layers), arch.d_model))


def _write(model: torch.nn.Module, starts: torch.Tensor) -> NDArray[np.int64]:
    """Writes texts of `TOKENS` tokens at temperature 1; they go on where the model would end."""
    model.generation_config.eos_token_id = None  # type: ignore[union-attr]
    found = model.generate(  # type: ignore[operator]
        starts,
        attention_mask=torch.ones_like(starts),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=TOKENS - 1,
        pad_token_id=0,
    )
    ids: NDArray[np.int64] = found.numpy()
    assert ids.shape[1] == TOKENS
    return ids
