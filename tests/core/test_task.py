from __future__ import annotations

from dataclasses import replace

import pytest

from pahq_server.core.task import TokenTask

TASK = TokenTask(
    clean=((1, 2, 3), (4, 5)), corrupted=((1, 2, 4), (4, 6)), answers=(7, 8), wrong_answers=(8, 7)
)


def test_the_metric_is_read_at_each_prompts_own_last_token_by_default() -> None:
    assert TASK.metric_positions() == [(0, 2), (1, 1)]


def test_listed_positions_hold_for_every_prompt_in_the_order_given() -> None:
    task = replace(TASK, positions=(1, 0))
    assert task.metric_positions() == [(0, 1), (0, 0), (1, 1), (1, 0)]


def test_equal_tasks_have_equal_hashes() -> None:
    again = TokenTask(((1, 2, 3), (4, 5)), ((1, 2, 4), (4, 6)), (7, 8), (8, 7))
    assert TASK.hash == again.hash
    assert len(bytes.fromhex(TASK.hash)) == 32


@pytest.mark.parametrize(
    "change",
    [
        {"clean": ((1, 2, 3), (4, 7))},
        {"clean": ((1, 2), (3, 4, 5))},
        {"corrupted": None},
        {"answers": (8, 8)},
        {"wrong_answers": None},
        {"positions": (0,)},
    ],
)
def test_every_field_is_part_of_the_hash(change: dict[str, object]) -> None:
    assert replace(TASK, **change).hash != TASK.hash  # type: ignore[arg-type]
