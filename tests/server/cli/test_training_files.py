"""`multilora files`: what is sent comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.cli.exits import Exit
from tests.server.cli.conftest import Run
from tests.server.cli.live import Live
from tests.server.cli.scripted import Answer, Scripted

ROWS = b'{"prompt": "a", "completion": "b"}\n'
ID = "file-" + "0" * 24


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "my data.jsonl"
    path.write_bytes(ROWS)
    return path


def test_a_file_is_stored_listed_read_and_deleted(ask: Run, data: Path, tmp_path: Path) -> None:
    stored = ask("files", "put", data, "--expires", "2h")
    assert stored.code == 0
    file = stored.out.strip()
    (row,) = (line for line in ask("files", "ls").out.splitlines() if line.startswith(file))
    assert "my data.jsonl" in row
    assert "never" not in row
    known = ask("files", "get", file, "--json").json
    assert known["expires_at"] == known["created_at"] + 7200
    target = tmp_path / "copy.jsonl"
    assert ask("files", "get", file, "--output", target).code == 0
    assert target.read_bytes() == ROWS
    assert ask("files", "rm", file).out == f"deleted {file}\n"
    assert ask("files", "rm", file).code == Exit.NOT_FOUND
    assert ask("files", "get", file, "--output", tmp_path / "gone").code == Exit.NOT_FOUND
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.jsonl", "my data.jsonl"]


def test_content_goes_to_stdout(ask: Run, data: Path) -> None:
    file = ask("files", "put", data).out.strip()
    assert ask("files", "get", file).out == ROWS.decode()


def test_an_older_file_of_that_name_is_not_lost_by_a_broken_connection(
    run: Run, server: Scripted, tmp_path: Path
) -> None:
    target = tmp_path / "copy.jsonl"
    target.write_bytes(b"mine")
    server.answers = [Answer(body=b"half", length=100)]
    assert run("files", "get", ID, "--output", target).code == Exit.UNREACHABLE
    assert target.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["copy.jsonl"]


def test_only_who_may_publish_reads_data(ask: Run, live: Live) -> None:
    assert ask("files", "ls", "--key", live.key("use")).code == Exit.NOT_ALLOWED


@pytest.mark.parametrize(
    "words", [("get", "../x"), ("rm", "file-1"), ("put",), ("put", "x", "--expires", "soon")]
)
def test_wrong_command_lines_send_nothing(run: Run, server: Scripted, words: tuple[str, ...]) -> None:
    assert run("files", *words).code == Exit.USAGE
    assert server.asked == []


def test_a_file_that_is_not_there(run: Run, server: Scripted, tmp_path: Path) -> None:
    ended = run("files", "put", tmp_path / "none.jsonl")
    assert ended.code == Exit.FAILED
    assert "none.jsonl: No such file" in ended.err
    assert server.asked == []
