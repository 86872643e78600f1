"""The table of policies is a promise: results are stored under their names."""

from __future__ import annotations

import pytest

from pahq_server.precision.policy import POLICIES, Format, Policy
from pahq_server.precision.quantized import DTYPES, LARGEST

FP32, BF16, INT8, E4M3 = Format.FP32, Format.BF16, Format.INT8, Format.E4M3

TABLE = [
    ("fp32", (FP32, FP32, FP32), FP32, "differences", False),
    ("bf16", (BF16, BF16, BF16), BF16, "differences", False),
    ("pahq-int8", (INT8, INT8, INT8), INT8, "differences", True),
    ("pahq-int8-weight", (INT8, INT8, INT8), FP32, "differences", True),
    ("pahq-fp8", (E4M3, E4M3, E4M3), E4M3, "differences", True),
    ("paper", (E4M3, BF16, FP32), FP32, "activations", True),
    ("rtn-int8", (INT8, INT8, INT8), INT8, "activations", False),
    ("rtn-fp8", (E4M3, E4M3, E4M3), E4M3, "activations", False),
    ("rtn-int8-weight", (INT8, INT8, INT8), FP32, "activations", False),
]


@pytest.mark.parametrize(("name", "weights", "inputs", "operand", "promotes"), TABLE)
def test_a_policy_is_what_its_name_says(
    name: str, weights: tuple[Format, Format, Format], inputs: Format, operand: str, promotes: bool
) -> None:
    policy = POLICIES[name]
    assert (policy.heads, policy.mlps, policy.ends) == weights
    assert (policy.inputs, policy.operand, policy.promotes) == (inputs, operand, promotes)


def test_there_are_no_others_and_each_has_its_own_name() -> None:
    assert list(POLICIES) == [name for name, *_ in TABLE]
    assert [policy.name for policy in POLICIES.values()] == list(POLICIES)
    assert len({_without_name(policy) for policy in POLICIES.values()}) == len(POLICIES)


def test_inputs_are_rounded_to_the_format_of_all_weights_or_not_at_all() -> None:
    for policy in POLICIES.values():
        formats = {policy.heads, policy.mlps, policy.ends}
        assert policy.inputs is FP32 or formats == {policy.inputs}


def test_formats_of_8_bits_are_known_in_full() -> None:
    assert set(DTYPES) == set(LARGEST) == {INT8, E4M3}
    assert all(dtype.itemsize == 1 for dtype in DTYPES.values())


def _without_name(policy: Policy) -> tuple[object, ...]:
    return (policy.heads, policy.mlps, policy.ends, policy.inputs, policy.operand, policy.promotes)
