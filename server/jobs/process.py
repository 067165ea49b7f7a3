"""The server's end of the process that trains: what it is told, what it says, and how it ended."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from server.child import child_environment
from training.protocol import Work, work_to_json

COMMAND = (sys.executable, "-m", "training.worker")
_PIECE = 1024**2
_MOST_WORDS = 300


class TrainingProcess:
    """One process with its work. For one thread; it ends by itself when this process is gone."""

    def __init__(self, work: Work, log: Path, command: Sequence[str] = COMMAND, *, gpu: bool = True) -> None:
        """Start it. `log` gets what it and its libraries say besides; it is begun anew.

        Args:
            gpu: whether it may see a GPU.
        """
        self._log = log
        self._rest = b""
        threads = str(work.threads)
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=child_environment(
                    HF_HUB_OFFLINE="1",
                    OMP_NUM_THREADS=threads,
                    MKL_NUM_THREADS=threads,
                    OMP_WAIT_POLICY="PASSIVE",
                    TOKENIZERS_PARALLELISM="false",
                    TRANSFORMERS_VERBOSITY="error",
                    **({} if gpu else {"CUDA_VISIBLE_DEVICES": ""}),
                ),
                # Ctrl-C is for the server. A session of its own would also shield it, but Linux weighs
                # sessions against each other before it looks at nice values within one.
                process_group=0,
            )
        self._tell(work_to_json(work))

    @property
    def pid(self) -> int:
        return self._process.pid

    def messages(self, seconds: float) -> Iterator[dict[str, Any]]:
        """What it says within `seconds`.

        Raises:
            EOFError: it has ended, and there is nothing left to read.
        """
        assert self._process.stdout is not None
        handle, deadline = self._process.stdout.fileno(), time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and select.select([handle], [], [], left)[0]:
            piece = os.read(handle, _PIECE)
            if not piece:
                raise EOFError
            *lines, self._rest = (self._rest + piece).split(b"\n")
            yield from map(json.loads, lines)

    def stop(self, job: str) -> None:
        """Have it save one job and leave it."""
        self._tell({"stop": job})

    def kill(self) -> None:
        """End it at once; `messages` says when it has."""
        self._process.kill()

    def close(self, seconds: float = 0.0) -> int:
        """Wait `seconds` for its end, then kill it; returns its exit code."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self._process.kill()
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # what was left to write goes nowhere
                    pipe.close()
        return code

    def last_words(self) -> str:
        """The last line that it wrote, or how it ended."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:_MOST_WORDS] if lines else self.ending()

    def ending(self) -> str:
        """How it ended."""
        code = self._process.poll()
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: `messages` says so
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
