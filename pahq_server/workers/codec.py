"""Messages to bytes and back: pickle, restricted to a closed table of our own frozen classes.

The bytes come from other processes, maybe on other hosts. Pickle can make anything of bytes that can be
imported, and run it. Here it cannot: whatever the bytes name is looked up in a table of classes that hold
nothing but values, and never imported. A message with anything else in it is refused on both sides.

Objects that occur several times in a message are the same object again afterwards.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import zlib
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pahq_server.core import (
    activations,
    circuit,
    codebooks,
    concepts,
    engine,
    errors,
    generation,
    graph,
    operations,
    pruning,
    task,
)
from pahq_server.core.circuit import Circuit
from pahq_server.core.errors import ServerError
from pahq_server.core.graph import Graph
from pahq_server.engine.catalogue import ServedModel
from pahq_server.models.architecture import Architecture
from pahq_server.workers import messages, passes

# Kinds of numpy's numbers: bool, signed, unsigned, float.
NUMBERS = "biuf"

E = TypeVar("E", bound=BaseException)


class MessageError(ValueError):
    """A message cannot be encoded or decoded, because something in it is not allowed there or is damaged."""


def encode(message: object) -> bytes:
    """Returns a message as bytes.

    Messages are made of the dataclasses of `VALUES`, numpy's arrays and numbers, exceptions, and Python's own
    containers, numbers, texts and bytes. An exception whose class `decode` does not know becomes one of its
    base classes. Tracebacks and causes are left out.

    Raises MessageError for anything else.
    """
    buffer = io.BytesIO()
    try:
        _Encoder(buffer, protocol=5).dump(message)
    except MessageError:
        raise
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
        raise MessageError(f"a {type(message).__qualname__} cannot be sent to a worker: {error}") from error
    content = buffer.getvalue()
    return _checksum(content) + content


def _checksum(content: bytes | memoryview) -> bytes:
    """Returns four bytes that damaged content does not fit: pickle might take any amount of memory for it."""
    return zlib.crc32(content).to_bytes(4, "big")


def decode(content: bytes) -> object:
    """Returns the message that `encode` was given.

    Raises MessageError for bytes that are damaged, or name anything that is not in the table.
    """
    try:
        pickled = memoryview(content)[4:]
        if content[:4] != _checksum(pickled):
            raise ValueError("its checksum is wrong")
        message: object = _Decoder(io.BytesIO(pickled)).load()
    except MessageError:
        raise
    except Exception as error:  # pickle raises whatever comes of damaged bytes
        raise MessageError(
            f"a message of {len(content)} bytes is damaged, or of another version of this package: "
            f"{type(error).__name__}: {error}"
        ) from error
    return message


# What messages are made of


def _classes(module: ModuleType) -> Iterable[type]:
    here = (each for each in vars(module).values() if isinstance(each, type))
    return (each for each in here if each.__module__ == module.__name__)


# Dataclasses that hold nothing but values.
VALUES: frozenset[type] = frozenset(
    each
    for module in (
        activations,
        circuit,
        codebooks,
        concepts,
        engine,
        generation,
        graph,
        operations,
        pruning,
        task,
        messages,
        passes,
    )
    for each in _classes(module)
    if is_dataclass(each)
) | {ServedModel, Architecture}

# Exceptions whose classes survive: all of ours, and those of Python's own that are made of their arguments.
EXCEPTIONS: frozenset[type[BaseException]] = frozenset(
    each for each in (*_classes(errors), MessageError) if issubclass(each, Exception)
) | {
    ArithmeticError,
    AssertionError,
    AttributeError,
    FloatingPointError,
    IndexError,
    KeyError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
}


def _circuit(graph: Graph, bits: bytes) -> Circuit:
    """Makes a circuit of its graph and of `Circuit.key`."""
    if len(bits) != (graph.num_edges + 7) // 8:
        raise MessageError(f"{len(bits)} bytes are not one bit for each of {graph.num_edges} edges")
    kept = np.unpackbits(np.frombuffer(bits, np.uint8), count=graph.num_edges).astype(bool)
    return Circuit(graph, kept)


def _array(dtype: str, shape: tuple[int, ...], content: bytearray) -> NDArray[Any]:
    """Makes an array of numbers, in the order of C, of its bytes. The array can be written to."""
    return np.frombuffer(content, _numbers(dtype)).reshape(shape)


def _number(dtype: str, content: bytes) -> Any:
    """Makes a number of numpy of its bytes."""
    return np.frombuffer(content, _numbers(dtype))[0]


def _numbers(dtype: str) -> np.dtype[Any]:
    found = np.dtype(dtype)
    if found.kind not in NUMBERS:
        raise MessageError(f"arrays of {dtype} are not sent between server and workers, only numbers")
    return found


def _exception(kind: type[E], arguments: tuple[object, ...], attributes: dict[str, object]) -> E:
    """Makes an exception as it was, whatever its constructor takes."""
    if kind not in EXCEPTIONS:
        raise MessageError(f"{kind!r} is not an exception that a message may hold")
    error = kind.__new__(kind)
    error.args = arguments
    error.__dict__.update(attributes)
    return error


def _name(item: Any) -> tuple[str, str]:
    return item.__module__, item.__qualname__


# By module and name as they are written into the bytes, everything that bytes may name.
TABLE: dict[tuple[str, str], Any] = {
    _name(each): each for each in (*VALUES, *EXCEPTIONS, _circuit, _array, _number, _exception)
}

_Reduced = tuple[Callable[..., Any], tuple[Any, ...]] | tuple[Callable[..., Any], tuple[Any, ...], Any]


class _Encoder(pickle.Pickler):
    def reducer_override(self, item: Any) -> Any:
        """Says how an object is written that is none of Python's own containers, numbers, texts or bytes."""
        kind = type(item)
        if kind is Circuit:
            return _circuit, (item.graph, item.key)
        if kind in VALUES:
            # Only the fields: values that were cached beside them can be computed again.
            return copyreg.__newobj__, (kind,), {each.name: getattr(item, each.name) for each in fields(item)}  # type: ignore[attr-defined]
        if isinstance(item, np.ndarray | np.generic):
            return _of_numpy(item)
        if isinstance(item, BaseException):
            return _of_exception(item)
        if isinstance(item, type | type(_name)) and TABLE.get(_name(item)) is item:
            return NotImplemented  # by its name
        what = item if hasattr(item, "__qualname__") else kind
        raise MessageError(
            f"{'.'.join(_name(what))} is not sent between server and workers: see pahq_server.workers.codec"
        )


