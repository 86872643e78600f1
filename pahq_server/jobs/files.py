"""Folders for files that jobs need while they run: too large for a journal, and possible to make again."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

from pahq_server.core.errors import QuotaExceededError, ResourceExhaustedError, StorageError
from pahq_server.store.directory import make

logger = logging.getLogger(__name__)

# Of the disk this share is left free, for the database.
LEFT_FREE = 0.05
RETRY_S = 300.0


class JobFiles:
    """One folder per job, which is deleted when the job ends. Methods may be called from any thread.

    A folder is there again after a restart, unless somebody has deleted it: jobs must do without.

    Args:
        root: of the folders; None for a temporary one, which is deleted at the end.
        most_bytes: what the jobs of one user may have together; None for no limit.
    """

    def __init__(self, root: Path | None, most_bytes: int | None = None) -> None:
        self._root, self._most = root, most_bytes
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._taken: dict[str, tuple[str, int]] = {}  # user and bytes by name of the job
        self._lock = threading.Lock()

    def folder(self, user: str, job: str, size: int) -> Path:
        """Returns the folder of a job, and makes it where there is none.

        Args:
            user: whose job it is.
            job: its resource name.
            size: how many bytes its files will have together, at most.

        Raises:
            QuotaExceededError: the user's jobs would have more than they may.
            ResourceExhaustedError: the disk has not so much room.
            StorageError: it cannot be made.
        """
        with self._lock:
            others = sum(own for name, (whose, own) in self._taken.items() if whose == user and name != job)
            if self._most is not None and others + size > self._most:
                detail = (
                    f"{others + size} bytes of files of running jobs would be more than the {self._most} "
                    "that each user may have: use fewer states, or wait until other jobs have ended"
                )
                raise QuotaExceededError("file_bytes", f"users/{user}", detail, RETRY_S)
            path = self._path(job)
            try:
                make(path)
                present = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
                disk = shutil.disk_usage(path)
            except OSError as error:
                raise StorageError(f"the folder of a job cannot be used: {error.strerror}") from error
            if size - present > disk.free - LEFT_FREE * disk.total:
                detail = (
                    f"the job needs files of {size} bytes, and the disk of the data directory has "
                    f"{disk.free} bytes left: use fewer states, or a larger disk"
                )
                raise ResourceExhaustedError(detail, RETRY_S)
            self._taken[job] = (user, size)
            return path

    def delete(self, job: str) -> None:
        """Deletes the folder of a job, if it has one."""
        with self._lock:
            self._taken.pop(job, None)
            if self._root is not None or self._temporary is not None:
                shutil.rmtree(self._path(job), ignore_errors=True)

    def keep_only(self, jobs: Iterable[str]) -> None:
        """Deletes the folders of all other jobs, which have ended while nobody looked."""
        if self._root is None or not self._root.is_dir():
            return
        kept = {self._path(job).name for job in jobs}
        for path in self._root.iterdir():
            if path.name not in kept:
                logger.info("deleting the files of a job that has ended: %s", path.name)
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Deletes what is temporary."""
        with self._lock:
            if self._temporary is not None:
                self._temporary.cleanup()
                self._temporary = None

    def _path(self, job: str) -> Path:
        root = self._root
        if root is None:
            if self._temporary is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="pahq-jobs-", ignore_cleanup_errors=True)
            root = Path(self._temporary.name)
        # Names of jobs have slashes, and users' names any length.
        return root / hashlib.sha256(job.encode()).hexdigest()[:32]
