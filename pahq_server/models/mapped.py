"""A checkpoint whose tensors stay where they are: views of its mapped files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from pahq_server.core.errors import ConflictError
from pahq_server.models.checkpoint import Checkpoint, content_digest, reading, stamp
from pahq_server.models.files import weight_files


class Mapped(Checkpoint):
    """Gives tensors as they are stored, without a copy, and refuses what `Checkpoint` refuses.

    Every file is mapped once, for as long as any of its tensors lives. A file that is replaced (another of
    the same name moved to its place) or deleted goes on to be read as it was. A file that is overwritten or
    truncated in place is not: `check` finds that out, whatever was done to its times, but a page that is gone
    when it is read kills the process (SIGBUS), so checkpoints that are served must be replaced, never
    rewritten. Other changes, such as of times, owner or permissions, do no harm.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._open: dict[Path, safe_open] = {}
        self._stamps: dict[Path, tuple[int, ...]] = {}
        self._digests: dict[Path, bytes] = {}
        for path in weight_files(directory).paths:
            with reading(path):
                self._stamps[path] = stamp(path)
                self._digests[path] = content_digest(path, self._stamps[path])
                self._open[path] = safe_open(path, framework="pt")

    def get(self, name: str) -> Tensor:
        """One tensor in its own dtype; copies that adapters make of it are views."""
        path = self._path(name)
        with reading(path):
            view: Tensor = self._view(name, self._open[path]).as_subclass(_View)
            return view

    def check(self) -> None:
        """Raises ConflictError if the content of a file is not what was mapped.

        A file that was touched is read again as a whole, once.
        """
        for path, before in self._stamps.items():
            try:
                now = stamp(path)
                if now[:2] != before[:2] or now == before:
                    continue
                same = content_digest(path, now) == self._digests[path]
            except OSError:  # deleted: what is mapped stays
                continue
            if not same:
                raise ConflictError(f"{path.name} was changed while the model was served: load it again")
            self._stamps[path] = now


class _View(Tensor):
    """A view of a mapped file. Whoever wants a copy, for its layout or to let go of a larger one, gets it."""

    def contiguous(self, *args: Any, **kwargs: Any) -> Tensor:
        return self

    def clone(self, *args: Any, **kwargs: Any) -> Tensor:
        return self
