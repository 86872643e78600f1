"""Names that are not in a graph: each is refused with the name in the message."""

from __future__ import annotations

import pytest

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.graph import Graph

GROUPED = Graph(layers=2, heads=4, kv_heads=2)
PER_QUERY = Graph(layers=2, heads=4, kv_heads=2, kv_receivers="query")
NO_MLPS = Graph(layers=2, heads=2, kv_heads=2, mlps=False)

NOT_A_SENDER = [
    "",
    "logits",
    "a0",
    "a0.g0",
    "a0.h0<q>",
    "a-1.h0",
    "m",
    "m-1",
    "Input",
    " input",
    "m0 ",
    "m1.5",
]
NO_SUCH_SENDER = ["a2.h0", "a0.h4", "a1.h99", "m2", "a00.h1", "a0.h01", "m01", "a999999999.h0", "a٠.h1"]
NOT_A_RECEIVER = [
    "",
    "input",
    "a0.h0",
    "a0.h0<o>",
    "a0.h0<q",
    "a0.h0<Q>",
    "a0.h0<qk>",
    "m",
    "Logits",
    "logits ",
]
NO_SUCH_RECEIVER = [
    "a2.h0<q>",
    "a0.h4<q>",
    "m2",
    "a0.h00<q>",
    "m00",
    "a0.g0<q>",
    "a0.g2<k>",
    "a0.h0<k>",
    "a0.h3<v>",
]


@pytest.mark.parametrize("name", NOT_A_SENDER)
def test_not_a_sender(name: str) -> None:
    _refused(f"{name!r} is not a sender", GROUPED.parse_sender, name)


@pytest.mark.parametrize("name", NO_SUCH_SENDER)
def test_no_such_sender(name: str) -> None:
    _refused(f"the graph has no sender {name!r}", GROUPED.parse_sender, name)


@pytest.mark.parametrize("name", NOT_A_RECEIVER)
def test_not_a_receiver(name: str) -> None:
    _refused(f"{name!r} is not a receiver", GROUPED.parse_receiver, name)


@pytest.mark.parametrize("name", NO_SUCH_RECEIVER)
def test_no_such_receiver(name: str) -> None:
    _refused(f"the graph has no receiver {name!r}", GROUPED.parse_receiver, name)


@pytest.mark.parametrize("name", ["a0.g0<k>", "a1.g1<v>"])
def test_group_names_belong_to_graphs_with_group_receivers(name: str) -> None:
    assert GROUPED.receiver_name(GROUPED.parse_receiver(name)) == name
    _refused(f"the graph has no receiver {name!r}", PER_QUERY.parse_receiver, name)


@pytest.mark.parametrize("layer", range(2))
def test_mlps_of_an_attention_only_model(layer: int) -> None:
    # An index computed blindly would be that of a head, of a q receiver or of the logits.
    _refused(f"the graph has no sender 'm{layer}'", NO_MLPS.parse_sender, f"m{layer}")
    _refused(f"the graph has no receiver 'm{layer}'", NO_MLPS.parse_receiver, f"m{layer}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "'' is not of the form sender->receiver"),
        ("input", "'input' is not of the form sender->receiver"),
        ("input - > m0", "'input - > m0' is not of the form sender->receiver"),
        ("->", "'' is not a sender"),
        ("input->", "'' is not a receiver"),
        ("input->m0->logits", "'m0->logits' is not a receiver"),
        ("logits->m0", "'logits' is not a sender"),
        ("input->a0.h9<q>", "the graph has no receiver 'a0.h9<q>'"),
        ("m9->logits", "the graph has no sender 'm9'"),
        ("m0->m0", "'m0->m0': m0 does not come before m0"),
        ("m1->m0", "'m1->m0': m1 does not come before m0"),
        ("a0.h0->a0.h1<q>", "'a0.h0->a0.h1<q>': a0.h0 does not come before a0.h1<q>"),
        ("m0->a0.g1<k>", "'m0->a0.g1<k>': m0 does not come before a0.g1<k>"),
    ],
)
def test_not_an_edge(name: str, message: str) -> None:
    _refused(message, GROUPED.parse_edge, name)


@pytest.mark.parametrize("name", ["m" + "9" * 5000, "a0.h" + "9" * 5000])
def test_a_number_too_long_for_an_int_is_a_wrong_name_like_any_other(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        GROUPED.parse_sender(name)
    with pytest.raises(InvalidRequestError):
        GROUPED.parse_edge(f"input->{name}")


def _refused(detail: str, parse: object, name: str) -> None:
    assert callable(parse)
    with pytest.raises(InvalidRequestError) as caught:
        parse(name)
    assert caught.value.field == "edges"
    assert caught.value.detail == detail
