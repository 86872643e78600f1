from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pahq_server.store.database import Database
from pahq_server.store.directory import DATABASE
from pahq_server.store.jobs import SqliteJobStore


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqliteJobStore]:
    store = SqliteJobStore(Database(tmp_path / DATABASE if request.param == "disk" else None))
    yield store
    store.close()
