"""Limits of containers, on the files by which Linux tells of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.machine import cores, free_memory

MIB = 1024**2
FREE = {"proc/meminfo": f"MemTotal: {9000 * 1024} kB\nMemAvailable: {8000 * 1024} kB\n"}
NONE = "9223372036854771712"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file system of a machine with 16 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def memory2(group: str, limit: str, used: int, cache: int = 0) -> dict[str, str]:
    top = f"sys/fs/cgroup/{group}"
    stat = f"anon 5\ninactive_file {cache * MIB}\n"
    return {
        f"{top}/memory.max": limit,
        f"{top}/memory.current": str(used * MIB),
        f"{top}/memory.stat": stat,
    }


def memory1(group: str, limit: str, used: int, cache: int = 0) -> dict[str, str]:
    top = f"sys/fs/cgroup/memory/{group}"
    return {
        f"{top}/memory.limit_in_bytes": limit,
        f"{top}/memory.usage_in_bytes": str(used * MIB),
        f"{top}/memory.stat": f"total_inactive_file {cache * MIB}\n",
    }


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        pytest.param("", {}, 8000, id="no groups"),
        pytest.param("0::/\n", memory2("", "max", 100), 8000, id="no limit"),
        pytest.param("0::/\n", memory2("", str(1000 * MIB), 300), 700, id="a limit"),
        pytest.param("0::/\n", memory2("", str(1000 * MIB), 300, cache=200), 900, id="cache is free"),
        pytest.param("0::/\n", memory2("", str(100 * MIB), 300), 0, id="none left"),
        pytest.param("0::/\n", memory2("", str(99000 * MIB), 300), 8000, id="a limit above what there is"),
        pytest.param("0::/a/b\n", memory2("a", str(900 * MIB), 300), 600, id="of a group above"),
        pytest.param("4:cpu,memory:/\n", memory1("", NONE, 100), 8000, id="version 1, no limit"),
        pytest.param("4:memory:/\n0::/\n", memory1("", str(1000 * MIB), 300, 50), 750, id="version 1"),
        pytest.param("4:memory:/docker/x\n", memory1("", str(900 * MIB), 300), 600, id="unseen path"),
        pytest.param("4:pids:/\n", memory1("", str(900 * MIB), 300), 8000, id="of something else"),
    ],
)
def test_free_memory(root: Path, groups: str, files: dict[str, str], free: int) -> None:
    write(root, {**FREE, "proc/self/cgroup": groups, **files})
    assert free_memory(root) == free * MIB


def test_a_system_without_such_files_is_asked_itself(root: Path) -> None:
    assert free_memory(root) > 0
    assert cores(root) == 16


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 16),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "nonsense"}, 16),
        ("0::/a/b\n", {f"sys/fs/cgroup/{g}cpu.max": f"{n}00 100" for g, n in (("a/b/", 5), ("a/", 3))}, 3),
    ],
)
def test_cores_of_a_quota(root: Path, groups: str, files: dict[str, str], expected: int) -> None:
    write(root, {"proc/self/cgroup": groups, **files})
    assert cores(root) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 16), ("300000", 3)])
def test_cores_of_a_quota_of_version_1(root: Path, quota: str, expected: int) -> None:
    top = "sys/fs/cgroup/cpu"
    files = {f"{top}/cpu.cfs_quota_us": f"{quota}\n", f"{top}/cpu.cfs_period_us": "100000\n"}
    write(root, {"proc/self/cgroup": "3:cpu,cpuacct:/\n", **files})
    assert cores(root) == expected
