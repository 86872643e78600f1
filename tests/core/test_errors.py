from __future__ import annotations

from pahq_server.core.errors import InvalidRequestError, NotFoundError, ResourceExhaustedError


def test_an_invalid_request_names_field_and_detail() -> None:
    error = InvalidRequestError("task.clean", "the prompt is empty")
    assert (error.field, error.detail) == ("task.clean", "the prompt is empty")
    assert str(error) == "task.clean: the prompt is empty"


def test_not_found_says_what_there_is_instead() -> None:
    assert (
        str(NotFoundError("model 'x'", "served models: a, b")) == "model 'x' not found; served models: a, b"
    )
    assert str(NotFoundError("model 'x'")) == "model 'x' not found"


def test_an_exhausted_resource_says_when_to_come_back() -> None:
    error = ResourceExhaustedError("10 runs are waiting already", retry_after_s=2.5)
    assert error.retry_after_s == 2.5
    assert str(error) == "10 runs are waiting already"
