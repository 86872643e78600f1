"""What calls ask for beside the discovery itself: pages of lists, request ids, where a circuit was found."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.errors import InvalidRequestError, OtherModelError
from pahq_server.core.graph import Graph

USUAL_PAGE, MAX_PAGE = 50, 1000
# They are stored as they come, with every job.
MAX_REQUEST_ID = 256


def check_request_id(request_id: str) -> None:
    """Raises InvalidRequestError."""
    if len(request_id) > MAX_REQUEST_ID:
        raise InvalidRequestError("request_id", f"has more than {MAX_REQUEST_ID} characters")


def page_size(asked: int) -> int:
    """0 asks for the usual size. Raises InvalidRequestError."""
    if not 0 <= asked <= MAX_PAGE:
        raise InvalidRequestError("page_size", f"{asked} is outside of [0, {MAX_PAGE}]")
    return asked or USUAL_PAGE


def before(token: str) -> int | None:
    """The id that a page begins below; None for the first page. Raises InvalidRequestError."""
    if not token:
        return None
    if not (token.isascii() and token.isdigit() and len(token) < 19):
        raise InvalidRequestError("page_token", "is not from an earlier response")
    return int(token)


@dataclass(frozen=True)
class CircuitOrigin:
    """The model that a circuit was found in, as far as a client knows it.

    Args:
        graph: that the circuit is part of.
        revision: of the model; empty if unknown.
    """

    graph: Graph
    revision: str

    def check(self, resolved: ResolvedObjective) -> None:
        """Raises OtherModelError where the circuit cannot be one of this model, else InvalidRequestError.

        Equal names of edges mean nothing across models: a circuit would be measured without an error and
        without sense.
        """
        here = resolved.graph
        # Where every head has keys and values of its own, the two treatments give the same graph.
        alike = here.heads == here.kv_heads or self.graph.kv_receivers == here.kv_receivers
        same_model = replace(self.graph, kv_receivers=here.kv_receivers) == here
        same_model &= self.revision in ("", resolved.revision)
        if not same_model:
            raise OtherModelError(_model(self.graph, self.revision), _model(here, resolved.revision))
        if not alike:
            detail = f"the circuit was found with {self.graph.kv_receivers!r}, which names other edges"
            raise InvalidRequestError("kv_receivers", f"{detail} than {here.kv_receivers!r}: leave it out")


def _model(graph: Graph, revision: str) -> str:
    parts = [f"{graph.layers} layers", f"{graph.heads} heads", f"{graph.kv_heads} key/value heads"]
    parts += ["attention and MLP in parallel"] if graph.parallel else []
    parts += [] if graph.mlps else ["no MLPs"]
    return ", ".join([*parts, f"revision {revision}" if revision else "revision unknown"])
