"""Precision policies: formats of weights and inputs, and what runs in full precision.

`POLICIES` lists them by name. Most work on *differences*: the full circuit runs in full precision once, and
only what a patched pass changes against it is computed with rounded weights. Differences are small, so their
rounding errors are, too, and an unchanged value has an error of exactly zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

# Matrices with so many weights are too small for 8-bit arithmetic to save time, as inputs must first be
# written as two 8-bit terms: their inputs stay float32. Still smaller matrices, of toy models, take no time
# either way and are treated like large ones, so that the effect of rounding can be studied on them.
SMALL_WEIGHTS = range(1 << 12, 1 << 17)

# What rounded linear maps are applied to: differences between a patched pass and its base circuit, or the
# activations themselves.
Operand = Literal["differences", "activations"]


class Format(Enum):
    """A number format of weights, or of the inputs of linear maps."""

    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"
    E4M3 = "e4m3"


@dataclass(frozen=True)
class Policy:
    """How the patched passes of a job are computed; the name alone determines it, on every device.

    Args:
        name: by which jobs ask for the policy.
        heads: format of the weights of attention heads. 8-bit formats have one scale per output.
        mlps: format of the weights of MLPs.
        embeddings: format of the weights of embedding and unembedding.
        inputs: format to which inputs of MLPs and of the unembedding are rounded; 8-bit formats have one
            scale per token. Products in bfloat16 have outputs in bfloat16. See `inputs_of` for small
            matrices.
        operand: what linear maps are applied to. With "differences", base circuits run in full precision.
        promotes: whether the head into which the removed edge leads runs in full precision (PAHQ,
            arXiv:2510.23264).
        head_inputs: format of the inputs of attention heads. Heads are too small for 8-bit arithmetic to save
            time: 64 numbers take as long to round as to multiply.
        terms: by how many numbers an 8-bit format represents one input (see `quantized.rounded_rows`). One is
            not enough for differences of MLPs, of which a few are large: its error is far above that of 8-bit
            weights. Two take twice the arithmetic of one, half that of float32, and leave the weights as the
            only source of errors.
    """

    name: str
    heads: Format
    mlps: Format
    embeddings: Format
    inputs: Format
    operand: Operand
    promotes: bool
    head_inputs: Format = Format.FP32
    terms: int = 1

    def inputs_of(self, weights: int) -> Format:
        """Returns the format of inputs of an MLP's matrix or of the unembedding, by its number of weights."""
        return Format.FP32 if self.terms > 1 and weights in SMALL_WEIGHTS else self.inputs


def _of_differences(name: str, weights: Format, inputs: Format, promotes: bool, terms: int = 1) -> Policy:
    """Makes a policy that rounds weights and differences; inputs of heads stay in full precision."""
    return Policy(name, weights, weights, weights, inputs, "differences", promotes, Format.FP32, terms)


def _to_nearest(name: str, weights: Format, inputs: Format) -> Policy:
    """Makes a policy that rounds weights and activations to nearest (RTN), as quantised models usually do."""
    return Policy(name, weights, weights, weights, inputs, "activations", False, inputs)


_ALL = (
    _of_differences("fp32", Format.FP32, Format.FP32, False),
    _of_differences("bf16", Format.BF16, Format.BF16, False),
    _of_differences("pahq-int8", Format.INT8, Format.INT8, True, terms=2),
    _of_differences("pahq-int8-weight", Format.INT8, Format.FP32, True),
    _of_differences("pahq-fp8", Format.E4M3, Format.E4M3, True, terms=2),
    # PAHQ as published: heads in fp8 and MLPs in bf16, activations are rounded, one head at a time is
    # promoted.
    Policy("paper", Format.E4M3, Format.BF16, Format.FP32, Format.FP32, "activations", True),
    _to_nearest("rtn-int8", Format.INT8, Format.INT8),
    _to_nearest("rtn-fp8", Format.E4M3, Format.E4M3),
    _to_nearest("rtn-int8-weight", Format.INT8, Format.FP32),
)

POLICIES: dict[str, Policy] = {policy.name: policy for policy in _ALL}
