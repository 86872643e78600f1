"""Folders of jobs: as long as they run, within quotas and the room on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from pahq_server.core.errors import QuotaExceededError, ResourceExhaustedError, StorageError
from pahq_server.jobs.files import JobFiles


def test_each_job_has_a_folder_until_it_ends(tmp_path: Path) -> None:
    files = JobFiles(tmp_path / "files")
    a, b = files.folder("ada", "users/ada/jobs/1", 10), files.folder("ada", "users/ada/jobs/2", 10)
    assert a != b
    (a / "states").write_bytes(b"x")
    assert files.folder("ada", "users/ada/jobs/1", 20) == a
    files.delete("users/ada/jobs/1")
    assert not a.exists()
    assert b.is_dir()
    files.delete("users/ada/jobs/1")
    files.delete("users/ada/jobs/3")


def test_a_later_process_finds_the_folder_and_deletes_those_of_jobs_that_ended(tmp_path: Path) -> None:
    before = JobFiles(tmp_path / "files")
    kept, gone = (before.folder("ada", name, 1) for name in ("users/ada/jobs/1", "users/ada/jobs/2"))
    after = JobFiles(tmp_path / "files")
    after.keep_only(["users/ada/jobs/1"])
    assert after.folder("ada", "users/ada/jobs/1", 1) == kept
    assert not gone.exists()
    JobFiles(tmp_path / "none").keep_only([])
    assert not (tmp_path / "none").exists()


def test_a_user_has_no_more_than_the_quota(tmp_path: Path) -> None:
    files = JobFiles(tmp_path, most_bytes=100)
    files.folder("ada", "users/ada/jobs/1", 60)
    files.folder("ada", "users/ada/jobs/1", 60)  # the same again is no more
    files.folder("bob", "users/bob/jobs/1", 90)
    with pytest.raises(QuotaExceededError, match=r"120 bytes .* more than the 100") as caught:
        files.folder("ada", "users/ada/jobs/2", 60)
    assert caught.value.quota == "file_bytes"
    files.delete("users/ada/jobs/1")
    files.folder("ada", "users/ada/jobs/2", 60)


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with pytest.raises(ResourceExhaustedError, match="larger disk"):
        JobFiles(tmp_path).folder("ada", "users/ada/jobs/1", 1 << 60)


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "files").write_text("in the way")
    with pytest.raises(StorageError):
        JobFiles(tmp_path / "files").folder("ada", "users/ada/jobs/1", 1)


def test_without_a_data_directory_folders_are_temporary() -> None:
    files = JobFiles(None)
    folder = files.folder("ada", "users/ada/jobs/1", 1)
    assert folder.is_dir()
    files.close()
    assert not folder.exists()
    files.delete("users/ada/jobs/1")
    files.close()
