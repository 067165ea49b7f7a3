"""`multilora pull`: a whole, verified folder or none."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from peft import PeftConfig

from server.cli.exits import Exit
from server.cli.pull import REPLACEABLE
from tests.server.cli.conftest import Run
from tests.server.cli.live import Live
from tests.server.cli.scripted import Answer, Scripted, refusal


def test_what_was_pushed_comes_back_byte_for_byte(ask: Run, live: Live, tmp_path: Path) -> None:
    assert ask("push", "round", live.adapter(1)).code == 0
    assert ask("push", "round", live.adapter(2)).code == 0
    for ref, alpha in (("round@1", 1), ("round", 2), ("default/round@default", 2)):
        folder = tmp_path / ref.replace("/", "-")
        ended = ask("pull", ref, folder)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.startswith(f"wrote round@{alpha} to {folder}: rank 2, ")
        for file in live.adapter(alpha).iterdir():
            assert (folder / file.name).read_bytes() == file.read_bytes()
        assert PeftConfig.from_pretrained(str(folder)).lora_alpha == alpha
        assert ask("push", "round-trip", folder).code == 0  # with the lineage.json that came along
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_is_there_is_kept_unless_forced(ask: Run, live: Live, tmp_path: Path) -> None:
    assert ask("push", "kept-here", live.adapter(1)).code == 0
    folder = tmp_path / "a"
    folder.mkdir()
    assert ask("pull", "kept-here", folder).code == 0  # an empty folder is no loss
    (folder / "labels.json").write_text("stale")
    ended = ask("pull", "kept-here", folder)
    assert (ended.code, ended.err) == (Exit.CONFLICT, f"multilora: {folder} is there and not empty\n")
    assert ask("pull", "kept-here", folder, "--force").code == 0
    assert not (folder / "labels.json").exists()

    (folder / "thesis.tex").write_text("years of work")
    ended = ask("pull", "kept-here", folder, "--force")
    assert (ended.code, "thesis.tex" in ended.err) == (Exit.CONFLICT, True)
    assert (folder / "thesis.tex").read_text() == "years of work"


def test_files_and_links_are_not_replaced(ask: Run, live: Live, tmp_path: Path) -> None:
    assert ask("push", "linked", live.adapter(1)).code == 0
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("file", "link"):
        assert ask("pull", "linked", tmp_path / name, "--force").code == Exit.CONFLICT
    assert not (tmp_path / "elsewhere").exists()


def test_who_may_not_see_it_finds_nothing(ask: Run, live: Live, tmp_path: Path) -> None:
    assert ask("pull", "nobody", tmp_path / "a").code == Exit.NOT_FOUND
    assert list(tmp_path.iterdir()) == []


VERSION = {
    "object": "adapter",
    "id": "a@1",
    "tenant": "default",
    "name": "a",
    "version": 1,
    "rank": 8,
    "size": 5,
}
BODY = b"bytes"
GOOD = Answer(body=BODY, headers={"x-sha256": hashlib.sha256(BODY).hexdigest()})


def serve(server: Scripted, **files: Answer) -> None:
    path = "GET /v1/adapters/default/a@1/files/"
    server.route["GET /v1/adapters/a"] = Answer(body=VERSION)
    for file in ("adapter_config.json", "adapter_model.safetensors", "labels.json", "lineage.json"):
        server.route[path + file] = files.get(file.partition(".")[0], GOOD)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(body=BODY),
        Answer(body=BODY, headers={"x-sha256": "0" * 64}),
        Answer(body=BODY[:-1], headers=GOOD.headers),
        Answer(body=BODY, headers=GOOD.headers, length=9),
        Answer(drop=True),
        refusal(404, "deleted meanwhile", "adapter_not_found"),
        refusal(500, "oops"),
    ],
)
def test_a_damaged_file_leaves_nothing(run: Run, server: Scripted, tmp_path: Path, answer: Answer) -> None:
    serve(server, adapter_model=answer)
    ended = run("pull", "a", tmp_path / "out")
    assert ended.code not in (Exit.DONE, Exit.USAGE)
    assert ended.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_not_every_adapter_has(run: Run, server: Scripted, tmp_path: Path) -> None:
    serve(server, labels=refusal(404, "no file", "file_not_found"))
    assert run("pull", "a", tmp_path / "out", "--json").json == {**VERSION, "folder": str(tmp_path / "out")}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        {*REPLACEABLE} - {"labels.json", "README.md"}
    )


def test_an_interrupt_leaves_nothing(
    run: Run, server: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(server)
    (tmp_path / "out").mkdir()

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("server.cli.progress.Progress.add", interrupted)
    assert run("pull", "a", tmp_path / "out").code == Exit.INTERRUPTED
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert list((tmp_path / "out").iterdir()) == []


def test_a_parent_that_can_not_be_made(run: Run, server: Scripted, tmp_path: Path) -> None:
    serve(server)
    (tmp_path / "file").write_text("")
    ended = run("pull", "a", tmp_path / "file" / "out")
    assert (ended.code, ended.err.count("\n")) == (Exit.FAILED, 1)


def test_the_answer_is_json(ask: Run, live: Live, tmp_path: Path) -> None:
    assert ask("push", "as-json", live.adapter(1)).code == 0
    shown = json.loads(ask("pull", "as-json", tmp_path / "a", "--json").out)
    assert (shown["id"], shown["folder"]) == ("as-json@1", str(tmp_path / "a"))
