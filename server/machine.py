"""How much of this machine the process may use: what is free, and what its container allows.

Linux tells of containers through control groups. Their limits hold for everything beneath, so each group from
the process's own up to the root is asked. Version 2 has one tree; version 1 has one for each resource.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def free_memory(root: Path = ROOT) -> int:
    """Bytes that can still be taken: those free on the machine, or fewer where a container has a limit."""
    fields = _fields(root / "proc/meminfo")
    free = fields["MemAvailable:"] * 1024 if "MemAvailable:" in fields else _free_pages()
    return min([free, *_left_in_groups(root)])


def cores(root: Path = ROOT) -> int:
    """CPU cores that the process may use; of a quota the whole ones, and one at least.

    With a thread for the rest too, all would stand still whenever the quota is used up midway.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([allowed, *(max(1, int(quota)) for quota in _quotas(root))])


def _left_in_groups(root: Path) -> Iterator[int]:
    for names, group in _groups(root, "memory"):
        limit_file, used_file, cache_field = names
        limit, used = _number(group / limit_file), _number(group / used_file)
        if limit is not None and used is not None:
            # Pages of files that were not touched for a while are given back when memory is needed.
            cache = _fields(group / "memory.stat").get(cache_field, 0)
            yield max(0, limit - used + cache)


def _quotas(root: Path) -> Iterator[float]:
    for names, group in _groups(root, "cpu"):
        words = [word for name in names for word in _text(group / name).split()]
        quota, period = words if len(words) == 2 else ("", "")
        if quota.isdigit() and period.isdigit() and int(period):  # not "max" or -1
            yield int(quota) / int(period)


_FILES = {
    "memory": (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ),
    "cpu": (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")),
}


def _groups(root: Path, resource: str) -> Iterator[tuple[tuple[str, ...], Path]]:
    """Each group that the process is in, from its own up to the root, with the names of its files."""
    newer, older = _FILES[resource]
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        top = root / "sys/fs/cgroup"
        if controllers and resource not in controllers.split(","):
            continue
        if controllers:
            top = top / resource
        group = Path(path.lstrip("/"))
        for part in (group, *group.parents):
            yield older if controllers else newer, top / part


def _fields(path: Path) -> dict[str, int]:
    """`name number` on each line."""
    rows = (line.split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    """Empty where there is no such file: another system, or a group that this container doesn't see."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _free_pages() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
