"""The demo, as a newcomer runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from training.tasks import LIVE_TASK, TASKS

DEMO = Path(__file__).parents[1] / "examples" / "demo.py"


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(DEMO), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(DEMO.parents[1])},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_adapter_answers_in_its_own_way(tmp_path: Path) -> None:
    try:
        shown = run(tmp_path, "--port", "0")
    finally:
        stopped = run(tmp_path, "--stop")
    assert "stopped the demo's server" in stopped
    scores = dict(re.findall(r"^   (\S+) +.* (\d+)% \(base: 0%\)$", shown, re.MULTILINE))
    assert scores.keys() == TASKS.keys()
    assert all(int(score) >= 90 for score in scores.values()), scores
    assert int(scores[LIVE_TASK]) >= 90
    assert "curl http://127.0.0.1:" in shown
