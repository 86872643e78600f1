"""Finished samples: their seeds, the journal records that keep them, and the artifact that they become."""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.artifact import pack
from pahq_server.core.generation import Finish
from pahq_server.core.task import TokenIds

KIND, VERSION = "samples", 1
FINISHES: tuple[Finish, ...] = ("", "stop", "length")
# Key of the sample, number of tokens, whether there are log-probabilities, why it ended, bytes of its text.
_HEAD = struct.Struct("<QQ?BQ")


@dataclass(frozen=True)
class FinishedSample:
    """A sample that has ended.

    Args:
        key: its number: samples of the first prompt come first.
        ids, logprobs, finish, text: see `core.generation.DecodedSample`, from the beginning of the sample;
            log-probabilities in float32.
    """

    key: int
    ids: Sequence[int]
    logprobs: Sequence[float]
    finish: Finish
    text: str

    def __post_init__(self) -> None:
        # 8 and 4 bytes per token. Numbers in a tuple have some 36 each, and there may be millions.
        object.__setattr__(self, "ids", array("q", self.ids))
        object.__setattr__(self, "logprobs", array("f", self.logprobs))


@dataclass(frozen=True)
class RunTotals:
    """What generating has taken so far, over all processes that worked on a job.

    Args:
        steps: forward passes.
        peak_kv_tokens: the most tokens whose keys and values were in memory at once.
        prompt_computed, prompt_reused: prompt and prefix tokens that were computed, or were in memory.
    """

    steps: int = 0
    peak_kv_tokens: int = 0
    prompt_computed: int = 0
    prompt_reused: int = 0


_TOTALS = struct.Struct("<QQQQ")


def sample_seed(seed: int, index: int) -> int:
    """Returns the seed of a sample, from 0 to 2**63 - 1.

    Args:
        seed: of the request.
        index: the sample's number among those of its prompt.
    """
    digest = hashlib.sha256(f"{seed}/{index}".encode("ascii")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def record(sample: FinishedSample, totals: RunTotals) -> bytes:
    """Returns the journal record of a sample, with what had been spent when it ended."""
    text = sample.text.encode()
    head = _HEAD.pack(
        sample.key, len(sample.ids), bool(sample.logprobs), FINISHES.index(sample.finish), len(text)
    )
    spent = _TOTALS.pack(*vars(totals).values())
    ids = np.asarray(sample.ids, "<i8").tobytes()
    return b"".join((head, spent, ids, np.asarray(sample.logprobs, "<f4").tobytes(), text))


def read_records(journal: Iterable[bytes]) -> tuple[list[FinishedSample], RunTotals]:
    """Reads what `record` returned, in pieces of whole records. Raises ValueError for other bytes."""
    samples, totals = [], RunTotals()
    for piece in journal:
        for sample, spent in _records(memoryview(piece)):
            samples.append(sample)
            totals = spent
    return samples, totals


def _records(piece: memoryview) -> Iterator[tuple[FinishedSample, RunTotals]]:
    at = 0

    def take(size: int) -> memoryview:
        nonlocal at
        taken = piece[at : at + size]
        if len(taken) < size:
            raise ValueError("a record of a sample is cut off")
        at += size
        return taken

    while at < len(piece):
        key, count, has_logprobs, finish, text_bytes = _HEAD.unpack(take(_HEAD.size))
        if not 0 < finish < len(FINISHES):
            raise ValueError(f"a sample ended for reason {finish}, which there is not")
        totals = RunTotals(*_TOTALS.unpack(take(_TOTALS.size)))
        ids = np.frombuffer(take(8 * count), "<i8").tolist()
        logprobs = np.frombuffer(take(4 * count), "<f4").tolist() if has_logprobs else []
        text = bytes(take(text_bytes)).decode()
        yield FinishedSample(key, ids, logprobs, FINISHES[finish], text), totals


def samples_bytes(
    samples: Iterable[FinishedSample], prompts: Sequence[TokenIds], n: int, logprobs: bool, texts: bool
) -> bytes:
    """Writes the artifact, version 1.

    Its arrays: ``ids`` (int64) and ``offsets`` (int64, one more than samples), ``finish`` (uint8, an index
    into the header's ``finishes``), ``prompt`` and ``index`` (int32), ``prompt_ids`` and ``prompt_offsets``
    (int64); ``logprobs`` (float32, as long as ``ids``) if asked for; ``text`` (uint8, UTF-8) and
    ``text_offsets`` (int64) where the model has a tokenizer. Samples are in the order of their prompts, then
    of their numbers.

    Args:
        samples: in any order.
        prompts: token ids of all prompts.
        n: samples of each.
        logprobs: whether the samples have log-probabilities.
        texts: whether they have texts.
    """
    ordered = sorted(samples, key=lambda sample: sample.key)
    arrays: dict[str, NDArray[np.generic]] = {
        "ids": _joined([sample.ids for sample in ordered], np.int64),
        "offsets": _offsets([len(sample.ids) for sample in ordered]),
        "finish": np.array([FINISHES.index(sample.finish) for sample in ordered], np.uint8),
        "prompt": np.array([sample.key // n for sample in ordered], np.int32),
        "index": np.array([sample.key % n for sample in ordered], np.int32),
        "prompt_ids": _joined(prompts, np.int64),
        "prompt_offsets": _offsets(list(map(len, prompts))),
    }
    if logprobs:
        arrays["logprobs"] = _joined([each.logprobs for each in ordered], np.float32)
    if texts:
        encoded = [sample.text.encode() for sample in ordered]
        arrays["text"] = np.frombuffer(b"".join(encoded), np.uint8)
        arrays["text_offsets"] = _offsets(list(map(len, encoded)))
    header = {"kind": KIND, "version": VERSION, "n": n, "finishes": list(FINISHES)}
    return pack(header, arrays)


def _joined(lists: Sequence[Sequence[float]], dtype: type[np.generic]) -> NDArray[np.generic]:
    return np.concatenate([np.empty(0, dtype), *(np.asarray(each, dtype) for each in lists)])


def _offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
