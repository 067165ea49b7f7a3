"""A real `multilora serve` process on a free port of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(
    arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, seconds: float = 300
) -> Iterator[str]:
    """Start a server, yield its URL when it is ready, end it with SIGTERM.

    Raises:
        RuntimeError: it ended or took longer than `seconds`; the message ends with its log.
    """
    command = [sys.executable, "-m", "server.cli.main", "serve", "--port", "0", *arguments]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
    try:
        yield _wait_for_url(process, log, seconds)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_url(process: subprocess.Popen[bytes], log: Path, seconds: float) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if line.startswith("multilora serves ") and " at http://" in line:
                return line.rpartition(" ")[2]
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-2000:]}")
