"""`multilora show`: the version, its aliases with their history, its origin."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from server.cli.exits import Exit
from tests.server.cli.conftest import Run
from tests.server.cli.live import Live


def test_everything_that_is_known(ask: Run, live: Live, tmp_path: Path) -> None:
    assert ask("push", "shown-base", live.adapter(1)).code == 0
    folder = shutil.copytree(live.adapter(2), tmp_path / "a")
    (folder / "lineage.json").write_text(
        json.dumps(
            {"job": "job-7", "scores": {"exact": 0.5}, "data": [{"name": "d.jsonl", "sha256": "0" * 64}]}
        )
    )
    assert ask("push", "shown-all", folder, "--parent", "shown-base@1").code == 0
    assert ask("push", "shown-all", live.adapter(3)).code == 0
    assert ask("alias", "set", "shown-all", "prod", 1).code == 0

    out = ask("show", "shown-all@1").out
    words = [line.split() for line in out.splitlines()]
    assert ["id", "shown-all@1"] in words
    assert ["state", "ready"] in words
    assert ["rank", "2"] in words
    assert ["versions", "1", "2"] in words
    assert ["proof", "status", "off"] in words
    assert ["parent", "shown-base@1"] in words
    assert ["ancestors", "shown-base@1"] in words
    assert ["job", "job-7"] in words
    assert ["score", "exact", "0.5"] in words
    assert ["data", "d.jsonl", "0" * 64] in words
    assert [line[:4] for line in words if line[:1] in (["default"], ["before"], ["prod"])] == [
        ["default", "2", "-", "2"],
        ["before", "1", "-", "1"],
        ["prod", "1", "-", "1"],
    ]
    found = ask("show", "shown-all@1", "--json").json
    assert found["adapter"]["id"] == "shown-all@1"
    assert [version["id"] for version in found["lineage"]] == ["shown-all@1", "shown-base@1"]
    history = {
        alias["alias"]: [entry["revision"] for entry in alias["history"]] for alias in found["aliases"]
    }
    assert history == {"default": [2, 1], "prod": [1]}


def test_a_name_is_what_its_default_alias_means(ask: Run, live: Live) -> None:
    for alpha in (1, 2):
        assert ask("push", "meant", live.adapter(alpha)).code == 0
    assert ask("promote", "meant@1").code == 0
    assert ask("show", "meant", "--json").json["adapter"]["id"] == "meant@1"


def test_a_tombstone_is_shown(ask: Run, live: Live) -> None:
    assert ask("push", "buried", live.adapter(1)).code == 0
    assert ask("rm", "buried", "--yes").code == 0
    ended = ask("show", "buried@1")
    assert (ended.code, ["state", "deleted"] in [line.split() for line in ended.out.splitlines()]) == (
        0,
        True,
    )
    assert ask("show", "buried@2").code == Exit.NOT_FOUND


def test_another_tenants_bare_name_is_not_ones_own(ask: Run, live: Live) -> None:
    """What the default tenant shares is told of as `default/twin`: a bare name is one's own."""
    assert ask("tenants", "set", "twins").code == 0
    key = live.key("use", "publish", tenant="twins")
    assert ask("push", "twin", live.adapter(1)).code == 0
    assert ask("push", "twin", live.adapter(2)).code == 0
    assert ask("share", "twin", "twins").code == 0
    assert ask("push", "twin", live.adapter(3), "--key", key).code == 0
    found = ask("show", "default/twin", "--key", key, "--json").json
    assert found["adapter"]["id"] == "default/twin@2"
    assert [alias["id"] for alias in found["aliases"]] == ["default/twin@default"]
    assert ask("show", "twin", "--key", key, "--json").json["adapter"]["id"] == "twins/twin@1"
