"""What ends a sample: end tokens and stop texts, which are looked for token by token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from pahq_server.core.task import TokenIds
from pahq_server.models.files import CONFIG, read_json

# How many tokens before a sample are decoded with it: enough for what a decoder does at the beginning of a
# text, such as dropping its first space.
_CONTEXT = 8
# What decoders write for bytes that are no character, such as the first half of one.
_NO_CHARACTER = "\ufffd"


@runtime_checkable
class Detokenizer(Protocol):
    """A tokenizer that turns tokens into text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, special ones included. Bytes that are no character are "\ufffd"."""
        ...


class SampleText:
    """What a sample adds to the text of its prompt, as far as its tokens are whole characters.

    It depends on the prompt's last tokens and the sample's alone, not on when they are added.

    Args:
        tokenizer: decodes tokens.
        prompt: token ids before the sample.
        stop: texts that end the sample.

    Attributes:
        text: what the tokens so far say, up to the stop text.
        stopped: whether a stop text was found.
    """

    def __init__(self, tokenizer: Detokenizer, prompt: Sequence[int], stop: Iterable[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._longest_stop = max(map(len, self._stop), default=0)
        self._ids = list(prompt[-_CONTEXT:])
        # Tokens before the first position are no longer decoded. Those before the second are in the text.
        self._begin, self._end = 0, len(self._ids)
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> bool:
        """Adds a token; returns whether a stop text is complete. Then nothing can be added any more."""
        self._ids.append(token)
        self._take(whole_characters=True)
        return self.stopped

    def finish(self) -> str:
        """Adds what is no whole character, unless a stop text was found, and returns the text."""
        if not self.stopped:
            self._take(whole_characters=False)
        return self.text

    def _take(self, whole_characters: bool) -> None:
        """Adds the text of new tokens; if ``whole_characters``, only once they end with a whole one."""
        before = self._tokenizer.decode(self._ids[self._begin : self._end])
        whole = self._tokenizer.decode(self._ids[self._begin :])
        if len(whole) <= len(before) or (whole_characters and whole.endswith(_NO_CHARACTER)):
            return
        searched = max(0, len(self.text) - self._longest_stop + 1)
        self.text += whole[len(before) :]
        self._begin, self._end = self._end, len(self._ids)
        found = [place for text in self._stop if (place := self.text.find(text, searched)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True


def sample_text(tokenizer: Detokenizer, prompt: Sequence[int], ids: Iterable[int]) -> str:
    """Returns what tokens after a prompt say."""
    text = SampleText(tokenizer, prompt)
    for token in ids:
        text.add(token)
    return text.finish()


def end_tokens(directory: Path, vocabulary: int) -> TokenIds:
    """Returns the ids that end a sample, as a checkpoint says, without those that the model cannot give."""
    for name in ("generation_config.json", CONFIG):
        if (directory / name).exists():
            named = read_json(directory / name).get("eos_token_id")
            if named is not None:
                ids = named if isinstance(named, list) else [named]
                return tuple(sorted({id for id in ids if isinstance(id, int) and 0 <= id < vocabulary}))
    return ()
