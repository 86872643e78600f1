"""Precision policies: what weights are kept in, what is rounded, and what runs in full precision."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

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
        inputs: what inputs of linear maps are rounded to, 8-bit formats with one scale per token; maps in
            bfloat16 give bfloat16.
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


def _uniform(name: str, weights: Format, inputs: Format, operand: Operand, promotes: bool) -> Policy:
    return Policy(name, weights, weights, weights, inputs, operand, promotes)


_ALL = (
    _uniform("fp32", Format.FP32, Format.FP32, "differences", False),
    _uniform("bf16", Format.BF16, Format.BF16, "differences", False),
    _uniform("pahq-int8", Format.INT8, Format.INT8, "differences", True),
    _uniform("pahq-int8-weight", Format.INT8, Format.FP32, "differences", True),
    _uniform("pahq-fp8", Format.E4M3, Format.E4M3, "differences", True),
    # Heads in fp8 and MLPs in bf16, rounded as they are, one head at a time promoted: PAHQ as published.
    Policy("paper", Format.E4M3, Format.BF16, Format.FP32, Format.FP32, "activations", True),
    _uniform("rtn-int8", Format.INT8, Format.INT8, "activations", False),
    _uniform("rtn-fp8", Format.E4M3, Format.E4M3, "activations", False),
    _uniform("rtn-int8-weight", Format.INT8, Format.FP32, "activations", False),
)

POLICIES: dict[str, Policy] = {policy.name: policy for policy in _ALL}
