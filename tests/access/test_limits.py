"""RateLimiter, permits, and the order in which a call is checked."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from pahq_server.access.access import ANONYMOUS, Access
from pahq_server.access.identity import Credentials
from pahq_server.access.limits import (
    LINES_BURST,
    MAX_ADDRESSES,
    MAX_BUCKETS,
    AnonymousPermits,
    CallLimits,
    FailedCallLimiter,
    Permits,
    RateLimiter,
)
from pahq_server.access.policy import Scope
from pahq_server.core.context import Caller
from pahq_server.core.errors import (
    ConflictError,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from pahq_server.core.observer import Observer

POLICY = {"open": Scope.PUBLIC, "own": Scope.USER, "all": Scope.ADMIN}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Names:
    """Takes the text of the header for the user's name; ``root`` is an admin."""

    def identify(self, credentials: Credentials) -> Caller:
        if not credentials.authorization:
            raise UnauthenticatedError("who are you?")
        (user,) = credentials.authorization
        return Caller(user, user == "root")


class Refusals(Observer):
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def rejected(self, reason: str) -> None:
        self.reasons.append(reason)


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    clock = Clock()
    rates = RateLimiter(rate=4.0, burst=3, clock=clock)
    for _ in range(3):
        rates.take("ada")
    with pytest.raises(RateLimitedError) as caught:
        rates.take("ada")
    assert caught.value.retry_after_s == pytest.approx(0.25)
    rates.take("bob")
    clock.now += 0.25
    rates.take("ada")
    with pytest.raises(RateLimitedError):
        rates.take("ada")
    clock.now += 1000
    for _ in range(3):
        rates.take("ada")
    with pytest.raises(RateLimitedError):
        rates.take("ada")


def test_who_waits_as_told_is_let_in() -> None:
    clock = Clock()
    rates = RateLimiter(rate=3.0, burst=1, clock=clock)
    for _ in range(100):
        rates.take("ada")
        with pytest.raises(RateLimitedError) as caught:
            rates.take("ada")
        clock.now += caught.value.retry_after_s + 1e-9


def test_buckets_of_users_who_are_gone_are_forgotten() -> None:
    clock = Clock()
    rates = RateLimiter(rate=1.0, burst=2, clock=clock)
    for number in range(MAX_BUCKETS):
        rates.take(f"user{number}")
    clock.now += 3
    rates.take("ada")
    assert len(rates._buckets) == 1


def test_permits_are_counted_per_user_and_in_total() -> None:
    permits = Permits("calls", total=3, per_user=2)
    with permits.hold("ada"), permits.hold("ada"):
        with pytest.raises(QuotaExceededError, match="2 calls are under way") as caught, permits.hold("ada"):
            pass
        assert (caught.value.quota, caught.value.subject) == ("calls", "users/ada")
        with permits.hold("bob"):
            with (
                pytest.raises(ResourceExhaustedError, match="the server has 3 calls") as full,
                permits.hold("cy"),
            ):
                pass
            assert not isinstance(full.value, QuotaExceededError)
        assert permits.held == 2
    assert permits.held == 0
    assert permits._held_by_user == {}


def test_a_permit_is_given_back_however_a_call_ends() -> None:
    permits = Permits("calls", 1, 1)
    with pytest.raises(ZeroDivisionError), permits.hold("ada"):
        _ = 1 / 0
    with permits.hold("ada"):
        assert permits.held == 1


def admitted(access: Access, method: str, *user: str, stream: bool = False) -> Caller:
    with access.admit(method, stream, Credentials(user)) as caller:
        return caller


def test_what_a_call_asks_of_its_caller() -> None:
    refusals = Refusals()
    access = Access(Names(), observer=refusals, policy=POLICY)
    assert admitted(access, "open") == ANONYMOUS
    assert admitted(access, "own", "ada") == Caller("ada")
    assert admitted(access, "all", "root") == Caller("root", admin=True)
    for method in ("own", "all", "unheard of"):
        with pytest.raises(UnauthenticatedError):
            admitted(access, method)
    for method in ("all", "unheard of"):
        with pytest.raises(PermissionDeniedError):
            admitted(access, method, "ada")
    with pytest.raises(PermissionDeniedError):
        admitted(access, "unheard of", "root")
    assert refusals.reasons == ["auth"] * 6


