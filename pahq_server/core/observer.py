"""What the server tells about its work while it works, to whoever counts it."""

from __future__ import annotations


class Observer:
    """Counts nothing; the base of those that do. Methods may be called from any thread and never raise.

    All times are in seconds.
    """

    def job_started(self, waited: float) -> None:
        """A job got its first turn after waiting in the queue."""

    def job_ended(self, name: str, state: str, seconds: float) -> None:
        """A job reached a final state (``succeeded``, ``failed``, ``cancelled``) after running so long.

        ``seconds`` is 0 for one that never ran.
        """

    def batch(self, passes: float, seconds: float) -> None:
        """The engine ran a batch of operations, of all jobs and sessions together.

        ``passes`` is their weight: patched passes, or what cost as much.
        """

    def method_advanced(self, records: int, passes: int, wasted: int) -> None:
        """A method came further.

        ``records`` were added to its journal (of a search, evaluations that count), and ``passes`` asked for,
        of which some were ``wasted``.
        """

    def preempted(self) -> None:
        """A running job gave its place to another user's."""

    def rejected(self, reason: str) -> None:
        """A call was refused, or ended before its time; ``reason`` is one of a fixed few.

        ``auth``: no valid credentials, or not enough rights. ``auth_limit``: too many calls without valid
        credentials from one address. ``rate_limit``, ``quota``, ``queue_full``: limits of a user, and of all.
        ``anonymous``: a call that needs no credentials made room for another.
        """

    def call_started(self, method: str) -> None:
        """An RPC began; `call_ended` follows.

        ``method`` is its full name, such as ``pahq.v1.JobService/CreateJob``.
        """

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """An RPC ended with a gRPC status code, by name."""

    def certificates_expire(self, server: float, client_ca: float) -> None:
        """When the server's certificate, and the last of the clients' authorities, are valid no more.

        Seconds since the epoch; NaN for what is not in use.
        """
