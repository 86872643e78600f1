"""What states lose without their concepts (CLVQ-VAE, arXiv:2506.20040), as a method of jobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.activations import CaptureStates, part_tokens, span_parts
from pahq_server.core.artifact import Artifact, Progress, pack
from pahq_server.core.codebooks import (
    PRODUCTS_PER_FIT,
    REMOVED,
    GivenCodebook,
    ProbedStates,
    ProbeStates,
)
from pahq_server.core.concepts import AssignCodes, AssignedCodes, NameTokens, forward_passes
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.errors import InvalidRequestError
from pahq_server.methods.base import (
    Method,
    MethodContext,
    Steps,
    layout_of,
    refuse_rounded_activations,
    whole_number,
)
from pahq_server.methods.concepts.assigning import check_codebook_type, usable_codebook
from pahq_server.methods.concepts.examples import FOLDS, Examples, labelled, next_tokens
from pahq_server.methods.concepts.parameters import MOST_SEED, SKIP
from pahq_server.methods.concepts.tokens import model_weights

KIND, VERSION = "concept_ablation", 1


@dataclass(frozen=True)
class AblateParameters:
    """Parameters of `ablate_concepts`; see `AblateConceptsParameters` in methods.proto.

    Args:
        codebook: of the client.
        layer: states after so many layers are probed.
        labels: of each text, from 0 on; empty for the next tokens.
        positions: with labels, of the salient token of each text; empty for the last.
        seed: of the controls, of what is held out when, and of the draw of tokens.
        skip: without labels, how many tokens at the start of each text only give context.

    Raises InvalidRequestError for a value that is not allowed.
    """

    codebook: GivenCodebook
    layer: int = 0
    labels: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    seed: int = 0
    skip: int = SKIP

    def __post_init__(self) -> None:
        check_codebook_type(self.codebook)
        for name, most in (("skip", 2**31 - 1), ("layer", 2**31 - 1), ("seed", MOST_SEED)):
            whole_number(name, getattr(self, name), 0, most)
        for name, least in (("labels", 0), ("positions", -(2**31))):
            given = getattr(self, name)
            if not isinstance(given, tuple | list):
                raise InvalidRequestError(name, f"must be a list of whole numbers, got {given!r}")
            object.__setattr__(self, name, tuple(given))
            for number, value in enumerate(given):
                if not isinstance(value, int) or isinstance(value, bool) or value < least:
                    detail = f"must be a whole number from {least} on, got {value!r}"
                    raise InvalidRequestError(f"{name}[{number}]", detail)
        if self.positions and not self.labels:
            raise InvalidRequestError("positions", "are those of labelled texts: give labels as well")

    def examples(self, resolved: ResolvedObjective) -> Examples:
        """Returns which states are probed. Raises InvalidRequestError for texts that do not fit."""
        texts, width = resolved.task.clean, layout_of(resolved).d_model
        if not self.labels:
            return next_tokens(texts, self.skip, self.seed, width)
        return labelled(texts, self.labels, self.positions, width)


class AblateConcepts(Method[AblateParameters]):
    """Measures the accuracy of a linear probe before and after codes are removed from states.

    Each state is asked for by the probe of its fold, which was fitted to the states of other texts. The
    artifact is what was told of each. It keeps no journal: after a restart it begins again, to the same end.
    """

    name, parameters, unit = "ablate_concepts", AblateParameters, "texts"
    needs_activations = ablates = False

    def stored(self, parameters: AblateParameters) -> dict[str, Any]:
        fields = dict(vars(parameters))
        lists = {name: list(fields[name]) for name in ("labels", "positions")}
        return {**fields, **lists, "codebook": parameters.codebook.stored()}

    def read_stored(self, fields: Mapping[str, Any]) -> AblateParameters:
        return self.read({**fields, "codebook": GivenCodebook.of_stored(fields["codebook"])})

    def described(self, parameters: AblateParameters) -> dict[str, object]:
        return {**self.stored(parameters), "codebook": parameters.codebook.described()}

    def check(self, parameters: AblateParameters, resolved: ResolvedObjective) -> None:
        usable_codebook(parameters.codebook, resolved)
        layers = layout_of(resolved).layers
        if parameters.layer > layers:
            detail = f"must be from 0, the embedding, to {layers}, after the last layer of the model"
            raise InvalidRequestError("layer", f"{detail}, got {parameters.layer}")
        parameters.examples(resolved)
        refuse_rounded_activations(resolved, "states are not captured")

    def total(self, parameters: AblateParameters, resolved: ResolvedObjective) -> int:
        return len(parameters.examples(resolved).spans()) + FOLDS

    def weight(self, parameters: AblateParameters, resolved: ResolvedObjective) -> float:
        layout, examples = layout_of(resolved), parameters.examples(resolved)
        products = FOLDS * PRODUCTS_PER_FIT * len(examples) * layout.d_model * len(examples.classes)
        weights = model_weights(layout, resolved.gated_mlps)
        return 1.0 + forward_passes(products, resolved.task.num_tokens, weights)

    def run(self, context: MethodContext[AblateParameters]) -> Steps:
        resolved, asked = context.resolved, context.parameters
        layout, book = layout_of(resolved), usable_codebook(asked.codebook, resolved)
        cost = (resolved.task.num_tokens, model_weights(layout, resolved.gated_mlps))
        examples = asked.examples(resolved)
        layers = tuple(sorted({asked.codebook.low, asked.layer}))
        low, probed = layers.index(asked.codebook.low), layers.index(asked.layer)
        own: list[NDArray[np.int32]] = []
        states: list[NDArray[np.float32]] = []
        done = 0
        for part in span_parts(examples.spans(), part_tokens(layout)):
            captured = yield CaptureStates(part, layers, layout.d_model, cost[0])
            rows = captured[examples.rows_of(part)]
            x = np.ascontiguousarray(rows[:, low])
            found: AssignedCodes = yield AssignCodes(book.encoder, book.codes, x, *cost)
            own.append(found.codes)
            states.append(rows[:, probed])
            done += len(part)
            context.tell(Progress(done, "capturing states"))
        codes, h = np.concatenate(own), np.concatenate(states)
        folds = examples.folds(asked.seed)
        predicted = np.empty((len(REMOVED), len(examples)), np.int32)
        for fold in range(FOLDS):
            held_out = folds == fold
            probed_states: ProbedStates = yield ProbeStates(
                h, examples.labels, codes, book.codes, held_out, asked.seed, *cost
            )
            predicted[:, held_out] = probed_states.predicted
            done += 1
            context.tell(Progress(done, "probing"))
        names = () if asked.labels else (yield NameTokens(tuple(examples.classes.tolist())))
        header = {
            "kind": KIND,
            "version": VERSION,
            "low": asked.codebook.low,
            "layer": asked.layer,
            "codes": len(book.codes),
            "folds": FOLDS,
            "removed": list(REMOVED),
            "next_tokens": not asked.labels,
            "names": list(names),
        }
        arrays: dict[str, NDArray[Any]] = {
            "texts": examples.texts.astype(np.int64),
            "positions": examples.positions.astype(np.int64),
            "labels": examples.labels,
            "classes": examples.classes,
            "own": codes,
            "predicted": predicted.ravel(),
        }
        figures = _figures(examples, predicted)
        return Artifact(KIND, VERSION, pack(header, arrays), figures, tuple(_warnings(figures, examples)))


def _figures(examples: Examples, predicted: NDArray[np.int32]) -> dict[str, float]:
    """Returns the accuracy after each of `REMOVED`, and that of always telling the most frequent label."""
    right = (predicted == examples.labels).mean(1).tolist()
    chance = float(np.bincount(examples.labels).max() / len(examples))
    return {**dict(zip(("accuracy", *REMOVED[1:]), right, strict=True)), "chance": chance}


def _warnings(figures: Mapping[str, float], examples: Examples) -> Iterator[str]:
    """Yields what may mislead about the figures."""
    chance = figures["chance"]
    error = np.sqrt(chance * (1 - chance) / len(examples))
    if figures["accuracy"] < chance + 2 * error:
        yield (
            f"The probe is right about {figures['accuracy']:.1%} of the states, hardly more than the "
            f"{chance:.1%} of chance: labels are not to be read in these states, so that nothing can go. "
            "Use other labels, another layer, or more texts."
        )
