"""The server's side of Ray: starts the process that is Ray's driver, talks to it, and starts it again.

The server never imports Ray, and nothing that Ray does can end the server.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from pahq_server.core.errors import InvalidRequestError
from pahq_server.side_process import CLOSE_S, SideProcess
from pahq_server.workers import codec
from pahq_server.workers.cluster import Answer, ClusterEvent, Delayed, Lost, Ready
from pahq_server.workers.messages import Call, WorkerInfo
from pahq_server.workers.ray_link import Link

logger = logging.getLogger(__name__)

INSTALL = "pip install 'pahq[ray]'"
# Seconds until a driver that has ended is started again, which double with each that no worker came of.
FIRST_WAIT_S, MOST_WAIT_S = 0.5, 30.0
# A driver that is silent for so long is ended: while it starts or joins a cluster, and afterwards.
START_S, SILENCE_S = 180.0, 60.0
# How often the operator is told meanwhile that it has not started.
PATIENCE_S = 30.0
# A socket's path has at most 107 bytes, of which Ray takes up to 70 below its directory.
LONGEST_DIRECTORY = 30


@dataclass(frozen=True)
class RayOptions:
    """Where Ray's workers run.

    Args:
        address: of the cluster to join, as `ray.init` takes it: ``host:port`` on a machine that is one of its
            nodes, ``ray://host:port`` on any other. None to start a cluster on this machine.
        gpus_per_worker: how many GPUs each gets; a fraction to share one; 0 for none.
        cpus_per_worker: processors that Ray sets aside for each; as many as it has threads.

    Raises InvalidRequestError where Ray is not installed, or a number makes no sense.
    """

    address: str | None = None
    gpus_per_worker: float = 0.0
    cpus_per_worker: int = 1

    def __post_init__(self) -> None:
        gpus = self.gpus_per_worker
        if not (0 <= gpus <= 1 or (1 < gpus < float("inf") and gpus == int(gpus))):
            raise InvalidRequestError(
                "gpus_per_worker", f"must be from 0 to 1, or a whole number of GPUs, got {gpus:g}"
            )
        if self.cpus_per_worker < 1:
            raise InvalidRequestError("cpus_per_worker", f"must be at least 1, got {self.cpus_per_worker}")
        if importlib.util.find_spec("ray") is None:
            raise InvalidRequestError(
                "workers", f"more than one worker needs Ray, which is not installed: {INSTALL}"
            )


class RayCluster:
    """Workers in Ray's actors. Implements `cluster.Cluster`.

    Args:
        size: how many workers, at least 1.
        options: where they run.
        factory: ``module:function`` that loads the models in each worker, see `ray_actor.RayActor`.
        content: what the factory is called with: the server's options.
    """

    def __init__(self, size: int, options: RayOptions, factory: str, content: bytes) -> None:
        if size < 1:
            raise InvalidRequestError("workers", f"must be at least 1, got {size}")
        self.size = size
        self._options, self._factory, self._content = options, factory, content
        self._tell: Callable[[ClusterEvent], None] = lambda event: None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        # Guards what follows.
        self._lock = threading.Lock()
        self._driver: _Driver | None = None
        # By worker, the process that takes its calls, as the driver counts them; and by number, the worker of
        # each call that is to be answered.
        self._incarnations: dict[int, int] = {}
        self._calls: dict[int, int] = {}

    @property
    def driver_id(self) -> int | None:
        """Id of the driver's process; None while there is none."""
        with self._lock:
            return None if self._driver is None else self._driver.id

    def start(self, tell: Callable[[ClusterEvent], None]) -> None:
        self._tell = tell
        self._thread = threading.Thread(target=self._run, name="ray-cluster", daemon=True)
        self._thread.start()

    def call(self, worker: int, number: int, call: Call) -> None:
        """See `cluster.Cluster.call`. Raises MessageError if the call cannot be encoded."""
        content = codec.encode(call)
        with self._lock:
            incarnation = self._incarnations.get(worker)
            # A worker that is not there has been told lost, with all its calls.
            if self._driver is not None and incarnation is not None:
                self._calls[number] = worker
                self._driver.send(
                    {"do": "call", "worker": worker, "incarnation": incarnation, "number": number}, content
                )

    def replace(self, worker: int, reason: str) -> None:
        with self._lock:
            if self._driver is not None:
                self._driver.send({"do": "replace", "worker": worker, "reason": reason})

    def stop(self) -> None:
        self._stopping.set()
        with self._lock:
            driver = self._driver
        if driver is not None:
            driver.stop()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        """Keeps a driver running until `stop`."""
        wait = FIRST_WAIT_S
        while not self._stopping.is_set():
            some_loaded, reason = self._run_driver()
            if self._stopping.is_set():
                break
            wait = FIRST_WAIT_S if some_loaded else min(2 * wait, MOST_WAIT_S)
            logger.error("%s; starting it again in %g s", reason, wait)
            for worker in range(self.size):
                self._inform(Lost(worker, reason))
            self._stopping.wait(wait)

    def _run_driver(self) -> tuple[bool, str]:
        """Starts a driver, and tells what it tells until it has ended.

        Returns:
            Whether any worker was loaded, and why the driver has ended.
        """
        driver, some_loaded, said = None, False, ""
        try:
            driver = _Driver(self.size, self._options, self._factory, self._content)
            with self._lock:
                self._driver = driver
            for header, content in self._messages(driver):
                if header["is"] == "ending":
                    said = header["reason"]
                elif "worker" in header:
                    some_loaded |= header["is"] == "loaded"
                    self._told(header, content)
        except TimeoutError as error:
            said = str(error)
        except Exception as error:
            # Workers would otherwise be gone for good, and nobody told.
            logger.exception("the driver's messages could not be taken")
            said = f"{type(error).__name__}: {error}"
        with self._lock:
            self._driver = None
            self._incarnations.clear()
            self._calls.clear()
        if driver is None:
            return False, f"Ray's driver does not start: {said}"
        return some_loaded, f"Ray's driver has ended: {driver.end(said)}"

    def _messages(self, driver: _Driver) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yields what the driver says, until it has ended. Raises TimeoutError if it is silent for long."""
        waited = 0.0
        # `stop` may have come before it could know of this driver.
        while driver.started or not self._stopping.is_set():
            try:
                yield driver.receive(SILENCE_S if driver.started else PATIENCE_S)
            except TimeoutError:
                waited += PATIENCE_S
                if driver.started or waited >= START_S:
                    raise TimeoutError("it has said nothing for too long, and was ended") from None
                what = f"joined the cluster at {address}" if (address := self._options.address) else "started"
                for worker in range(self.size):
                    self._inform(Delayed(worker, f"Ray has not {what} after {waited:g} s"))
            except (EOFError, OSError):
                return

    def _told(self, header: dict[str, Any], content: bytes) -> None:
        """Takes a message about a worker."""
        what, worker = header["is"], header["worker"]
        if what == "answer":
            with self._lock:
                if header["incarnation"] != self._incarnations.get(worker):
                    return
                if self._calls.pop(header["number"], None) is None:
                    return
            self._inform(Answer(worker, header["number"], _decoded(content)))
            return
        if what == "waiting":
            self._inform(Delayed(worker, header["reason"]))
            return
        with self._lock:
            self._incarnations.pop(worker, None)
            self._calls = {number: owner for number, owner in self._calls.items() if owner != worker}
        found = _decoded(content) if content else header.get("reason", "")
        if what == "loaded" and isinstance(found, WorkerInfo):
            with self._lock:
                self._incarnations[worker] = header["incarnation"]
            self._inform(Ready(worker, found))
            return
        refused = what in ("refused", "loaded")
        reason = f"{type(found).__name__}: {found}" if what == "failed" else str(found)
        if what == "loaded":
            # Its host has another version of this package, which starting again does not change.
            reason = f"what it says of itself cannot be read: {found}"
        self._inform(Lost(worker, reason, refused))

    def _inform(self, event: ClusterEvent) -> None:
        try:
            self._tell(event)
        except Exception:
            logger.exception("an event of the workers could not be taken")


def _decoded(content: bytes) -> object:
    try:
        return codec.decode(content)
    except codec.MessageError as error:
        return error


class _Driver:
    """The process that is Ray's driver: starts it, passes messages, and ends it.

    Args: see `RayCluster`.
    """

    def __init__(self, size: int, options: RayOptions, factory: str, content: bytes) -> None:
        # Only this user's, unlike what Ray makes in it.
        self._directory = "" if options.address else tempfile.mkdtemp(prefix="pahq-", dir=_short_directory())
        self._process = SideProcess(
            "Ray", "pahq_server.workers.ray_driver:main", [self._directory], _environment(options), logger
        )
        self._link = Link(self._process.connection)
        # Whoever calls a worker does not wait for a driver that does not read.
        self._outbox: SimpleQueue[tuple[dict[str, Any], bytes] | None] = SimpleQueue()
        self._sender = threading.Thread(target=self._send_all, daemon=True)
        self._sender.start()
        header = {
            "size": size,
            "address": options.address,
            "cpus": options.cpus_per_worker,
            "gpus": options.gpus_per_worker,
            "factory": factory,
        }
        self.send(header, content)

    @property
    def id(self) -> int:
        return self._process.id

    @property
    def started(self) -> bool:
        return self._process.started

    def send(self, header: dict[str, Any], content: bytes = b"") -> None:
        """Sends a message, soon. Messages to a driver that has ended are lost."""
        self._outbox.put((header, content))

    def _send_all(self) -> None:
        with suppress(OSError):
            while (message := self._outbox.get()) is not None:
                self._link.send(*message)

    def receive(self, seconds: float) -> tuple[dict[str, Any], bytes]:
        """Waits for a message, see `Link.receive`."""
        header, content = self._link.receive(seconds)
        self._process.started |= header["is"] == "started"
        return header, content

    def stop(self) -> None:
        """Asks the process to end, and sees to it that it does soon."""
        if self.started:
            self.send({"do": "stop"})
            self._process.wait()
        self._process.kill()

    def end(self, said: str) -> str:
        """Ends the process with all that it has started, and removes its files.

        Args:
            said: why it ends, as far as it is known.

        Returns:
            Why it has ended, in words.
        """
        if not said:
            self._process.wait()  # while it says why
        how, lines = self._process.end()
        self._outbox.put(None)
        self._sender.join(CLOSE_S)
        self._link.close()
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
        logger.debug("Ray's driver has ended (%s). It said last:\n%s", how, "\n".join(lines))
        if said or how.startswith("SIG"):
            return said or how
        return next((line for line in reversed(lines) if line.strip()), how)


def _short_directory() -> str:
    """Returns where temporary files go, or /tmp where the paths of Ray's sockets would be too long."""
    usual = tempfile.gettempdir()
    return usual if len(os.fsencode(usual)) <= LONGEST_DIRECTORY else "/tmp"


def _environment(options: RayOptions) -> dict[str, str]:
    """Returns the environment of the driver's process, and of the workers that it starts on this machine."""
    found = {
        **os.environ,
        # Nobody is told what runs here.
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_COLOR_PREFIX": "0",
        "RAY_DEDUP_LOGS": "0",
        # A worker without GPUs of its own sees those that the server would.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    # Whoever reaches Ray's ports without this token is refused.
    found.setdefault("RAY_AUTH_MODE", "token")
    if options.address is None:
        found |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            # Ray then listens on 127.0.0.1 alone. Otherwise it listens on all interfaces, also where it is
            # told this address.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
        found.pop("RAY_AUTH_TOKEN_PATH", None)
    return found
