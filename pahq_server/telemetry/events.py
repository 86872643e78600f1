"""Lines of the log for what is worth one: jobs that end, calls, and faults among them above the others."""

from __future__ import annotations

import logging

from pahq_server.core.observer import Observer

logger = logging.getLogger(__name__)

# Codes that say that the server is at fault.
FAULTS = ("UNKNOWN", "INTERNAL", "DATA_LOSS")


class Events(Observer):
    """Writes to the log. The context says which call it is."""

    def job_ended(self, name: str, state: str, seconds: float) -> None:
        _, _, rest = name.partition("/")
        about = {"job": name, "user": rest.partition("/")[0]}
        logger.info("job %s after %.3f s", state, seconds, extra=about)

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        level = logging.WARNING if code in FAULTS else logging.DEBUG
        logger.log(level, "call ended with %s after %.3f s", code, seconds, extra={"method": method})
