"""vLLM's own OpenAI server in a process of its own, on this machine only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from bench.peers.vllm_environment import PeerUnavailable
from bench.setting import threads

_START_SECONDS = 600  # its compiler takes minutes the first time
_STOP_SECONDS = 30
_KV_GIB = 1


@contextmanager
def vllm_serving(
    python: Path, base: Path, adapters: Mapping[str, Path], rank: int, dtype: str, log: Path
) -> Iterator[str]:
    """A server for the base (`base`) and these adapters, all in memory at once; yields its URL.

    Without adapters its LoRA support is off, which makes its base faster.

    Raises:
        PeerUnavailable: it did not become ready.
    """
    port = _free_port()
    command = [
        str(python),
        "-m",
        "vllm.entrypoints.cli.main",
        "serve",
        str(base),
        "--served-model-name",
        "base",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", dtype, "--max-model-len", "2048"]
    command += ["--no-enable-prefix-caching", "--max-num-seqs", "32"]
    if adapters:
        slots = str(len(adapters))
        command += ["--enable-lora", "--max-loras", slots, "--max-cpu-loras", slots]
        command += ["--max-lora-rank", str(max(8, rank)), "--lora-modules"]
        command += [f"{name}={folder}" for name, folder in adapters.items()]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(python),
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url, log)
        yield url
    finally:
        _stop(process)


def _environment(python: Path) -> dict[str, str]:
    """What vLLM's CPU guide asks for, as far as it is there: KV memory, bound threads, Intel's OpenMP."""
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": str(_KV_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads() - 1}",
        "VLLM_CACHE_ROOT": str(python.parents[1] / "cache"),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        environment.pop(name, None)
    openmp = python.parents[1] / "lib" / "libiomp5.so"
    if openmp.is_file():
        environment["LD_PRELOAD"] = str(openmp)
    return environment


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    lines = [line for line in log.read_text(errors="replace").splitlines() if "rror" in line]
    raise PeerUnavailable(f"vLLM: its server did not become ready: {(lines or ['see its log'])[-1][:300]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server with its workers, which share its process group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port
