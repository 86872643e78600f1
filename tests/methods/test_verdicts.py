"""Verdicts as bytes: what is written comes back to the last bit, and the format never changes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pahq_server.methods.verdicts import VERDICT_BYTES, Verdict, pack_verdicts, unpack_verdicts

floats = st.floats(allow_nan=False, width=64)
verdicts = st.builds(
    Verdict, gate=st.booleans(), index=st.integers(0, 1 << 40), score=floats, delta=floats, kept=st.booleans()
)


@given(st.lists(verdicts, max_size=20))
def test_verdicts_come_back(some: list[Verdict]) -> None:
    found = unpack_verdicts(pack_verdicts(some))
    assert found == some
    for a, b in zip(found, some, strict=True):
        assert struct.pack("dd", a.score, a.delta) == struct.pack("dd", b.score, b.delta)  # also -0.0
        assert (type(a.gate), type(a.index), type(a.score)) == (bool, int, float)


def test_the_format_is_that_of_stored_journals() -> None:
    """Journals of unfinished jobs outlive the version that wrote them."""
    data = pack_verdicts([Verdict(True, 258, 1.5, -2.0, False), Verdict(False, 0, 0.0, 0.25, True)])
    assert data == struct.pack("<?qdd?", True, 258, 1.5, -2.0, False) + struct.pack(
        "<?qdd?", False, 0, 0.0, 0.25, True
    )
    assert len(data) == 2 * VERDICT_BYTES == 52


def test_bytes_that_are_no_verdicts_are_refused() -> None:
    with pytest.raises(ValueError, match="size"):
        unpack_verdicts(b"\0" * (VERDICT_BYTES + 1))
