"""Steps that are needed where only the law of lengths is known, and nothing of a single sample.

Without stopping samples, all orders take equally many then, on average: those of `fifo`. A policy that may
stop samples at will can do better; the one here runs the samples with the most tokens to go, as the law has
it for their age, which takes the fewest steps on average where an end becomes ever likelier or ever less
likely with age (Weber 1982). It computes each stopped sample anew, far too often to be of use.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Samples are stopped only after so many steps.
QUANTUM = 16


def expected_remaining(law: Sequence[int]) -> npt.NDArray[np.float64]:
    """Returns the mean number of tokens to go by age, from age 0, up to the longest of the law's lengths.

    Args:
        law: lengths drawn from it.
    """
    alive = np.array([sum(length > age for length in law) for age in range(max(law))], float)
    return np.asarray(np.cumsum(alive[::-1])[::-1] / alive)


def steps_and_peak(
    lengths: Sequence[int], slots: int, remaining: npt.NDArray[np.float64], prompt_tokens: int
) -> tuple[int, int]:
    """Decodes samples of these lengths.

    Args:
        lengths: of the samples, none above the law's longest.
        slots: how many run at a time.
        remaining: by age; see `expected_remaining`.
        prompt_tokens: of the prompt.

    Returns:
        Decode steps, and the most tokens whose keys and values were held at once.
    """
    done, steps, peak = [0] * len(lengths), 0, 0
    running: set[int] = set()
    while going := [key for key, length in enumerate(lengths) if done[key] < length]:
        going.sort(key=lambda key: (-remaining[done[key]], key not in running))
        running = set(going[:slots])
        turn = min(QUANTUM, *(lengths[key] - done[key] for key in running))
        for key in running:
            done[key] += turn
        steps += turn
        peak = max(peak, sum(prompt_tokens + done[key] for key in running))
    return steps, peak
