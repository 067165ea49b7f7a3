"""Threads of the model on the CPU. To be set before torch is imported."""

from __future__ import annotations

import os

from server.machine import cores


def set_threads(threads: int) -> None:
    """Let OpenMP use `threads` threads (0 chooses), unless the operator's environment says otherwise.

    OpenMP's workers spin while they wait. When anything else runs on their cores (the server's own HTTP, a
    client) each operation then waits for the scheduler. So the workers sleep instead.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(threads or cores()))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
