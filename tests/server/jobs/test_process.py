"""The server's end of a process: what it says, and how it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from server.jobs.process import TrainingProcess
from training.protocol import Work

HEAD = "import json, sys, time, os, signal\nwork = json.loads(sys.stdin.readline())\n"


@contextmanager
def running(tmp_path: Path, code: str, *, gpu: bool = True) -> Iterator[TrainingProcess]:
    work = Work("base", 1, (), 1000)
    process = TrainingProcess(work, tmp_path / "log", (sys.executable, "-c", HEAD + code), gpu=gpu)
    try:
        yield process
    finally:
        process.close()


def all_of(process: TrainingProcess) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    try:
        while True:
            found += process.messages(5)
    except EOFError:
        return found


def test_it_hears_its_work_and_what_it_says_comes_whole(tmp_path: Path) -> None:
    code = (
        "parts = {'memory': work['memory_bytes']}, 'x' * 200000\n"
        "out = ''.join(json.dumps(part) + chr(10) for part in parts).encode()\n"
        "for start in range(0, len(out), 7000): os.write(1, out[start : start + 7000])"
    )
    with running(tmp_path, code) as process:
        assert all_of(process) == [{"memory": 1000}, "x" * 200000]
        assert process.close(5) == 0


def test_a_gpu_is_hidden_from_one_that_is_to_train_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    name = "CUDA_VISIBLE_DEVICES"
    for gpu, seen in ((True, "0"), (False, "")):
        with running(tmp_path, f"print(json.dumps({{'seen': os.environ['{name}']}}))", gpu=gpu) as process:
            assert all_of(process) == [{"seen": seen}]


def test_silence_takes_no_longer_than_asked(tmp_path: Path) -> None:
    with running(tmp_path, "time.sleep(60)") as process:
        started = time.monotonic()
        assert list(process.messages(0.1)) == []
        assert time.monotonic() - started < 5
        process.kill()
        assert all_of(process) == []
        process.close()
        assert process.last_words() == "killed by SIGKILL"


def test_a_job_is_stopped_and_an_ended_process_is_not_told(tmp_path: Path) -> None:
    with running(tmp_path, "print(sys.stdin.readline(), end='', flush=True)") as process:
        process.stop("a")
        assert all_of(process) == [{"stop": "a"}]
        process.stop("b")


def test_last_words(tmp_path: Path) -> None:
    with running(tmp_path, "print('first\\nlast ' + 'x' * 1000, file=sys.stderr); sys.exit(3)") as process:
        all_of(process)
        assert process.close(5) == 3
        assert process.last_words() == ("last " + "x" * 1000)[:300]
    with running(tmp_path, "os.kill(os.getpid(), signal.SIGSEGV)") as process:
        all_of(process)
        process.close(5)
        assert process.last_words() == "killed by SIGSEGV"
