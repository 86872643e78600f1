"""The command ``view``: writes the page of a file, or of two, and opens it in a browser."""

from __future__ import annotations

import os
import tempfile
import webbrowser
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias, TypeVar

from pahq_client import (
    artifact_file,
    codebook_file,
    files,
    neuron_set_file,
    node_circuit_file,
    samples_file,
    scores_file,
)
from pahq_client.circuit import Circuit
from pahq_client.cli.output import note, put
from pahq_client.codebook import Codebook
from pahq_client.display import page
from pahq_client.display.picture import Result
from pahq_client.errors import InvalidRequest, WarningDisplay
from pahq_client.neuron_set import NeuronSet
from pahq_client.node_circuit import NodeCircuit
from pahq_client.scores import EdgeScores

Unpaired: TypeAlias = NodeCircuit | NeuronSet | Codebook
U = TypeVar("U", NodeCircuit, NeuronSet, Codebook)

# What has a page of its own: the kind that files say they hold, and what to call one.
_UNPAIRED: Mapping[type[Unpaired], tuple[str, str]] = {
    NodeCircuit: (node_circuit_file.KIND, "a circuit of nodes"),
    NeuronSet: (neuron_set_file.KIND, "a neuron set"),
    Codebook: (codebook_file.KIND, "a codebook"),
}


def view(arguments: Namespace) -> None:
    """Writes the page of one result or of two, prints its path, and opens it."""
    paths = [path for path in (arguments.file, arguments.other) if path is not None]
    if arguments.output is not None:
        page.check_target("--output", arguments.output)
    alone = load_unpaired(arguments.file, arguments.allow_partial)
    if alone is not None:
        if arguments.other is not None:
            _, what = _UNPAIRED[type(alone)]
            raise InvalidRequest("OTHER", f"does not go with {what}: pahq compare compares two")
        WarningDisplay().show(alone.warnings)
        target = _new_file(paths) if arguments.output is None else arguments.output
        alone.to_html(target)
        _show(target, arguments)
        return
    results = [load(path, arguments.allow_partial) for path in paths]
    display = WarningDisplay()
    for result in results:
        display.show(result.warnings)
    names = _names(paths) if len(paths) == 2 else ()
    target = _new_file(paths) if arguments.output is None else arguments.output
    page.write(target, *results, names=names)
    _show(target, arguments)


def _show(target: str, arguments: Namespace) -> None:
    """Prints the path of a page, and opens it."""
    put(target)
    if not arguments.no_open and not webbrowser.open(Path(target).resolve().as_uri()):
        note(f"no browser could be opened: open {target} in one")


def load(path: str, allow_partial: bool) -> Result:
    """Reads a circuit or edge scores, whichever the file holds.

    Raises:
        InvalidCircuitFile, InvalidScoresFile: it holds neither, or what is partial and was not asked for.
        InvalidRequest: it holds samples, nodes, neurons or concepts, or cannot be read.
    """
    data = contents(path)
    holds = artifact_file.kind_of(data)
    if holds == samples_file.KIND:
        raise InvalidRequest(path, "holds samples, not a circuit or scores: pahq show prints them")
    if holds == node_circuit_file.KIND:
        raise InvalidRequest(path, "holds nodes, not edges: show, view, compare and evaluate take it")
    if holds == neuron_set_file.KIND:
        raise InvalidRequest(path, "holds neurons, not edges: show, view and compare take it")
    if holds == codebook_file.KIND:
        raise InvalidRequest(path, "holds concepts, not edges: show, view and compare take it")
    kind = EdgeScores if scores_file.is_scores_file(data) else Circuit
    return kind.load(path, allow_partial=allow_partial)


def load_as(path: str, kind: type[U], allow_partial: bool = False) -> U | None:
    """Reads a circuit of nodes, a neuron set or a codebook; None for a file of something else.

    Raises:
        InvalidNodeCircuitFile, InvalidNeuronSetFile, InvalidCodebookFile: it is damaged, or what is partial
            and was not asked for.
        InvalidRequest: it cannot be read.
    """
    if artifact_file.kind_of(contents(path)) != _UNPAIRED[kind][0]:
        return None
    return kind.load(path, allow_partial=allow_partial)


def load_unpaired(path: str, allow_partial: bool = False) -> Unpaired | None:
    """Reads what has a page of its own and no edges; None for a file of something else.

    Raises as `load_as`.
    """
    holds = artifact_file.kind_of(contents(path))
    for kind, (own, _) in _UNPAIRED.items():
        if own == holds:
            return kind.load(path, allow_partial=allow_partial)
    return None


def contents(path: str) -> bytes:
    """Reads a file that an argument names. Raises InvalidRequest where that fails."""
    try:
        return files.read(path)
    except OSError as error:
        raise InvalidRequest("FILE", f"cannot read {path!r}: {error.strerror}") from None


def load_circuit(option: str, path: str, allow_partial: bool = False) -> Circuit:
    """Reads the circuit that an option names. Raises as `load`, and InvalidRequest for a file of scores."""
    found = load(path, allow_partial)
    if isinstance(found, EdgeScores):
        detail = (
            f"{path!r} holds edge scores: choose a circuit by them first, for example with pahq discover "
            f"--method {found.method or 'gim'} --fraction 0.1 --out FILE"
        )
        raise InvalidRequest(option, detail)
    return found


def load_any_circuit(option: str, path: str, allow_partial: bool = False) -> Circuit | NodeCircuit:
    """Reads the circuit of edges or nodes that an option names. Raises as `load_circuit`.

    Raises InvalidNodeCircuitFile for a damaged one of nodes.
    """
    nodes = load_as(path, NodeCircuit, allow_partial)
    return load_circuit(option, path, allow_partial) if nodes is None else nodes


def _names(paths: list[str]) -> tuple[str, ...]:
    """What to call the results: the names of their files without endings; else their paths."""
    stems = tuple(Path(path).stem for path in paths)
    return stems if len(set(stems)) == len(stems) else tuple(paths)


def _new_file(paths: list[str]) -> str:
    """A new file for a page. It stays: the browser may read it at any time."""
    name = "-".join(Path(path).stem[:40] for path in paths)
    safe = "".join(character if character.isalnum() or character in "-_" else "-" for character in name)
    descriptor, path = tempfile.mkstemp(prefix=f"pahq-{safe}-", suffix=".html")
    os.close(descriptor)
    return path
