"""`multilora push`: what is sent, what is checked before, and what becomes of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from server.cli.exits import Exit
from tests.server.cli.conftest import Run
from tests.server.cli.live import Live
from tests.server.cli.scripted import Scripted


def test_a_folder_becomes_a_version_once(ask: Run, live: Live) -> None:
    first = ask("push", "pushed", live.adapter(1))
    assert first.code == 0, first.err
    assert first.out.startswith("pushed@1 published: rank 2, ")
    assert first.out.endswith(", off, default\n")
    again = ask("push", "pushed", live.adapter(1))
    assert (again.code, again.out.split(":")[0]) == (
        0,
        "pushed@1 is the newest version and has these files already",
    )
    second = ask("push", "pushed", live.adapter(2), "--json")
    assert (second.json["id"], second.json["aliases"]) == ("pushed@2", {"default": 100})


def test_the_name_moves_only_as_asked(ask: Run, live: Live) -> None:
    for alpha, flags in ((1, []), (2, ["--no-promote"]), (3, []), (4, ["--promote"])):
        assert ask("push", "placed", live.adapter(alpha), *flags).code == 0
        expected = {1: 1, 2: 1, 3: 1, 4: 4}[alpha]  # 3 does not follow, as the name was left at 1
        assert live.registry.resolve("placed").version == expected


def test_pin_and_no_wait(ask: Run, live: Live) -> None:
    pinned = ask("push", "kept", live.adapter(1), "--pin", "--json")
    assert pinned.json["desired"] == "pinned"
    later = ask("push", "kept", live.adapter(2), "--no-wait")
    assert (later.code, later.out) == (
        0,
        "kept@2 is uploaded; `multilora show kept@2` tells how its check went\n",
    )
    assert ask("push", "kept", live.adapter(2), "--no-wait", "--pin").code == Exit.USAGE


def test_lineage_labels_and_parent_go_along(ask: Run, live: Live, tmp_path: Path) -> None:
    assert ask("push", "born", live.adapter(1)).code == 0
    folder = shutil.copytree(live.adapter(2), tmp_path / "a")
    said = {
        "job": "job-7",
        "scores": {"exact": 0.5},
        "quantization": "nf4",
        "seed": 3,
        "parent": "elsewhere@1",
    }
    (folder / "lineage.json").write_text(json.dumps(said))
    version = ask("push", "born", folder, "--parent", "born@1", "--json").json
    assert version["trained_on_quantization"] == "nf4"
    assert version["lineage"]["job"] == "job-7"
    assert version["lineage"]["scores"] == {"exact": 0.5}
    assert version["lineage"]["parent"] == "born@1"
    given = tmp_path / "given.json"
    given.write_text('{"job": "job-8", "seed": 3}')
    refused = ask("push", "born", live.adapter(3), "--lineage", given)
    assert (refused.code, "seed" in refused.err) == (Exit.FAILED, True)


def test_the_files_are_sent_with_their_checksum(run: Run, server: Scripted, live: Live) -> None:
    folder = live.adapter(1)
    run("push", "sent", folder)
    weights = (folder / "adapter_model.safetensors").read_bytes()
    body = server.last.body
    assert weights in body
    assert (folder / "adapter_config.json").read_bytes() in body
    assert hashlib.sha256(weights).hexdigest().encode() in body
    assert server.last.headers["content-length"] == str(len(body))
    assert str(live.folder).encode() not in body  # where it lies here is nobody's business


def broken(folder: Path, what: str) -> None:
    """Damage a folder."""
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    match what:
        case "no config":
            config.unlink()
        case "no weights":
            weights.unlink()
        case "pickle":
            weights.rename(folder / "adapter_model.bin")
        case "not json":
            config.write_text("{")
        case "key twice":
            config.write_text('{"r": 1, "r": 2}')
        case "list":
            config.write_text("[]")
        case "not text":
            config.write_bytes(b"\xff")
        case "empty":
            weights.write_bytes(b"")
        case "cut":
            weights.write_bytes(content[:-1])
        case "longer":
            weights.write_bytes(content + b"x")
        case "huge header":
            weights.write_bytes((2**60).to_bytes(8, "little") + content)
        case "no offsets":
            weights.write_bytes((8).to_bytes(8, "little") + b'{"a": 1}')
        case "lineage":
            (folder / "lineage.json").write_text("[]")


BROKEN = (
    ("no config", "holds no adapter_config.json"),
    ("no weights", "holds no adapter_model.safetensors"),
    ("pickle", "safe_serialization=True"),
    ("not json", "is not valid JSON"),
    ("key twice", "given twice"),
    ("list", "must be a JSON object"),
    ("not text", "is not UTF-8"),
    ("empty", "truncated"),
    ("cut", "bytes, but its safetensors header tells of"),
    ("longer", "bytes, but its safetensors header tells of"),
    ("huge header", "truncated, or not a safetensors file"),
    ("no offsets", "without data_offsets"),
    ("lineage", "must be a JSON object"),
)


@pytest.mark.parametrize(("what", "says"), BROKEN)
def test_what_is_damaged_is_not_sent(
    run: Run, server: Scripted, live: Live, tmp_path: Path, what: str, says: str
) -> None:
    folder = shutil.copytree(live.adapter(1), tmp_path / "a")
    broken(folder, what)
    ended = run("push", "broken", folder)
    assert (ended.code, ended.err.count("\n")) == (Exit.FAILED, 1)
    assert says in ended.err
    assert server.asked == []


def test_what_the_server_refuses_is_its_own_line(ask: Run, live: Live, tmp_path: Path) -> None:
    folder = shutil.copytree(live.adapter(1), tmp_path / "a")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 3}))
    ended = ask("push", "refused", folder)
    assert (ended.code, ended.out) == (Exit.FAILED, "")
    assert ended.err.startswith("multilora: ")
    assert ask("show", "refused").code == Exit.NOT_FOUND


@pytest.mark.parametrize("name", ["Legal", "a@3", "../x", "-x", "a b", ""])
def test_names_are_checked_before_anything_is_sent(run: Run, server: Scripted, live: Live, name: str) -> None:
    assert run("push", "--", name, live.adapter(1)).code == Exit.USAGE
    assert server.asked == []


def test_a_folder_that_is_not_there(run: Run) -> None:
    assert run("push", "a", "/nowhere").err == "multilora: /nowhere: no such folder\n"


def test_folders_with_strange_names(
    ask: Run, live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("-folder", "Ordner mit ü 漢字", 'a"b;c'):
        shutil.copytree(live.adapter(1), tmp_path / name)
        monkeypatch.chdir(tmp_path)
        assert ask("push", "strange", "--", name).code == 0
