"""The commands against a server on this machine, as a user has them: arguments in, text and exit code out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from server.cli import client
from server.cli.main import main
from tests.server.cli.live import Live, living
from tests.server.cli.scripted import Scripted, scripted


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def multilora(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; where it would wait before it tries again, it does not."""
    monkeypatch.delenv("MULTILORA_API_KEY", raising=False)
    monkeypatch.setattr(client, "PAUSES", (0.0, 0.0))

    def command(*words: object) -> Ran:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return command


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted() as script:
        yield script


@pytest.fixture
def run(server: Scripted, multilora: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command against `server`, whose answers are scripted."""
    monkeypatch.setenv("MULTILORA_SERVER", server.url)
    return multilora


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One server for many tests, each with names of its own."""
    with living(tmp_path_factory.mktemp("live")) as found:
        yield found


@pytest.fixture
def ask(live: Live, multilora: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command against `live`, with the operator's key unless it names another."""
    monkeypatch.setenv("MULTILORA_SERVER", live.url)
    monkeypatch.setenv("MULTILORA_API_KEY", live.operator)
    return multilora
