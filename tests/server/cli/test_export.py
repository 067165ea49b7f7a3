"""`multilora export`: only plain files below the folder come out of an archive."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from server.cli.exits import Exit
from tests.server.cli.conftest import Run
from tests.server.cli.scripted import Answer, Scripted, refusal

PATH = "GET /v1/adapters/a@1/merged"


def archive(*members: tuple[str, bytes | str | None]) -> bytes:
    """A tar of files (bytes), symbolic links (text) and devices (None)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.type = tarfile.CHRTYPE if content is None else tarfile.SYMTYPE
                info.linkname = content or ""
                tar.addfile(info)
    return packed.getvalue()


BIG = bytes(range(256)) * 20_000
WHOLE = archive(("a-1/config.json", b"{}"), ("a-1/model.safetensors", BIG), ("a-1/below/x", b"x"))


def test_the_archive_becomes_the_folder(run: Run, server: Scripted, tmp_path: Path) -> None:
    server.route[PATH] = Answer(body=WHOLE, headers={"x-adapter": "a@1"})
    folder = tmp_path / "out"
    ended = run("export", "a@1", folder)
    assert (ended.code, ended.out) == (0, f"wrote a@1 merged into its base to {folder}\n")
    assert (folder / "config.json").read_bytes() == b"{}"
    assert (folder / "model.safetensors").read_bytes() == BIG
    assert (folder / "below" / "x").read_bytes() == b"x"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert run("export", "a@1", folder).code == Exit.CONFLICT


@pytest.mark.parametrize(
    "member",
    [
        ("/etc/evil", b"x"),
        ("../evil", b"x"),
        ("a/../../evil", b"x"),
        ("alone", b"x"),
        ("a/link", "/etc/passwd"),
        ("a/link", "config.json"),
        ("a/device", None),
        ("a/config.json", b"twice"),
        ("a/config.json/below", b"a file is no folder"),
    ],
)
def test_anything_else_is_refused_and_leaves_nothing(
    run: Run, server: Scripted, tmp_path: Path, member: tuple[str, bytes | str | None]
) -> None:
    server.route[PATH] = Answer(body=archive(("a/config.json", b"{}"), member))
    (tmp_path / "in").mkdir()
    ended = run("export", "a@1", tmp_path / "in" / "out")
    assert (ended.code, ended.err.count("\n")) == (Exit.FAILED, 1)
    assert "archive" in ended.err
    assert [path.name for path in tmp_path.rglob("*")] == ["in"]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(body=WHOLE[:-9000]), Exit.FAILED),  # the archive ends within a file
        (Answer(body=WHOLE[:-100_000], length=len(WHOLE)), Exit.UNREACHABLE),
        (Answer(body=WHOLE[:5120], length=len(WHOLE)), Exit.UNREACHABLE),
        (Answer(body=b"not a tar"), Exit.FAILED),
        (Answer(body=b""), Exit.FAILED),
        (Answer(body=archive()), Exit.FAILED),
        (refusal(400, "can't be merged", "not_mergeable"), Exit.FAILED),
        (refusal(429, "one at a time", "merge_running", retry_after="30"), Exit.TRY_LATER),
    ],
)
def test_a_broken_archive_leaves_nothing(
    run: Run, server: Scripted, tmp_path: Path, answer: Answer, code: Exit
) -> None:
    server.route[PATH] = answer
    ended = run("export", "a@1", tmp_path / "out")
    assert (ended.code, ended.err.count("\n")) == (code, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_stream_that_breaks_once_begins_again(run: Run, server: Scripted, tmp_path: Path) -> None:
    server.answers = [Answer(body=WHOLE[:100_000], length=len(WHOLE)), Answer(body=WHOLE)]
    assert run("export", "a@1", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == BIG
