"""Measures that need the engine in their own process: `python -m bench.child MODULE JOB.json`.

The process sets its threads as the server does, which must happen before torch is imported; so nothing here
imports it. `bench.MODULE.inside(job)` is called and what it returns is printed as JSON.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from server.cli.threads import set_threads

_SECONDS = 1800


def run_child(module: str, job: dict[str, Any], folder: Path) -> Any:
    """What `bench.<module>.inside(job)` returns in a process of its own.

    Raises:
        RuntimeError: it failed; the message ends with its errors.
    """
    path = folder / f"{module}-job.json"
    path.write_text(json.dumps(job))
    command = [sys.executable, "-m", "bench.child", module, str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=_SECONDS)
    if done.returncode:
        raise RuntimeError(f"bench.{module} failed with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the job that the command line names."""
    module, path = sys.argv[1:]
    set_threads(0)
    result = importlib.import_module(f"bench.{module}").inside(json.loads(Path(path).read_text()))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
