"""Codebooks that clients send back, and the probe that says what states lose without their concepts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.concepts import CodebookSettings, Vector, forward_passes
from pahq_server.core.errors import InvalidRequestError, OtherModelError, ServerError
from pahq_server.core.operations import Operation

LEAST_CODES, MOST_CODES = 2, 8192
# What is removed from states before the probe is asked: nothing, the direction of the token's own code, and
# the three controls: a random direction, another code, and the first principal component.
REMOVED = ("nothing", "code", "random", "other_code", "component")
# About how often fitting the probe multiplies states with its weights.
PRODUCTS_PER_FIT = 200


@dataclass(frozen=True, eq=False)
class UsableCodebook:
    """A codebook that fits a served model.

    Args:
        encoder: the encoder's weights, see `CodebookSettings.encoder_weights`: float32, one dimension.
        codes: float32, [K, d_model].
    """

    encoder: Vector
    codes: Vector


@dataclass(frozen=True)
class GivenCodebook:
    """A codebook that a client gives, with the model that it is of; the values may be any.

    Args:
        layers, width: of that model.
        low: its codes are of states after so many layers.
        revision: revision of that model; empty if unknown.
        encoder, codes: little-endian float32; `usable` says what they hold.
    """

    layers: int
    width: int
    low: int
    revision: str
    encoder: bytes
    codes: bytes

    def stored(self) -> dict[str, Any]:
        """Returns the codebook as the values of a JSON object, for the database."""
        encoded = {
            name: base64.b64encode(getattr(self, name)).decode("ascii") for name in ("encoder", "codes")
        }
        return {**asdict(self), **encoded}

    @classmethod
    def of_stored(cls, fields: Mapping[str, Any]) -> GivenCodebook:
        """Reads what `stored` returned. Raises ValueError, TypeError or LookupError for what is none."""
        decoded = {name: base64.b64decode(fields[name], validate=True) for name in ("encoder", "codes")}
        return cls(**{**fields, **decoded})

    def described(self) -> dict[str, object]:
        """Returns what tells this codebook from others, for provenance: the numbers themselves are many."""
        digest = hashlib.sha256(len(self.encoder).to_bytes(8, "little") + self.encoder + self.codes)
        return {"low": self.low, "revision": self.revision, "sha256": digest.hexdigest()}

    def usable(self, field: str, layers: int, width: int, revision: str) -> UsableCodebook:
        """Returns the codebook, if it is one of a served model.

        Args:
            field: path of the codebook in the request, for errors.
            layers, width, revision: of the served model.

        Raises:
            OtherModelError: it is of another model.
            InvalidRequestError: its encoder or codes have another length or are not finite, or there is no
                such layer.
        """
        if (self.layers, self.width) != (layers, width) or self.revision not in ("", revision):
            found = _describe(self.layers, self.width, self.revision)
            raise OtherModelError(found, _describe(layers, width, revision), field)
        if not 0 <= self.low <= layers:
            detail = f"must be from 0, the embedding, to {layers}, after the last layer, got {self.low}"
            raise InvalidRequestError(f"{field}.low", detail)
        expected = 4 * CodebookSettings(width, LEAST_CODES, 1).encoder_weights
        if len(self.encoder) != expected:
            detail = f"must have {expected} bytes for states of width {width}, got {len(self.encoder)}"
            raise InvalidRequestError(f"{field}.encoder", detail)
        codes, rest = divmod(len(self.codes), 4 * width)
        if rest or not LEAST_CODES <= codes <= MOST_CODES:
            detail = (
                f"must be {LEAST_CODES} to {MOST_CODES} codes of {4 * width} bytes, "
                f"got {len(self.codes)} bytes"
            )
            raise InvalidRequestError(f"{field}.codes", detail)
        return UsableCodebook(
            self._floats(field, "encoder"), self._floats(field, "codes").reshape(codes, width)
        )

    def _floats(self, field: str, name: str) -> Vector:
        array = np.frombuffer(getattr(self, name), "<f4").astype(np.float32)
        if not np.isfinite(array).all():
            first = int((~np.isfinite(array)).argmax())
            detail = f"must hold finite numbers, got {array[first]} at {first}"
            raise InvalidRequestError(f"{field}.{name}", detail)
        return array


def _describe(layers: int, width: int, revision: str) -> str:
    known = f"revision {revision[:12]}" if revision else "revision unknown"
    return f"{layers} layers of width {width}, {known}"


@dataclass(frozen=True, eq=False)
class ProbedStates:
    """What a probe says of the held-out states.

    Args:
        predicted: their labels, after each of `REMOVED` was taken away: int32, [REMOVED, held out].
    """

    predicted: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class ProbeStates(Operation):
    """Fits a linear probe to states, and asks it for the labels of others; the result is a `ProbedStates`.

    The others are those that are held out, as they are and after h' = h - (h.c) c, for c of length 1.

    Args:
        states: h: float32, [n, d_model].
        labels: of each, from 0 on: int32, [n].
        own: the code of each: int32, [n].
        codes: the codebook: float32, [K, d_model].
        held_out: which states are not fitted to, but asked for: bool, [n]; at least one, and not all.
        seed: of the controls. Those of a state depend on the seed and its place alone, except the component,
            which is that of the states that are fitted to.
        task_tokens: tokens of all texts.
        model_weights: how many weights the served model has.
    """

    states: Vector
    labels: NDArray[np.int32]
    own: NDArray[np.int32]
    codes: Vector
    held_out: NDArray[np.bool_]
    seed: int
    task_tokens: int
    model_weights: int

    @property
    def classes(self) -> int:
        """How many labels there are."""
        return int(self.labels.max()) + 1

    @property
    def weight(self) -> float:
        products = PRODUCTS_PER_FIT * self.states.size * self.classes
        return forward_passes(products, self.task_tokens, self.model_weights)

    def check(self, result: object) -> None:
        shape = (len(REMOVED), int(self.held_out.sum()))
        if not isinstance(result, ProbedStates) or result.predicted.shape != shape:
            raise ServerError(f"the engine gave no labels of {shape[1]} states")
        predicted = result.predicted
        if predicted.dtype != np.int32 or not ((predicted >= 0) & (predicted < self.classes)).all():
            raise ServerError(f"the engine gave labels that are not from 0 to {self.classes - 1}")
