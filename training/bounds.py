"""How a process that trains beside a server stays small and stands back. Nothing here imports torch."""

from __future__ import annotations

import os
import re
import resource
from contextlib import suppress
from pathlib import Path

LOWEST = 19
_MIB = 1024**2
_OUT_OF_MEMORY = re.compile(r"can't allocate memory|out of memory|cannot allocate memory|bad_alloc", re.I)


def stand_back(nice: int) -> None:
    """Let others go first: on the processor, at the disk, and if the machine's memory ends.

    At `LOWEST` the kernel runs this process only where nobody else wants to run, and serves its reads and
    writes last. Call it before there are threads: they inherit it.
    """
    os.nice(nice)
    if nice >= LOWEST and hasattr(os, "SCHED_IDLE"):
        with suppress(OSError):  # a container may forbid it; nice alone is nearly as good
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def bound_memory(nbytes: int) -> None:
    """Have allocations fail once this process has taken `nbytes`, what it has by now included.

    Libraries reserve far more than they use, so that is not counted: only what is taken from here on. With a
    GPU there is no such bound: its driver reserves without end.

    Raises:
        MemoryError: it has more already.
    """
    taken, reserved = _status("RssAnon"), _status("VmData")
    if taken >= nbytes:
        raise MemoryError(
            f"the libraries alone take {taken // _MIB} MiB, and {nbytes // _MIB} MiB are allowed"
        )
    limit = reserved + nbytes - taken
    if not any(Path("/proc/driver").glob("nvidia*")):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this, or what led to it, is an allocation that failed, in Python, torch or a library."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, MemoryError) or _OUT_OF_MEMORY.search(str(found)):
            return True
        found = found.__cause__ or found.__context__
    return False


def says_out_of_memory(text: str) -> bool:
    """Whether the last words of a process that died tell of an allocation that failed."""
    return _OUT_OF_MEMORY.search(text) is not None


def _status(field: str) -> int:
    """Bytes, as Linux tells them of this process."""
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.M)
    return int(found[1]) * 1024 if found else 0