def test_limits_of_calls_and_streams_are_apart() -> None:
    refusals = Refusals()
    limits = CallLimits(user_calls=1, user_streams=1, calls=2, streams=2)
    access = Access(Names(), limits, refusals, POLICY)
    with access.admit("own", False, Credentials(["ada"])), access.admit("own", True, Credentials(["ada"])):
        for stream in (False, True):
            with pytest.raises(QuotaExceededError):
                admitted(access, "own", "ada", stream=stream)
            assert admitted(access, "own", "bob", stream=stream) == Caller("bob")
        # What is open to all takes nothing from users.
        with (
            access.admit("open", True, Credentials()),
            access.admit("own", True, Credentials(["bob"])),
            pytest.raises(ResourceExhaustedError),
        ):
            admitted(access, "own", "cy", stream=True)
    assert refusals.reasons == ["quota", "quota", "queue_full"]


def test_rates_are_for_known_callers() -> None:
    refusals = Refusals()
    access = Access(Names(), CallLimits(rate=1e-3, burst=1), refusals, POLICY)
    for _ in range(5):
        admitted(access, "open")
        with pytest.raises(UnauthenticatedError):
            admitted(access, "own")
    admitted(access, "own", "ada")
    with pytest.raises(RateLimitedError):
        admitted(access, "own", "ada")
    assert refusals.reasons == ["auth"] * 5 + ["rate_limit"]


def test_refusals_of_the_call_itself_count_too() -> None:
    refusals = Refusals()
    access = Access(Names(), observer=refusals, policy=POLICY)
    for error in (QuotaExceededError("jobs", "users/ada", "", 1.0), ResourceExhaustedError("", 1.0)):
        with pytest.raises(type(error)), access.admit("own", False, Credentials(["ada"])):
            raise error
    with pytest.raises(ConflictError), access.admit("own", False, Credentials(["ada"])):
        raise ConflictError("")
    assert refusals.reasons == ["quota", "queue_full"]


def test_those_who_need_no_name_are_counted_by_where_they_come_from() -> None:
    access = Access(Names(), CallLimits(calls=3, user_calls=1), policy=POLICY)
    here, there = Credentials(host="ipv4:127.0.0.1"), Credentials(host="ipv4:10.0.0.7")
    with access.admit("open", False, there):
        with pytest.raises(QuotaExceededError), access.admit("open", False, there):
            pass
        with access.admit("open", False, here), access.admit("own", False, Credentials(["ada"])):
            pass


class Pending:
    """A call that is under way until it is ended."""

    def __init__(self, name: str, log: list[str], stubborn: bool = False) -> None:
        self._name, self._log, self._stubborn = name, log, stubborn

    def end(self) -> bool:
        if not self._stubborn:
            self._log.append(self._name)
        return not self._stubborn


def test_without_a_name_the_oldest_call_of_the_same_address_makes_room() -> None:
    permits, ended = AnonymousPermits("calls", total=10, per_address=2), list[str]()
    with ExitStack() as stack:
        for name in ("a1", "b1", "a2", "a3", "a4"):
            stack.enter_context(permits.hold(name[0], Pending(name, ended).end))
        assert ended == ["a1", "a2"]
        assert permits.held == 3
    assert permits.held == 0
    assert permits._held_by_address == {}


def test_in_all_the_address_with_most_calls_makes_room() -> None:
    permits, ended = AnonymousPermits("calls", total=4, per_address=3), list[str]()
    with ExitStack() as stack:
        for name in ("b1", "a1", "a2", "a3", "c1", "d1", "e1"):
            stack.enter_context(permits.hold(name[0], Pending(name, ended).end))
        assert ended[:2] == ["a1", "a2"]
        assert permits.held == 4
        assert "e1" not in ended  # a newcomer is always let in


