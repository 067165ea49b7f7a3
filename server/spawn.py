"""A real server process on this machine, for the demo, benchmarks and tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_READY = "multilora serves "


def start_server(
    arguments: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    seconds: float = 300,
) -> tuple[subprocess.Popen[bytes], str]:
    """Run `multilora serve` with `arguments` in a process session of its own; returns it and its URL.

    `--parity` is off unless the environment or the arguments say otherwise.

    Raises:
        RuntimeError: it ended, or was not ready after `seconds`; the message ends with its log.
    """
    command = [sys.executable, "-m", "server.cli.main", "serve", *arguments]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"MULTILORA_PARITY": "off", **os.environ, **(environment or {})},
            start_new_session=True,
        )
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith(_READY):
                return process, line.rpartition(" ")[2]
        time.sleep(0.05)
    process.kill()
    process.wait()
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-2000:]}")


def stop_server(process: subprocess.Popen[bytes], seconds: float = 60) -> int:
    """End a server with SIGTERM and return its exit code; after `seconds` it is killed."""
    process.terminate()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@contextmanager
def serving(
    arguments: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A server on a free port for the length of a `with`; yields its URL."""
    process, url = start_server(["--port", "0", *arguments], log, environment=environment)
    try:
        yield url
    finally:
        stop_server(process)
