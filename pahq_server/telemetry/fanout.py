"""Several observers as one."""

from __future__ import annotations

from pahq_server.core.observer import Observer


class Observers(Observer):
    """Tells each of some observers, in order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def job_started(self, waited: float) -> None:
        for observer in self._observers:
            observer.job_started(waited)

    def job_ended(self, name: str, state: str, seconds: float) -> None:
        for observer in self._observers:
            observer.job_ended(name, state, seconds)

    def batch(self, passes: float, seconds: float) -> None:
        for observer in self._observers:
            observer.batch(passes, seconds)

    def method_advanced(self, records: int, passes: int, wasted: int) -> None:
        for observer in self._observers:
            observer.method_advanced(records, passes, wasted)

    def preempted(self) -> None:
        for observer in self._observers:
            observer.preempted()

    def rejected(self, reason: str) -> None:
        for observer in self._observers:
            observer.rejected(reason)

    def call_started(self, method: str) -> None:
        for observer in self._observers:
            observer.call_started(method)

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        for observer in self._observers:
            observer.call_ended(method, code, seconds)

    def certificates_expire(self, server: float, client_ca: float) -> None:
        for observer in self._observers:
            observer.certificates_expire(server, client_ca)
