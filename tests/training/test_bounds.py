"""Bounds hold a whole process, so each is set in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.bounds import is_out_of_memory, says_out_of_memory

ROOT = Path(__file__).parents[2]


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"from training.bounds import *\nimport os\n{code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_memory_beyond_the_bound_is_an_error_and_within_it_is_not() -> None:
    code = (
        "bound_memory(128 * 2**20)\nheld = bytearray(64 * 2**20)\n"
        "try:\n    bytearray(128 * 2**20)\nexcept MemoryError as error:\n    print(is_out_of_memory(error))"
    )
    assert run(code) == "True"


def test_a_bound_below_what_is_taken_is_said_at_once() -> None:
    code = (
        "held = bytearray(b'x') * (64 * 2**20)\n"
        "try:\n    bound_memory(32 * 2**20)\nexcept MemoryError as error:\n    print(error)"
    )
    assert "MiB, and 32 MiB are allowed" in run(code)


def test_the_lowest_place_is_behind_everybody() -> None:
    nice, policy, score = run(
        "stand_back(19)\nprint(os.nice(0), os.sched_getscheduler(0), open('/proc/self/oom_score_adj').read())"
    ).split()
    assert (nice, policy, score) == ("19", str(os.SCHED_IDLE), "1000")


def test_a_place_in_between_is_only_nice() -> None:
    before = os.nice(0)
    nice, policy = run("stand_back(1)\nprint(os.nice(0), os.sched_getscheduler(0))").split()
    assert (int(nice), int(policy)) == (min(19, before + 1), os.sched_getscheduler(0))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 536870912"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 MiB"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
    wrapped = ValueError("training failed")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped) is expected


def test_last_words() -> None:
    assert says_out_of_memory("terminate called after throwing an instance of 'std::bad_alloc'")
    assert not says_out_of_memory("killed by SIGKILL")
