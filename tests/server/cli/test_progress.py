"""A bar on a terminal, nothing elsewhere, and files that are counted as they are read."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from server.cli.progress import Counted, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("total", [10_000_000, None])
def test_a_terminal_sees_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch, total: int | None) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with Progress(total, "uploading") as progress:
        progress.add(5_000_000)
    assert "uploading" in screen.getvalue()
    assert screen.getvalue().endswith("\r")


def test_a_file_or_a_pipe_sees_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, "uploading") as progress:
        progress.add(10)
    assert capsys.readouterr().err == ""


def test_a_counted_file_reads_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(100)))
    counts: list[int] = []
    progress = Progress(None, "")
    monkeypatch.setattr(progress, "add", counts.append)
    with path.open("rb") as file:
        counted = Counted(file, progress)
        assert counted.read(64) == bytes(range(64))
        assert counted.read(64) == bytes(range(64, 100))
        assert counted.read(64) == b""
        assert (counted.seek(98), counted.read(10)) == (98, bytes([98, 99]))
        assert counted.fileno() == file.fileno()
    assert counts == [64, 36, 0, 2]
