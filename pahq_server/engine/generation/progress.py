"""What a sample has got so far, where this process draws its tokens."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from pahq_server.core.generation import DecodedSample, Finish, SampleRequest, TokenSignal
from pahq_server.engine.generation.sampling import DrawnToken
from pahq_server.engine.generation.stopping import Detokenizer, SampleText


@dataclass
class SampleProgress:
    """A sample from its prefix to its end.

    Args:
        request: what was asked for.
        text: of its prefix and its tokens; None without a tokenizer.
        ids, logprobs, signals: of the tokens after the prefix.
        finish: why it ended; empty while it goes on.
    """

    request: SampleRequest
    text: SampleText | None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    signals: list[TokenSignal] = field(default_factory=list)
    finish: Finish = ""

    @property
    def said(self) -> tuple[int, ...]:
        """All its tokens after the prompt."""
        return (*self.request.prefix, *self.ids)

    @property
    def tokens(self) -> tuple[int, ...]:
        """All its tokens, from those of the prompt on."""
        return (*self.request.prompt, *self.said)

    @property
    def number(self) -> int:
        """The number of the next token."""
        return len(self.request.prefix) + len(self.ids)

    @property
    def left(self) -> int:
        """How many tokens it can get at most."""
        return self.request.sampling.max_tokens - self.number

    def take_prefix(self, end_tokens: Collection[int]) -> None:
        """Reads the prefix, which may be a whole sample already. Called once, before any token is added."""
        for token in self.request.prefix:
            self._read(token, end_tokens)
        self._end_at_length()

    def add(self, token: DrawnToken) -> None:
        """Adds a token; `ended` says whether it is the last one."""
        self.ids.append(token.id)
        self.logprobs.append(token.logprob)
        self.signals.append(token.signal)

    def ended(self, end_tokens: Collection[int]) -> bool:
        """Notes whether the token that was added last ends the sample, and returns that."""
        self._read(self.ids[-1], end_tokens)
        self._end_at_length()
        return bool(self.finish)

    def decoded(self) -> DecodedSample:
        """Returns how far the sample is."""
        return DecodedSample(
            ids=tuple(self.ids),
            logprobs=tuple(self.logprobs) if self.request.sampling.logprobs else (),
            signals=tuple(self.signals),
            finish=self.finish,
            text=self.text.finish() if self.finish and self.text is not None else "",
        )

    def _read(self, token: int, end_tokens: Collection[int]) -> None:
        if token in end_tokens or (self.text is not None and self.text.add(token)):
            self.finish = "stop"

    def _end_at_length(self) -> None:
        if not self.finish and self.left <= 0:
            self.finish = "length"


def text_of(request: SampleRequest, tokenizer: object) -> SampleText | None:
    """Returns the empty text of a sample; None for a tokenizer that cannot decode, or no tokenizer."""
    if not isinstance(tokenizer, Detokenizer):
        return None
    return SampleText(tokenizer, request.prompt, request.sampling.stop)