def _of_numpy(item: NDArray[Any] | np.generic) -> _Reduced:
    if item.dtype.kind not in NUMBERS:
        raise MessageError(
            f"arrays of {item.dtype.str} are not sent between server and workers, only numbers"
        )
    if isinstance(item, np.generic):
        return _number, (item.dtype.str, item.tobytes())
    return _array, (item.dtype.str, item.shape, bytearray(item.tobytes()))


def _of_exception(error: BaseException) -> _Reduced:
    kind = next((each for each in type(error).__mro__ if each in EXCEPTIONS), RuntimeError)
    arguments, attributes = error.args, vars(error)
    if kind is not type(error) and not issubclass(kind, ServerError):
        arguments, attributes = (f"{type(error).__qualname__}: {error}",), {}
    try:
        _Encoder(io.BytesIO(), protocol=5).dump((arguments, attributes))
    except (MessageError, pickle.PicklingError, TypeError, AttributeError, RecursionError):
        # What it carries beside its text stays behind.
        arguments, attributes = (str(error),), {}
    return _exception, (kind, arguments, attributes)


class _Decoder(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Looks up what the bytes name in the table. Nothing is imported."""
        try:
            return TABLE[module, name]
        except KeyError:
            raise MessageError(
                f"a message names {module}.{name}, which is not in the table of what messages may hold: it "
                "is of another version of this package, or of somebody else"
            ) from None
