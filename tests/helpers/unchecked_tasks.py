"""Tasks that the client would refuse, as another client may send them, to see what a server says."""

from __future__ import annotations

from typing import Any

from pahq_client import Task
from pahq_client.task import read_prompts


def unchecked_task(**fields: Any) -> Task:
    """Returns a task whose prompts and answers need not be equally many."""
    task = Task(["x"])
    for name, values in fields.items():
        prompts = read_prompts(f"task.{name}", values, answers="answers" in name)
        object.__setattr__(task, name, prompts)
    return task
