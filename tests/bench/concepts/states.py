"""States of text that stories260K has sampled, in files: those of two layers, and which token comes next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from helpers.texts import Texts
from numpy.typing import NDArray

from bench.methods.subjects import STORIES
from bench.parts import SkippedError
from pahq_server.core.activations import CaptureStates, Span
from pahq_server.engine.transformers_model import load_causal_lm
from pahq_server.models.folding import FOLDING
from pahq_server.models.loading import load

# States after so many of 5 layers are encoded, and decoded.
LOW, HIGH = 2, 4
# Texts of so many tokens are sampled, so many at a time; all but their first token and their last are used.
TOKENS, AT_ONCE = 450, 512
BEGIN = 1  # the token that every text begins with
# Tokens of a window of the decoder; each text is whole windows.
WINDOW = 64
PER_TEXT = (TOKENS - 2) // WINDOW * WINDOW


class States:
    """Files of states, one row per token, in the order of the texts.

    Args:
        folder: of the files.
        count: how many rows to use, a multiple of `WINDOW`.

    Attributes:
        low, high: states, float32, [count, width], mapped.
        following: the token after each, int64, [count].
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.low: NDArray[np.float32] = np.load(folder / "low.npy", mmap_mode="r")[:count]
        self.high: NDArray[np.float32] = np.load(folder / "high.npy", mmap_mode="r")[:count]
        self.following: NDArray[np.int64] = np.load(folder / "following.npy")[:count]


def rows_of(count: int) -> int:
    """Returns how many states there are at least ``count`` of in whole texts."""
    return -(-count // PER_TEXT) * PER_TEXT


def write(folder: Path, count: int) -> None:
    """Samples texts and captures their states, at least ``count`` of them.

    Raises SkippedError if the model is not here.
    """
    if not STORIES.is_dir():
        raise SkippedError("states are not measured: ../shared/models is not here")
    loaded, rows = load(str(STORIES), FOLDING), rows_of(count)
    width = loaded.model.architecture.d_model
    files = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (rows, width))
        for name in ("low", "high")
    }
    following, row = np.empty(rows, np.int64), 0
    plain = load_causal_lm(str(STORIES))
    while row < rows:
        texts = _sampled(plain, min(AT_ONCE, (rows - row) // PER_TEXT), seed=row)
        engine = Texts(loaded, texts)
        for number, ids in enumerate(texts):
            span = Span(number, 1, 1 + PER_TEXT)
            states = engine.run(CaptureStates([span], (LOW, HIGH), width, TOKENS * len(texts)))
            files["low"][row : row + PER_TEXT], files["high"][row : row + PER_TEXT] = states.swapaxes(0, 1)
            following[row : row + PER_TEXT] = ids[2 : 2 + PER_TEXT]
            row += PER_TEXT
    for file in files.values():
        file.flush()
    np.save(folder / "following.npy", following)


def _sampled(model: torch.nn.Module, count: int, seed: int) -> list[tuple[int, ...]]:
    """Samples texts of `TOKENS` tokens; a text that ends goes on with another story."""
    torch.manual_seed(seed)
    begin = torch.full((count, 1), BEGIN)
    with torch.inference_mode():
        found = model.generate(  # type: ignore[operator]
            begin,
            attention_mask=torch.ones_like(begin),
            do_sample=True,
            top_k=0,
            min_new_tokens=TOKENS - 1,
            max_new_tokens=TOKENS - 1,
            pad_token_id=0,
        )
    return [tuple(ids) for ids in found.tolist()]
