"""How much may be asked at once, by one user and by all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CallLimits:
    """Bounds of calls. A call beyond one is refused at once, before its message is read.

    Args:
        rate: calls per second and user, over time.
        burst: calls that a user may make at once after a pause.
        calls, user_calls: calls with one answer, under way at the same time: of all, and of one user.
        streams, user_streams: calls with a stream of answers, likewise.
        anonymous, address_anonymous: calls that show no credentials and need none (health), under way at the
            same time: in all, and from one address. Those with a stream of answers are counted apart. None of
            them takes a permit of a user.
        anonymous_s: seconds that such a call may take, or its message, if it has a stream of answers.
        failure_rate: calls per second and address with bad credentials, or without any where they are needed.
        failure_burst: of these, so many at once after a pause. Beyond, callers are told to wait. Who shows
            valid credentials is let in, wherever the call comes from.
        read_s: seconds that a message may take to come, once its call is admitted.
        threads: calls that are worked on at the same time; others wait for their turn, or their end. No user
            has all of them, and half at most for what may take seconds, such as tokenizing.
    """

    rate: float = 500.0
    burst: int = 1000
    calls: int = 512
    user_calls: int = 128
    streams: int = 1024
    user_streams: int = 256
    anonymous: int = 128
    address_anonymous: int = 32
    anonymous_s: float = 5.0
    failure_rate: float = 10.0
    failure_burst: int = 1000
    read_s: float = 60.0
    threads: int = 4
