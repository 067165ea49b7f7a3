"""Law 6 for what no trainer ever wrote: ten thousand damaged and hostile adapters, and no surprise.

Each is refused with one clear line, or is sound by the safetensors library's own measure; none crashes the
reader, holds it up or makes it take memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.pages import ROOT
from tests.promises.mutations import MUTATIONS

NUMBER = 10_000
MIB = 1024**2
MOST_MEMORY = 320 * MIB
"""A header of 16 MiB is most of it: its text, the objects in it, and what made the corpus."""
MOST_SECONDS = 5.0


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `mutated_reading` says of the corpus."""
    command = [
        sys.executable,
        "-m",
        "tests.promises.mutated_reading",
        str(tmp_path_factory.mktemp("mutants")),
    ]
    done = subprocess.run([*command, str(NUMBER)], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"the reader was ended by {done.returncode}: {done.stderr[-3000:]}"
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_every_file_is_refused_in_one_line_or_sound(report: dict[str, Any]) -> None:
    assert not report["faults"], f"{len(report['faults'])} faults, such as\n" + "\n".join(
        report["faults"][:10]
    )


def test_no_file_takes_memory_or_time(report: dict[str, Any]) -> None:
    assert report["grown"] < MOST_MEMORY
    assert report["slowest"] < MOST_SECONDS


def test_every_mutation_is_there_and_most_do_harm(report: dict[str, Any]) -> None:
    outcomes = report["outcomes"]
    assert sum(sum(counts.values()) for counts in outcomes.values()) == NUMBER
    assert outcomes.keys() == {*MUTATIONS, "every cut", "huge header"}
    for kind, counts in outcomes.items():
        assert sum(counts.values()) > counts.get("read", 0), f"{kind}: never refused"
    harmless = sum(counts.get("read", 0) for counts in outcomes.values())
    assert NUMBER // 100 < harmless < NUMBER // 4