def test_a_call_that_is_about_to_end_is_left_alone() -> None:
    permits, ended = AnonymousPermits("calls", total=2, per_address=2), list[str]()
    with (
        permits.hold("a", Pending("answered", ended, stubborn=True).end),
        permits.hold("a", Pending("waits", ended).end),
        permits.hold("a", Pending("last", ended, stubborn=True).end),
    ):
        assert ended == ["waits"]
        with pytest.raises(QuotaExceededError) as caught, permits.hold("a", Pending("x", ended).end):
            pass
        assert caught.value.subject == "addresses/a"
        with pytest.raises(ResourceExhaustedError, match="2 calls without"), permits.hold("b"):
            pass


def test_floods_without_a_name_take_no_permit_of_a_user() -> None:
    limits = CallLimits(calls=1, user_calls=1, streams=1, user_streams=1, anonymous=3, address_anonymous=2)
    refusals, ended = Refusals(), list[str]()
    access = Access(Names(), limits, refusals, POLICY)
    with ExitStack() as stack:
        for number in range(100):
            credentials = Credentials(host=f"10.0.0.{number % 5}")
            for stream in (False, True):
                end = Pending(str(number), ended).end
                stack.enter_context(access.admit("open", stream, credentials, end))
        for stream in (False, True):
            assert admitted(access, "own", "ada", stream=stream) == Caller("ada")
    assert len(ended) == 200 - 2 * limits.anonymous
    assert refusals.reasons == ["anonymous"] * len(ended)


def test_an_address_may_fail_so_often() -> None:
    clock = Clock()
    failures = FailedCallLimiter(rate=2.0, burst=3, clock=clock)
    for _ in range(3):
        failures.take("10.0.0.7", "")
    with pytest.raises(RateLimitedError, match="check the token") as caught:
        failures.take("10.0.0.7", "")
    assert caught.value.retry_after_s == pytest.approx(0.5)
    failures.take("10.0.0.8", "")
    clock.now += 0.5
    failures.take("10.0.0.7", "")


def test_the_log_names_the_address_once_for_each_power_of_ten(caplog: pytest.LogCaptureFixture) -> None:
    failures = FailedCallLimiter(1e9, 10**9, clock=Clock(), now=lambda: 0.0)
    for _ in range(1234):
        failures.take("10.0.0.7", "it shows no token")
    failures.take("10.0.0.8", "its token is unknown")
    start = "refused a call from 10.0.0."
    assert [record.getMessage() for record in caplog.records] == [
        *(
            f"{start}7: it shows no token (call {count} without valid credentials from there since "
            "1970-01-01T00:00:00Z)"
            for count in (1, 10, 100, 1000)
        ),
        f"{start}8: its token is unknown (call 1 without valid credentials from there since "
        "1970-01-01T00:00:00Z)",
    ]


def test_many_addresses_fill_neither_memory_nor_log(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    failures = FailedCallLimiter(1.0, 1, clock=clock)
    for number in range(2 * MAX_ADDRESSES):
        failures.take(f"address {number}", "it shows no token")
    assert len(failures._failing) == MAX_ADDRESSES
    assert len(caplog.records) == LINES_BURST
    clock.now += 1
    failures.take("the last", "it shows no token")
    left_out = 2 * MAX_ADDRESSES - LINES_BURST
    assert f"{left_out} lines about other addresses were left out" in caplog.records[-1].getMessage()


def test_valid_credentials_get_in_however_many_others_fail_from_the_same_address() -> None:
    refusals = Refusals()
    access = Access(Names(), CallLimits(failure_rate=1e-3, failure_burst=2), refusals, POLICY)
    for kind in (UnauthenticatedError, UnauthenticatedError, RateLimitedError, RateLimitedError):
        with pytest.raises(kind), access.admit("own", False, Credentials(host="10.0.0.7")):
            pass
        with access.admit("own", False, Credentials(["ada"], host="10.0.0.7")) as caller:
            assert caller == Caller("ada")
    assert refusals.reasons == ["auth", "auth", "auth_limit", "auth_limit"]
