"""The machine that figures come from, and how much of it others use meanwhile."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from server.machine import cores, free_memory

_TICKS = os.sysconf("SC_CLK_TCK")
_PACKAGES = ("torch", "transformers", "peft")
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")


def describe() -> dict[str, Any]:
    """Processor, cores, memory and versions, for a JSON file."""
    info = _cpuinfo()
    return {
        "processor": info.get("model name", platform.processor()),
        "flags": [flag for flag in _FLAGS if flag in info.get("flags", "").split()],
        "cores": cores(),
        "free memory GiB": round(free_memory() / 2**30, 1),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _cpuinfo() -> dict[str, str]:
    """The first processor of Linux's list; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().partition("\n\n")[0].splitlines() if path.exists() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """CPU seconds used so far: by everything on the machine, and by this process and its descendants."""

    at: float
    busy: float
    own: float

    @classmethod
    def now(cls) -> Self:
        """Read from Linux's /proc; zeros where there is none."""
        if not Path("/proc/stat").exists():
            return cls(0.0, 0.0, 0.0)
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        user, nice, system, _idle, _wait, irq, soft, steal = fields
        busy = user + nice + system + irq + soft + steal
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return cls(uptime, busy / _TICKS, _descendants(os.getpid()) / _TICKS)


def foreign_cores(before: CpuTimes, after: CpuTimes) -> float:
    """Cores that others used between two readings, on average; 0 where the system does not tell."""
    seconds = after.at - before.at
    foreign = (after.busy - before.busy) - (after.own - before.own)
    return max(0.0, foreign / seconds) if seconds > 0 else 0.0


def _descendants(root: int) -> int:
    """Clock ticks used by a process and all below it, those that ended and were waited for included."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        parents[int(folder.name)] = int(fields[1])
        ticks[int(folder.name)] = sum(int(field) for field in fields[11:15])
    total = 0
    for process in ticks:
        above: int | None = process
        while above and above != root:
            above = parents.get(above)
        total += ticks[process] if above == root else 0
    return total
