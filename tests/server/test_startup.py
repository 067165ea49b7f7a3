"""The parts of the start add up to the age of the process."""

from __future__ import annotations

import subprocess
import sys
import time

from server.startup import Startup, process_age


def test_the_parts_are_all_the_time_since_the_process_began() -> None:
    startup = Startup()
    startup.lap("before")
    time.sleep(0.05)
    startup.lap("sleep")
    assert 0.05 <= startup.parts["sleep"] < 5
    assert abs(startup.seconds - process_age()) < 1
    assert str(startup).startswith("before ")


def test_the_age_is_that_of_the_process() -> None:
    code = "import time; time.sleep(0.4); from server.startup import process_age; print(process_age())"
    before = time.monotonic()
    age = float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert 0.35 < age < time.monotonic() - before + 0.1
