"""How the memory of a machine is divided among several workers, the server and Ray."""

from __future__ import annotations

from dataclasses import dataclass

# A server that computes nothing by itself: interpreter, libraries and tokenizers (280 MiB), threads,
# requests and results.
SERVER_BYTES = 448 << 20
# Ray's processes where it was started for the server, without the workers'. Resident, measured with Ray 2.60
# in MiB: 45 of the store of the cluster's state, 28 of the raylet, 94 and 80 of its agents, 82 of the
# monitor, 78 of the log monitor, 99 of the dashboard's process (which runs also without a dashboard), 79 of a
# process kept for the next worker, 92 of the driver. That is 677, a third of it shared; the rest is for
# messages.
RAY_BYTES = 768 << 20
# The same on a machine that is one of a cluster's: raylet, agents, log monitor, a process kept, and messages.
RAY_HOST_BYTES = 448 << 20
# What Ray takes inside the process of a worker.
RAY_WORKER_BYTES = 80 << 20


@dataclass(frozen=True)
class Division:
    """How workers share the memory of a machine, each in a process of its own.

    Args:
        workers: their number.
        joined: whether they run in a Ray cluster that was there before, one on a host: the machine then
            stands for each of these hosts, on which no server runs.
        device: what models are kept and computed on, such as ``cpu``.
        machine: bytes of memory of this device.
        threads: of each worker; None for as many as its host has cores.
        gpus: share of a GPU that each worker has; 0 without.
        gpus_here: number of GPUs of the machine; None where that is not known.
    """

    workers: int
    joined: bool
    device: str
    machine: int
    threads: int | None = None
    gpus: float = 0.0
    gpus_here: int | None = None

    @property
    def on_this_device(self) -> int:
        """How many workers share the device's memory."""
        if self.device != "cpu":
            return max(1, int(1 / self.gpus)) if self.gpus else 1
        return 1 if self.joined else self.workers

    @property
    def server(self) -> int:
        """Bytes of the device that the server takes beside the workers."""
        return SERVER_BYTES if self.device == "cpu" and not self.joined else 0

    @property
    def ray(self) -> int:
        """Bytes of the device that Ray takes, inside of workers and beside them."""
        if self.device != "cpu":
            return 0
        beside = RAY_HOST_BYTES if self.joined else RAY_BYTES
        return beside + self.on_this_device * RAY_WORKER_BYTES

    @property
    def share(self) -> int:
        """Bytes of the device that one worker gets."""
        return max(0, self.machine - self.server - self.ray) // self.on_this_device

    @property
    def has_place(self) -> bool:
        """Whether there is a device for each worker, as far as this machine tells."""
        if self.device == "cpu" or self.joined or self.gpus_here is None:
            return True
        return self.workers <= self.places

    @property
    def places(self) -> int:
        """How many such workers the GPUs of this machine have room for; 0 where that is not known."""
        return (self.gpus_here or 0) * self.on_this_device
