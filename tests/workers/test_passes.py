"""Passes come to a worker as they were, and base circuits stay the same objects from message to message."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from helpers.random_passes import random_passes

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.errors import ServerError
from pahq_server.core.graph import Graph
from pahq_server.workers.codec import decode, encode
from pahq_server.workers.passes import ReceivedBases, SentBases, SentPasses

GRAPH = Graph(layers=2, heads=3, kv_heads=3)


def through(sent: SentPasses) -> SentPasses:
    """What comes of a message on its way."""
    found = decode(encode(sent))
    assert isinstance(found, SentPasses)
    return found


def lineage(base: BaseCircuit) -> list[BaseCircuit]:
    found = [base]
    while (parent := found[-1].parent) is not None:
        found.append(parent)
    return found


def content(passes: Sequence[PatchedPass]) -> list[tuple[object, ...]]:
    """What scores depend on, by value."""
    return [
        (each.removed, each.receiver, *(base.circuit.key for base in lineage(each.base_circuit)))
        for each in passes
    ]


@pytest.mark.parametrize("seed", range(20))
def test_random_passes_in_several_messages(seed: int) -> None:
    """The same object on one side is the same object on the other, and no other ever is."""
    draw, sender, receiver = Random(seed), SentBases(), ReceivedBases()
    pools = [random_passes(GRAPH, number) for number in range(3)]
    before: dict[int, BaseCircuit] = {}
    sent_before: set[int] = set()
    for _ in range(8):
        passes = draw.sample(draw.choice(pools), 20)
        sent = sender.send(passes)
        found = receiver.receive(through(sent))
        assert content(found) == content(passes)
        pairs: dict[int, BaseCircuit] = {}
        for ours, theirs in zip(passes, found, strict=True):
            for a, b in zip(lineage(ours.base_circuit), lineage(theirs.base_circuit), strict=True):
                assert pairs.setdefault(id(a), b) is b
                assert before.get(id(a), b) is b
        assert len(set(map(id, pairs.values()))) == len(pairs)
        # What was in the last message is not sent again.
        assert len(sent.bases) == len(pairs.keys() - sent_before)
        before, sent_before = pairs, set(pairs)


def test_a_long_chain_of_base_circuits_is_not_too_deep() -> None:
    base = BaseCircuit(Circuit.full(GRAPH))
    for edge in range(20_000):
        base = BaseCircuit(base.circuit if edge else base.circuit.without([0]), base)
    (found,) = ReceivedBases().receive(through(SentBases().send([PatchedPass(base)])))
    assert len(lineage(found.base_circuit)) == 20_001


def test_a_base_circuit_that_was_not_sent_is_never_taken_for_another() -> None:
    """Numbers are never used twice, by no job and for no worker."""
    sender, other = SentBases(), SentBases()
    base = BaseCircuit(Circuit.full(GRAPH))
    first, second = sender.send([PatchedPass(base)]), sender.send([PatchedPass(base, (1,))])
    receiver = ReceivedBases()
    receiver.receive(other.send([PatchedPass(base)]))
    with pytest.raises(ServerError, match="was not sent to this worker"):
        receiver.receive(second)
    receiver.receive(first)
    (found,) = receiver.receive(second)
    assert found.removed == (1,)
