"""Devices that a model may be computed on, and their memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import torch

from pahq_server.core.errors import InvalidRequestError, ResourceExhaustedError
from pahq_server.memory.pool import OutOfPagesError

# What the pool, Python, and torch on a GPU raise where there is no memory. On a CPU, torch raises a plain
# RuntimeError with this text in its message.
_OUT_OF_MEMORY = (OutOfPagesError, MemoryError, torch.OutOfMemoryError)
_ALLOCATION_FAILED = "allocate memory"
MEMORY_RETRY_S = 10.0


def is_out_of_memory(error: Exception) -> bool:
    """Tells whether an error says that there is not enough memory."""
    return isinstance(error, _OUT_OF_MEMORY) or (
        isinstance(error, RuntimeError) and _ALLOCATION_FAILED in str(error)
    )


def not_enough_memory(what: str, error: Exception) -> ResourceExhaustedError:
    """Returns the error for clients that there is not enough memory for something."""
    return ResourceExhaustedError(f"not enough memory for {what}: {error}", MEMORY_RETRY_S)


def find(name: str) -> torch.device:
    """Returns a device by its name, ``cpu``, ``cuda`` or ``cuda:1``.

    Raises InvalidRequestError (field ``device``) if there is no such device; it lists those that there are.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    there = available()
    if device is not None and device.type == "cuda" and device.index is None:
        device = torch.device("cuda", 0)
    if device is None or str(device) not in there:
        why = "" if torch.version.cuda else "; this torch is built without CUDA"
        raise InvalidRequestError("device", f"no device {name!r} here; there is {', '.join(there)}{why}")
    return device


def prepare(device: torch.device) -> None:
    """Forbids a CUDA device to round float32 products to TF32 and sums of bfloat16 products to bfloat16."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def available() -> tuple[str, ...]:
    """Names the devices of this machine."""
    return ("cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count())))


def memory_bytes(device: torch.device) -> int:
    """Returns the memory that this process may take on a device."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else machine_bytes()


def total_bytes(device: torch.device) -> int:
    """Returns the memory of a device, also what other processes have taken of it."""
    return int(torch.cuda.mem_get_info(device)[1]) if device.type == "cuda" else machine_bytes()


def title(device: torch.device) -> str:
    """Returns the device's usual name; equal devices have equal titles."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of {platform.processor() or platform.machine()}"


def kind(device: torch.device) -> dict[str, str]:
    """Describes what libraries choose GPU kernels by, because the last bits of a score depend on it."""
    if device.type != "cuda":
        return {}
    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    name = torch.cuda.get_device_name(device)
    return {"gpu": f"{name}, compute capability {capability}", "cuda": str(torch.version.cuda)}


def machine_bytes(root: Path = Path("/")) -> int:
    """Returns the machine's memory, or as much of it as the limits of this process's control groups allow.

    Args:
        root: directory in which ``proc`` and ``sys/fs/cgroup`` are looked up.
    """
    return min(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_group_limits(root))


def _group_limits(root: Path) -> Iterator[int]:
    """Yields the memory limits of every control group (version 1 or 2) that this process is in."""
    yield 1 << 62  # no limit
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for number, controllers, path in (line.split(":", 2) for line in groups):
        if number == "0":
            base, file = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        for group in (path, *map(str, PurePosixPath(path).parents)):
            with suppress(OSError, ValueError):  # "max", and groups outside of this container
                yield int((base / group.lstrip("/") / file).read_text())
