"""Compiles the project's C++ sources on the machine that runs them, once, and loads them.

The instruction set differs from machine to machine, so nothing is shipped compiled. Triton and torch's own
compiler do the same. Without a compiler everything still works, in plain torch operations.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from adapters.batch.native.switch import DISABLE

log = logging.getLogger(__name__)

_FLAGS = ("-O2", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-fno-exceptions")
_COMPILE_SECONDS = 120


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/multilora`, or `~/.cache/multilora`."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "multilora"


@functools.cache
def load_library(source: Path) -> ctypes.CDLL | None:
    """The compiled form of `source`, or None (logged once) where it can't be compiled or is not wanted."""
    if os.environ.get(DISABLE) == "0":
        return None
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        log.warning("no C++ compiler found: the CPU path runs in plain torch, slower; install g++")
        return None
    try:
        return ctypes.CDLL(str(_compiled(compiler, source)))
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        reason = next((line for line in output.splitlines() if line.strip()), "no reason given")
        log.warning("%s can't be compiled, the CPU path runs in plain torch, slower: %s", source.name, reason)
        return None


def _compiled(compiler: str, source: Path) -> Path:
    """The library's path, compiled now unless the same source was compiled by the same means before."""
    target = cache_dir() / f"{source.stem}-{_fingerprint(compiler, source)}.so"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder) / target.name
            subprocess.run(
                [compiler, *_FLAGS, str(source), "-o", str(built), *_openmp()],
                check=True,
                capture_output=True,
                text=True,
                timeout=_COMPILE_SECONDS,
            )
            built.replace(target)  # whole or not at all, whoever else compiles at the same time
    return target


def _fingerprint(compiler: str, source: Path) -> str:
    version = subprocess.run(
        [compiler, "-march=native", "-Q", "--help=target", "--version"],
        capture_output=True,
        text=True,
        timeout=_COMPILE_SECONDS,
    ).stdout
    hasher = hashlib.sha256()
    for part in (compiler, version, *_FLAGS, *_openmp(), torch.__version__):
        hasher.update(part.encode() + b"\0")
    hasher.update(source.read_bytes())
    return hasher.hexdigest()[:24]


def _openmp() -> list[str]:
    """Torch's own OpenMP runtime: a second one in the process would keep threads of its own."""
    return [str(path) for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))[:1]]
