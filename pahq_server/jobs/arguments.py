"""What calls ask for beside the discovery itself: pages of lists and request ids."""

from __future__ import annotations

from pahq_server.core.errors import InvalidRequestError

USUAL_PAGE, MAX_PAGE = 50, 1000
# They are stored as they come, with every job.
MAX_REQUEST_ID = 256


def check_request_id(request_id: str) -> None:
    """Raises InvalidRequestError."""
    if len(request_id) > MAX_REQUEST_ID:
        raise InvalidRequestError("request_id", f"has more than {MAX_REQUEST_ID} characters")


def page_size(asked: int) -> int:
    """0 asks for the usual size. Raises InvalidRequestError."""
    if not 0 <= asked <= MAX_PAGE:
        raise InvalidRequestError("page_size", f"{asked} is outside of [0, {MAX_PAGE}]")
    return asked or USUAL_PAGE


def before(token: str) -> int | None:
    """The id that a page begins below; None for the first page. Raises InvalidRequestError."""
    if not token:
        return None
    if not (token.isascii() and token.isdigit() and len(token) < 19):
        raise InvalidRequestError("page_token", "is not from an earlier response")
    return int(token)
