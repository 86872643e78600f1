"""What a process that computes is to be told: before it imports torch, and when its models are loaded."""

from __future__ import annotations

import gc
import os
import sys

# How long a thread may keep others from running Python code.
SWITCH_S = 0.001
# How often threads of OpenMP look for work before they sleep. Measured on two cores: small models take 1.1 to
# 1.3 times as long as with the default. Where other processes want both cores, they take 1.2 times as long as
# if threads slept at once, against 1.5 times with the default.
SPIN_COUNT = "4000"
# Kernels that torch's oneDNN layer keeps, one per shape of a matrix product and some 400 KB each; by default
# 1024. Jobs of ever other shapes would fill them all, and no plan counts that memory. Measured on 24 varied
# jobs of the demo model: a quarter of the default costs no more than 2 % of the CPU time.
KEPT_KERNELS = "256"


def prepare_process() -> None:
    """Sets variables that torch and gRPC read once, where they are not set, and Python's switch interval."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # Threads that wait for the next operation spin, by default for long, on cores that the event loop and
        # other processes need. If they slept at once, small models would take nearly twice as long.
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    os.environ.setdefault("LRU_CACHE_CAPACITY", KEPT_KERNELS)
    # gRPC's core would write a line in a format of its own about every handshake that fails, past the log.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # A call is answered in many turns between those of the worker, and by default waits 5 ms for each.
    sys.setswitchinterval(SWITCH_S)


def leave_out_of_garbage_collections() -> None:
    """Has garbage collections pass over all objects that there are.

    Models stay until the end. Each collection would search them, for a tenth of a second and more in which no
    call is answered.
    """
    gc.collect()
    gc.freeze()
