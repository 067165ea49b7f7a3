"""Who uses the processor."""

from __future__ import annotations

import subprocess
import sys

from bench.machine import CpuTimes, describe, foreign_cores

BUSY = "import time\nwhile time.process_time() < 0.5: pass"


def test_what_descendants_use_is_not_foreign() -> None:
    before = CpuTimes.now()
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    after = CpuTimes.now()

    assert after.own - before.own > 0.4
    assert foreign_cores(before, after) * (after.at - before.at) <= after.busy - before.busy - 0.4


def test_foreign_cores_is_what_is_not_ours() -> None:
    assert foreign_cores(CpuTimes(0, 10, 2), CpuTimes(10, 30, 7)) == 1.5
    assert foreign_cores(CpuTimes(0, 0, 0), CpuTimes(0, 0, 0)) == 0


def test_a_machine_has_cores_and_versions() -> None:
    machine = describe()
    assert machine["cores"] >= 1
    assert {"processor", "torch", "transformers", "peft", "python"} <= machine.keys()
