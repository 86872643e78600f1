"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Replaces the file at once, or leaves it as it was. Raises OSError if it cannot."""
    target = Path(os.path.realpath(path))  # through a link, not over it
    # Opened by hand, not by tempfile, so that the usual permissions apply.
    partial = target.with_name(f".pahq-{uuid.uuid4().hex}.tmp")
    try:
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
