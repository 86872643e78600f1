"""The table of policies must not change, because results are stored under the names of policies."""

from __future__ import annotations

from dataclasses import fields

import pytest

from pahq_server.precision.policy import POLICIES, Format, Policy
from pahq_server.precision.quantized import DTYPES, LARGEST, SECOND_TERM_FACTOR

FP32, BF16, INT8, E4M3 = Format.FP32, Format.BF16, Format.INT8, Format.E4M3

# Formats of weights, of inputs of MLPs and unembedding (with the number of terms), and of inputs of heads.
TABLE = [
    ("fp32", (FP32, FP32, FP32), (FP32, 1), FP32, "differences", False),
    ("bf16", (BF16, BF16, BF16), (BF16, 1), FP32, "differences", False),
    ("pahq-int8", (INT8, INT8, INT8), (INT8, 2), FP32, "differences", True),
    ("pahq-int8-weight", (INT8, INT8, INT8), (FP32, 1), FP32, "differences", True),
    ("pahq-fp8", (E4M3, E4M3, E4M3), (E4M3, 2), FP32, "differences", True),
    ("paper", (E4M3, BF16, FP32), (FP32, 1), FP32, "activations", True),
    ("rtn-int8", (INT8, INT8, INT8), (INT8, 1), INT8, "activations", False),
    ("rtn-fp8", (E4M3, E4M3, E4M3), (E4M3, 1), E4M3, "activations", False),
    ("rtn-int8-weight", (INT8, INT8, INT8), (FP32, 1), FP32, "activations", False),
]


@pytest.mark.parametrize(("name", "weights", "inputs", "head_inputs", "operand", "promotes"), TABLE)
def test_a_policy_is_what_its_name_says(
    name: str,
    weights: tuple[Format, Format, Format],
    inputs: tuple[Format, int],
    head_inputs: Format,
    operand: str,
    promotes: bool,
) -> None:
    policy = POLICIES[name]
    assert (policy.heads, policy.mlps, policy.embeddings) == weights
    assert ((policy.inputs, policy.terms), policy.head_inputs) == (inputs, head_inputs)
    assert (policy.operand, policy.promotes) == (operand, promotes)


def test_there_are_no_others_and_each_has_its_own_name() -> None:
    assert list(POLICIES) == [name for name, *_ in TABLE]
    assert [policy.name for policy in POLICIES.values()] == list(POLICIES)
    assert len({_without_name(policy) for policy in POLICIES.values()}) == len(POLICIES)


def test_inputs_are_rounded_to_the_format_of_all_weights_or_not_at_all() -> None:
    for policy in POLICIES.values():
        formats = {policy.heads, policy.mlps, policy.embeddings}
        assert policy.inputs is FP32 or formats == {policy.inputs}


def test_differences_leave_inputs_of_heads_as_they_are() -> None:
    """The sparse executor multiplies matrices of heads, so inputs between them cannot be rounded."""
    for policy in POLICIES.values():
        assert policy.operand == "activations" or policy.head_inputs is FP32


@pytest.mark.parametrize("name", POLICIES)
def test_inputs_of_small_matrices_are_not_written_as_two_terms(name: str) -> None:
    """The rule is fixed, since policy and model determine every bit."""
    policy = POLICIES[name]
    two_terms = name in ("pahq-int8", "pahq-fp8")
    # Toy models; a model 128 wide with 512 hidden units; one that is 256 wide; the unembedding of the first.
    for weights, small in ((12 * 48, False), (1 << 12, True), (128 * 512, True), (256 * 1024, False)):
        assert policy.inputs_of(weights) is (FP32 if small and two_terms else policy.inputs)
    assert policy.inputs_of(128 * 14019) is policy.inputs


def test_formats_of_8_bits_are_known_in_full() -> None:
    assert set(DTYPES) == set(LARGEST) == set(SECOND_TERM_FACTOR) == {INT8, E4M3}
    assert all(dtype.itemsize == 1 for dtype in DTYPES.values())


def _without_name(policy: Policy) -> tuple[object, ...]:
    return tuple(getattr(policy, field.name) for field in fields(policy) if field.name != "name")
