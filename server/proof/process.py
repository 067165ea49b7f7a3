"""The server's end of the process that runs PEFT: started when it is needed, killed when it hangs."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from adapters.quantized import Quantization
from server.child import child_environment
from server.machine import cores, free_memory
from server.proof.subject import Subject
from server.proof.wire import Malformed, pack, unpack

NICE = 10
"""How much the process stands back behind the server (nice(2))."""
START_SECONDS = 120.0
"""Longest that importing PEFT may take."""
ANSWER_SECONDS = 180.0
"""Longest that one request may take; the first one reads the base."""
_ROOM = 1.3  # free memory that a start asks for, as a part of the base's files
_PIECE = 1024**2


class Unavailable(Exception):
    """PEFT has no answer, and why, in one line."""


@dataclass(frozen=True, slots=True)
class OracleRows:
    """PEFT's side: of each prompt what `stock_rows` gives, float32 `(rows, width)`."""

    base: tuple[Tensor, ...]
    adapter: tuple[Tensor, ...]


class PeftProcess:
    """PEFT's forward over one base, in a process of its own. Safe from any thread; one request at a time.

    Attributes:
        answer_seconds: after so long the process counts as hung, and is killed.
    """

    def __init__(
        self,
        folder: Path,
        dtype: str,
        quantization: Quantization | None = None,
        *,
        idle_seconds: float = 300.0,
    ) -> None:
        """
        Args:
            folder: of the base. `dtype`: the name of a type, as settings have it.
            quantization: of the base as it is served.
            idle_seconds: without a request for so long the process ends itself; the next one starts another.
        """
        self.answer_seconds = ANSWER_SECONDS
        self._begin: Mapping[str, Any] = {
            "folder": str(folder.resolve()),
            "dtype": dtype,
            "quantization": quantization,
            "nice": NICE,
            "idle_seconds": idle_seconds,
        }
        self._folder = folder
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this object

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def rows(
        self, adapter: Path, subject: Subject, prompts: Sequence[Sequence[int]], positions: int
    ) -> OracleRows:
        """PEFT's numbers at the last `positions` tokens of each prompt, with the adapter and without.

        Raises:
            Unavailable: there is no PEFT, no memory for a second base, or the process failed or hung.
        """
        request = pack(
            {
                "adapter": str(adapter.resolve()),
                "subject": subject.to_json(),
                "prompts": [[*prompt] for prompt in prompts],
                "positions": positions,
            }
        )
        with self._lock:
            if self.pid is None:
                self._start()
            header, tensors = self._ask(request, self.answer_seconds)
        if "error" in header:
            raise Unavailable(f"PEFT could not run it: {header['error'][:300]}")
        try:
            return OracleRows(
                tuple(tensors[f"base.{index}"] for index in range(len(prompts))),
                tuple(tensors[f"adapter.{index}"] for index in range(len(prompts))),
            )
        except KeyError as error:
            raise Unavailable("the process that runs PEFT answered without numbers") from error

    def close(self) -> None:
        """End the process for good, whatever it does; who waits for an answer gets `Unavailable`."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._discard()

    def _discard(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _end(process)

    def _start(self) -> None:
        self._discard()
        if self._closed:
            raise Unavailable("the server is shutting down")
        if find_spec("peft") is None:
            raise Unavailable("PEFT is not installed; pip install 'multilora[train]'")
        needed = int(_ROOM * sum(file.stat().st_size for file in self._folder.glob("*.safetensors")))
        if (free := free_memory()) < needed:
            raise Unavailable(
                f"a second base, for PEFT, takes about {needed / 2**30:.1f} GiB; "
                f"{free / 2**30:.1f} GiB are free"
            )
        self._errors.truncate(0)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "server.proof.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=child_environment(
                CUDA_VISIBLE_DEVICES="",
                HF_HUB_OFFLINE="1",
                OMP_NUM_THREADS=str(max(1, cores() // 2)),
                OMP_WAIT_POLICY="PASSIVE",
                TOKENIZERS_PARALLELISM="false",
                TRANSFORMERS_VERBOSITY="error",
            ),
            start_new_session=True,
        )
        self._ask(pack(self._begin), START_SECONDS)

    def _ask(self, message: bytes, seconds: float) -> tuple[dict[str, Any], dict[str, Tensor]]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        answer, deadline = process.stdout.fileno(), time.monotonic() + seconds
        try:
            process.stdin.write(message)
            process.stdin.flush()
            return unpack(lambda size: _take(answer, size, deadline))
        except TimeoutError:
            self._discard()
            raise Unavailable(f"PEFT gave no answer within {seconds:.0f} s") from None
        except (OSError, EOFError, Malformed) as error:
            self._discard()
            raise Unavailable(
                f"the process that runs PEFT ended: {self._last_words(process, error)}"
            ) from error

    def _last_words(self, process: subprocess.Popen[bytes], error: Exception) -> str:
        """The last line that it wrote, or how it ended."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        code = process.returncode
        return (lines[-1][:300] if lines else "") or (f"exit code {code}" if code is not None else str(error))


def _take(handle: int, size: int, deadline: float) -> bytes:
    """Exactly `size` bytes."""
    parts = bytearray()
    while len(parts) < size:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([handle], [], [], left)[0]:
            raise TimeoutError
        part = os.read(handle, min(size - len(parts), _PIECE))
        if not part:
            raise EOFError("it closed its output")
        parts += part
    return bytes(parts)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:  # what was left to write goes nowhere
                continue
