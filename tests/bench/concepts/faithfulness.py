"""What states lose without their concepts: how well a linear probe still tells the next token.

It is the server's own ablation (`methods.concepts.ablating`), with the concepts of any learner: the probe is
asked for the most frequent next tokens, of the states of the lower layer, after h' = h - (h.c) c for the
direction c of each token's own concept, or of a control.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.concepts.learners import Learned
from bench.concepts.states import SKIP, States
from pahq_server.core.codebooks import REMOVED, ProbeStates
from pahq_server.engine.concepts.probe import probe
from pahq_server.methods.concepts.examples import FOLDS, Examples, next_tokens

# So many texts are looked at, the first ones.
TEXTS = 400


class Faithfulness:
    """Probes the states of some texts.

    Args:
        states: of the texts.
        texts: how many are looked at.
    """

    def __init__(self, states: States, texts: int = TEXTS) -> None:
        self.examples: Examples = next_tokens(states.texts[:texts], SKIP, 0, states.shape[2])
        rows = states.row(self.examples.texts, self.examples.positions)
        self._rows: NDArray[np.int64] = rows
        self._h = np.ascontiguousarray(states.rows(0, int(rows.max()) + 1)[rows, 0])

    @property
    def chance(self) -> float:
        """Accuracy of always telling the most frequent label."""
        return float(np.bincount(self.examples.labels).max() / len(self.examples))

    def accuracies(self, learned: Learned, seed: int = 0) -> dict[str, float]:
        """Returns the probe's accuracy on texts that are held out, after each of `REMOVED` was taken away."""
        predicted = np.empty((len(REMOVED), len(self.examples)), np.int32)
        for operation in self.operations(learned, seed):
            found = probe(operation)
            operation.check(found)
            predicted[:, operation.held_out] = found.predicted
        right = (predicted == self.examples.labels).mean(1).tolist()
        return dict(zip(REMOVED, right, strict=True)) | {"chance": self.chance}

    def operations(self, learned: Learned, seed: int = 0) -> list[ProbeStates]:
        """Returns what the probe is asked for, fold by fold."""
        folds = self.examples.folds(seed)
        own = learned.own[self._rows].astype(np.int32)
        labels = self.examples.labels
        return [
            ProbeStates(self._h, labels, own, learned.codes, folds == fold, seed, 1, 1)
            for fold in range(FOLDS)
        ]
