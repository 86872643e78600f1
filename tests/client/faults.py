"""Errors for the fake server to answer with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

Code = grpc.StatusCode


@dataclass(frozen=True)
class Fault:
    """An error to answer with: rich if it has a reason or other details, else plain."""

    code: grpc.StatusCode
    message: str = "no luck"
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    violation: tuple[str, str] | None = None
    retry_s: float | None = None
    domain: str = "pahq"

    def raise_on(self, context: grpc.ServicerContext) -> None:
        if not self.reason:
            context.abort(self.code, self.message)
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in self._details():
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        context.abort_with_status(rpc_status.to_status(status))

    def _details(self) -> Iterator[Message]:
        # Not first, so that readers have to look for it.
        yield error_details_pb2.DebugInfo(detail="noise")
        yield error_details_pb2.ErrorInfo(reason=self.reason, domain=self.domain, metadata=self.metadata)
        if self.violation:
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=self.violation[0], description=self.violation[1]
            )
            yield error_details_pb2.BadRequest(field_violations=[violation])
        if self.retry_s is not None:
            delay = Duration(nanos=round(self.retry_s * 1e9) % 10**9, seconds=int(self.retry_s))
            yield error_details_pb2.RetryInfo(retry_delay=delay)
