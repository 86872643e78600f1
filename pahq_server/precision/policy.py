"""Precision policies: what weights are kept in, what is rounded, and what runs in full precision."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

# Of matrices with so many weights, writing differences as two 8-bit terms and putting their products together
# takes longer than 8-bit arithmetic saves: there, differences are multiplied as they are, in float32, by the
# rounded weights. Smaller matrices, of toy models, take no time either way and are treated as large ones, so
# that what rounding does can be studied on them.
SMALL_WEIGHTS = range(1 << 12, 1 << 17)

# What linear maps act on: what a row changes against its base, or the activations themselves.
Operand = Literal["differences", "activations"]


class Format(Enum):
    """A number format of weights, or of the inputs of linear maps."""

    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"
    E4M3 = "e4m3"


@dataclass(frozen=True)
class Policy:
    """How the rows of a job are computed. Its name alone determines its arithmetic, on every device.

    Args:
        name: what jobs ask for.
        heads: what weights of attention heads are rounded to, 8-bit formats with one scale per output.
        mlps: the same for MLPs.
        ends: the same for embedding and unembedding.
        inputs: what inputs of MLPs and of the unembedding are rounded to, 8-bit formats with one scale per
            token; maps in bfloat16 give bfloat16. See `inputs_of` for those of small matrices.
        head_inputs: the same for inputs of attention heads' maps. These are too short for 8-bit arithmetic
            to gain anything: 64 numbers in or out take as long to round as to multiply.
        terms: as how many rounded numbers an input of an 8-bit format is written; see `rounded_rows`. One is
            not enough for the differences of MLPs, which are all small but for a few: the error of one term
            exceeds that of 8-bit weights by far. Two cost twice the arithmetic of one, half of that of
            float32, and leave the weights as the only source of errors.
        operand: what is rounded. With ``differences`` the values of bases are in full precision.
        promotes: whether the head that a row's last edge leads into runs in full precision (PAHQ,
            arXiv:2510.23264).
    """

    name: str
    heads: Format
    mlps: Format
    ends: Format
    inputs: Format
    operand: Operand
    promotes: bool
    head_inputs: Format = Format.FP32
    terms: int = 1

    def inputs_of(self, weights: int) -> Format:
        """What inputs of an MLP's map or of the unembedding are rounded to, by the number of its weights."""
        return Format.FP32 if self.terms > 1 and weights in SMALL_WEIGHTS else self.inputs


def _of_differences(name: str, weights: Format, inputs: Format, promotes: bool, terms: int = 1) -> Policy:
    return Policy(name, weights, weights, weights, inputs, "differences", promotes, Format.FP32, terms)


def _to_nearest(name: str, weights: Format, inputs: Format) -> Policy:
    """Everything is rounded as it is, once."""
    return Policy(name, weights, weights, weights, inputs, "activations", False, inputs)


_ALL = (
    _of_differences("fp32", Format.FP32, Format.FP32, False),
    _of_differences("bf16", Format.BF16, Format.BF16, False),
    _of_differences("pahq-int8", Format.INT8, Format.INT8, True, terms=2),
    _of_differences("pahq-int8-weight", Format.INT8, Format.FP32, True),
    _of_differences("pahq-fp8", Format.E4M3, Format.E4M3, True, terms=2),
    # Heads in fp8 and MLPs in bf16, rounded as they are, one head at a time promoted: PAHQ as published.
    Policy("paper", Format.E4M3, Format.BF16, Format.FP32, Format.FP32, "activations", True),
    _to_nearest("rtn-int8", Format.INT8, Format.INT8),
    _to_nearest("rtn-fp8", Format.E4M3, Format.E4M3),
    _to_nearest("rtn-int8-weight", Format.INT8, Format.FP32),
)

POLICIES: dict[str, Policy] = {policy.name: policy for policy in _ALL}
