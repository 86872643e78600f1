"""The events that the server reports while it works, for metrics, traces and the log."""

from __future__ import annotations


class Observer:
    """Is told what happens in the server. This base class ignores all of it.

    Methods may be called from any thread and must not raise. All times are in seconds.
    """

    def job_started(self, waited: float) -> None:
        """A job got its first turn after waiting in the queue."""

    def job_ended(self, name: str, state: str, seconds: float) -> None:
        """A job reached a final state: ``succeeded``, ``failed`` or ``cancelled``.

        ``seconds`` is the time from its start to its end; 0 for a job that never ran.
        """

    def batch(self, passes: float, seconds: float) -> None:
        """The engine ran a batch of operations, of all jobs and sessions together.

        ``passes`` is the sum of their weights; see `Operation.weight`.
        """

    def method_advanced(self, records: int, passes: int, wasted: int) -> None:
        """A method received the result of an operation.

        Args:
            records: how many records it added to its journal; of a search for a circuit, verdicts.
            passes: how many patched passes it had asked for.
            wasted: how many of these were of no use, because they were asked for ahead.
        """

    def preempted(self) -> None:
        """A running job lost its slot to a job of another user."""

    def rejected(self, reason: str) -> None:
        """A call was refused, or ended early to make room for another. ``reason`` is one of these:

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

    def worker_ready(self, worker: int) -> None:
        """A worker that is a process of its own takes operations: for the first time, or again.

        ``worker`` is its number, from 0; there are no more numbers than workers.
        """

    def worker_lost(self, worker: int, reason: str) -> None:
        """A worker that is a process of its own cannot be reached any more. ``reason`` is one of these:

        ``ended``: its process ended, or cannot be reached. ``hung``: it did not answer in time.
        ``refused``: it cannot be used as it is.
        """

    def worker_worked(self, worker: int, weight: float, seconds: float) -> None:
        """A worker that is a process of its own has answered a call.

        Args:
            worker: its number.
            weight: sum of the weights of the operations, see `Operation.weight`.
            seconds: how long they took it.
        """

    def certificates_expire(self, server: float, client_ca: float) -> None:
        """Certificates were read.

        Args:
            server: when the server's certificate expires, in seconds since the epoch; NaN without TLS.
            client_ca: when the last authority of clients' certificates expires; NaN without any.
        """
