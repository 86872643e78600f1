"""Which calls are made again after an interruption: all that the protocol has, told apart one by one."""

from __future__ import annotations

import pytest
from pahq.v1 import generation_pb2, jobs_pb2, model_pb2, patching_pb2, server_pb2

from pahq_client import _calls as calls

FILES = (generation_pb2, jobs_pb2, model_pb2, patching_pb2, server_pb2)
METHODS = [
    (service.name, method)
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def test_every_call_of_the_protocol_is_in_the_table() -> None:
    known = [(rpc.service, rpc.name) for rpc in calls.ALL]
    assert len(set(known)) == len(known)
    assert set(known) == {(service, method.name) for service, method in METHODS}


@pytest.mark.parametrize("rpc", calls.ALL, ids=lambda rpc: rpc.name)
def test_what_is_repeated_has_a_reason(rpc: calls.Rpc[object, object]) -> None:
    """Reading does no harm twice. What else is repeated is named here, with what makes it harmless."""
    (method,) = (method for service, method in METHODS if (service, method.name) == (rpc.service, rpc.name))
    reading = ("Get", "List", "Watch", "Evaluate", "Score", "Tokenize", "Predict", "Check", "Generate")
    reads = rpc.name.startswith(reading)
    harmless = {"CreateJob": "request_id", "CancelJob": "name", "DeleteJob": "name"}
    assert rpc.idempotent is (reads or rpc.name in harmless)
    if rpc.name in harmless:
        assert harmless[rpc.name] in method.input_type.fields_by_name
    if method.server_streaming:
        assert rpc.idempotent, "streams are read again from where they broke off"
