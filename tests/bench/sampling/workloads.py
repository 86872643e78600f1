"""Samples to simulate: lengths by a law, and signals that tell part of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from pahq_server.core.generation import TokenSignal
from pahq_server.methods.generate.admission import PROBE_TOKENS

# Lengths are lognormal, in whole tokens, and end at the cap.
MU, SIGMA, CAP = 5.6, 0.6, 1024
# Trial t draws from Random(FIRST_SEED + t): first all lengths, then what is drawn on top of them.
FIRST_SEED = 1000


@dataclass(frozen=True)
class Workload:
    """Samples that are to be decoded.

    Args:
        lengths: tokens of each sample, at least 1.
        prompts: per sample, the number of its prompt.
        prompt_tokens: tokens of each prompt.
        signals: per sample, those of its first tokens; empty for a backend that does not tell.
    """

    lengths: tuple[int, ...]
    prompts: tuple[int, ...]
    prompt_tokens: int = 16
    signals: tuple[tuple[TokenSignal, ...], ...] = ()

    def signals_of(self, key: int, done: int) -> tuple[TokenSignal, ...]:
        return self.signals[key][:done] if self.signals else ()

    def by_key(self) -> dict[int, int]:
        return dict(enumerate(self.lengths))


def lognormal(generator: Random, samples: int = 32) -> Workload:
    """Samples of one prompt, without signals."""
    return Workload(
        tuple(_whole(generator.lognormvariate(MU, SIGMA)) for _ in range(samples)), (0,) * samples
    )


def told(
    generator: Random, share: float, prompts: Sequence[int] = (0,) * 32, of_prompts: float = 0.0
) -> Workload:
    """Samples whose first tokens tell part of their length, and whose prompts differ in length.

    The variance of log lengths is that of `lognormal`. Of it, ``of_prompts`` is the prompts', and of the rest
    the signals tell ``share``, as a latent u: the log-probability of an end is -6 - u + 1.5 z and the entropy
    2 + 0.3 u + 0.5 z, with z drawn anew for each token. A share of .25 to .5 is what probes on the first
    tokens of larger models are reported to reach.
    """
    names = sorted(set(prompts))
    own = {name: generator.gauss(0.0, SIGMA * math.sqrt(of_prompts)) for name in names}
    rest = SIGMA * math.sqrt(1 - of_prompts)
    lengths, signals = [], []
    for prompt in prompts:
        u = generator.gauss(0.0, 1.0)
        hidden = generator.gauss(0.0, math.sqrt(1 - share))
        log_length = MU + own[prompt] + rest * (math.sqrt(share) * u + hidden)
        lengths.append(_whole(math.exp(log_length)))
        signals.append(
            tuple(
                TokenSignal(
                    min(-1e-3, -6 - u + generator.gauss(0.0, 1.5)),
                    max(0.0, 2 + 0.3 * u + generator.gauss(0.0, 0.5)),
                )
                for _ in range(min(lengths[-1], PROBE_TOKENS))
            )
        )
    return Workload(tuple(lengths), tuple(prompts), signals=tuple(signals))


def _whole(length: float) -> int:
    return max(1, min(CAP, int(length)))
