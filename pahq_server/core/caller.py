"""Who makes a call."""

from __future__ import annotations

from dataclasses import dataclass

# The user of a server that asks for no tokens.
LOCAL_USER = "local"


@dataclass(frozen=True)
class Caller:
    """The user whom a call was found to come from.

    Args:
        user: name; the part of resource names after ``users/``.
        admin: whether the call may concern every user's resources, and the server itself.
    """

    user: str = LOCAL_USER
    admin: bool = False

    def owns(self, name: str) -> bool:
        """Whether a resource of this name is the caller's to use."""
        return self.admin or name.startswith(f"users/{self.user}/")
