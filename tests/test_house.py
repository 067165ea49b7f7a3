"""The law of the house: a room imports only from floors below its own, and what is heavy comes late."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HTTP = {"fastapi", "starlette", "uvicorn", "httpx"}
ABOVE = {
    "adapters": {"server", "training", "bench", "tests", "examples", "peft", *HTTP},
    "training": {"server", "bench", "tests", "examples", *HTTP},
    "server": {"bench", "tests", "examples", "peft"},
    "server/engine": {
        "server.api",
        "server.cli",
        "server.launch",
        "server.metrics",
        "server.settings",
        "server.proof",
        *HTTP,
    },
    "server/access": {"server.api", "server.cli", "server.launch", "server.engine", "torch", *HTTP},
    "server/proof": {"server.api", "server.cli", "server.launch", "server.metrics", "server.settings", *HTTP},
    "server/jobs": {"server.api", "server.cli", "server.launch", "server.engine", "torch", *HTTP},
    "server/api": {"server.cli", "server.launch", "server.engine.core", "server.engine.engine", "torch"},
}
PEFT_PROCESS = "server/proof/worker.py"
"""Runs in a process of its own, and compares what is published with PEFT."""
MOST_LINES = 400


def imports(path: Path) -> set[str]:
    """Every module that the file names in an import, wherever it stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("room", ABOVE)
def test_a_room_imports_only_from_below(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        for module in imports(path):
            names = {".".join(module.split(".")[:depth]) for depth in range(1, module.count(".") + 2)}
            if path == ROOT / PEFT_PROCESS:
                names -= {"peft"}
            assert not names & ABOVE[room], f"{path.relative_to(ROOT)} imports {module}"


def test_nothing_imports_the_process_that_runs_peft() -> None:
    module = PEFT_PROCESS.removesuffix(".py").replace("/", ".")
    for room in ("adapters", "training", "server"):
        for path in (ROOT / room).rglob("*.py"):
            assert module not in imports(path), path


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("server.cli.main", ("torch", "transformers", "peft", "fastapi")),
        ("training", ("torch", "transformers", "peft")),
        ("training.base", ("torch", "transformers", "peft")),
        ("training.worker", ("torch", "transformers", "peft")),  # it stands back first, and sets threads
        ("server.launch", ("peft", "bench", "tests")),
    ],
)
def test_what_is_heavy_comes_late(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("room", ["adapters", "training", "server", "bench"])
def test_files_stay_small(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        assert len(path.read_text().splitlines()) <= MOST_LINES, path


def test_the_wheel_holds_the_rooms_and_the_shipped_base_and_no_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]

    # A package goes in whole, data files included, save what git ignores.
    assert wheel == {"packages": ["server", "adapters", "training"]}
    ignored = (ROOT / ".gitignore").read_text().split()
    for file in ("base/model/model.safetensors", "base/model/tokenizer.json", "py.typed"):
        assert (ROOT / "training" / file).is_file()
    assert not [line for line in ignored if "safetensors" in line or "json" in line or "model" in line]
    assert project["project"]["scripts"] == {"multilora": "server.cli.main:main"}


def test_all_that_is_required_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().split()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    extras = project["optional-dependencies"]
    for requirement in (*project["dependencies"], *extras["train"], *extras["dev"]):
        name = requirement.partition(">")[0].partition("[")[0].lower().replace("_", "-")
        assert name in pinned | {"multilora"}, requirement
    assert all("==" in line for line in lines)
