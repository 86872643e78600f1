"""The methods of this server, by name."""

from __future__ import annotations

from typing import Any

from pahq_server.core.errors import InvalidRequestError
from pahq_server.methods.acdc.method import Acdc
from pahq_server.methods.attribution.methods import CleanCorrupted, Eap, EapIg, Gim, Relp
from pahq_server.methods.base import Method
from pahq_server.methods.concepts.ablating import AblateConcepts
from pahq_server.methods.concepts.assigning import AssignConcepts
from pahq_server.methods.concepts.method import Concepts
from pahq_server.methods.continuations.method import Continuations
from pahq_server.methods.generate.method import Generate
from pahq_server.methods.neurons.method import Neurons
from pahq_server.methods.node_pruning.method import NodePruning
from pahq_server.methods.single_edge.method import SingleEdge

# To add a method, add its folder to this package and an instance of it here.
_METHODS: tuple[Method[Any], ...] = (
    Acdc(),
    SingleEdge(),
    Eap(),
    EapIg(),
    CleanCorrupted(),
    Relp(),
    Gim(),
    Generate(),
    NodePruning(),
    Concepts(),
    AssignConcepts(),
    AblateConcepts(),
    Neurons(),
    Continuations(),
)
METHODS = {method.name: method for method in _METHODS}


def find(name: str) -> Method[Any]:
    """Returns the method of this name. Raises InvalidRequestError if there is none."""
    if name not in METHODS:
        raise InvalidRequestError("method", f"unknown method {name!r}; one of {sorted(METHODS)}")
    return METHODS[name]
