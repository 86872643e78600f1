"""What files of artifacts have in common: safetensors whose metadata holds the layout, as JSON in one key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from pahq_client.circuit_file import JsonObject, parse_json, read_provenance
from pahq_client.errors import InvalidRequest, ServerFault

T = TypeVar("T")


def metadata(
    layout: Mapping[str, Any], what: str, origin: str, invalid: type[InvalidRequest]
) -> dict[str, str]:
    """The metadata of a file. Raises ``invalid`` for a layout that holds what JSON cannot express."""
    try:
        # In one key: safetensors writes several in any order.
        return {"artifact": json.dumps(layout, sort_keys=True, allow_nan=False)}
    except (TypeError, ValueError, RecursionError) as error:
        raise invalid(origin, f"the {what} cannot be written: {error}") from None


def layout_of(
    data: bytes, other: Callable[[bytes], str] = lambda data: "it is not a safetensors file"
) -> JsonObject:
    """The layout of a file. Raises ValueError for another file; ``other`` says what that may be."""
    size = int.from_bytes(data[:8], "little")
    if not 0 < size <= len(data) - 8 or data[8:9] != b"{":
        raise ValueError(other(data))
    header = JsonObject(parse_json(data[8 : 8 + size]), "the header").object("__metadata__")
    return JsonObject(parse_json(header.get("artifact", str)), "the layout")


def kind_of(data: bytes) -> str:
    """What kind of artifact bytes look like a file of, whatever their state; empty for something else."""
    try:
        return str(layout_of(data).get("kind", str))
    except (ValueError, OverflowError):
        return ""


def decode(
    data: bytes, kind: str, type_: type[T], what: str, origin: str, invalid: type[InvalidRequest]
) -> T:
    """The artifact of a file.

    Args:
        data: the file.
        kind: which kind of artifact it should hold.
        type_: what that is read as.
        what: what it is called, such as "samples".
        origin: name of the file, for errors.
        invalid: is raised if it is not such a file, is damaged, or has an unknown version.
    """
    # Imported here, since it imports the modules of all kinds, which import this one.
    from pahq_client import artifacts

    with reading(what, origin, invalid):
        layout = layout_of(data)
        if layout.get("kind", str) != kind:
            raise ValueError(f"it holds an artifact of kind {layout.get('kind', str)!r}, not {what}")
        provenance, partial = read_provenance(layout.get("provenance", dict)), layout.get("partial", bool)
        found = artifacts.decode(kind, layout.get("version", int), data, provenance, partial)
    assert isinstance(found, type_)
    return found


@contextmanager
def reading(what: str, origin: str, invalid: type[InvalidRequest]) -> Iterator[None]:
    """Raises ``invalid`` for whatever is wrong with a file that is read in the block.

    Args:
        what: what the file should hold, such as "samples".
        origin: its name, for errors.
        invalid: the error.
    """
    try:
        yield
    except (ValueError, OverflowError) as error:
        raise invalid(origin, f"not a readable file of {what}: {error}") from None
    except ServerFault as error:
        detail = str(error).removeprefix("the server sent ")
        raise invalid(origin, f"not a readable file of {what}: it holds {detail}") from None
    except MemoryError:
        raise invalid(origin, "is larger than what fits into this machine's memory") from None
