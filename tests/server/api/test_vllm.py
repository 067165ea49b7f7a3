"""vLLM's two routes: its bodies, its text answers, and no way out of the allowed folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from adapters.registry.records import Target
from server.api.app import create_app
from server.api.context import ServerContext
from server.api.errors import INVALID
from tests.server.api.fakes import FakeRegistry, make_context
from tests.server.api.test_models import ACME, as_caller

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.fixture
def allowed(context: ServerContext) -> Path:
    assert context.settings.adapter_dir is not None
    make_folder(context.settings.adapter_dir / "sql")
    return context.settings.adapter_dir


def make_folder(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_bytes(b"{}")
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def load(client: TestClient, path: object, name: str = "sql", **fields: Any) -> Any:
    return client.post(LOAD, json={"lora_name": name, "lora_path": str(path), **fields})


def test_load_and_unload_answer_as_vllm_does(
    client: TestClient, registry: FakeRegistry, allowed: Path
) -> None:
    loaded = load(client, allowed / "sql")
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'sql' added successfully.")
    assert loaded.headers["content-type"].startswith("text/plain")
    assert registry.resolve("sql").ref == "sql@1"

    removed = client.post(UNLOAD, json={"lora_name": "sql", "lora_int_id": 3})
    assert (removed.status_code, removed.text) == (200, "Success: LoRA adapter 'sql' removed successfully.")
    assert not registry.live


def test_a_relative_path_begins_at_the_allowed_folder(client: TestClient, allowed: Path) -> None:
    assert load(client, "sql").status_code == 200


def test_a_name_in_use_needs_load_inplace(client: TestClient, registry: FakeRegistry, allowed: Path) -> None:
    load(client, "sql")
    refused = load(client, "sql")
    (allowed / "sql" / "adapter_model.safetensors").write_bytes(b"new weights")
    replaced = load(client, "sql", load_inplace=True)

    assert refused.status_code == 400
    assert refused.json()["error"] == {
        "message": "The lora adapter 'sql' has already been loaded. If you want to load the adapter in "
        "place, set 'load_inplace' to True.",
        "type": "InvalidUserInput",
        "param": None,
        "code": 400,
    }
    assert replaced.text == "Success: LoRA adapter 'sql' added successfully."
    assert registry.resolve("sql").ref == "sql@2"


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        (LOAD, {"lora_name": "", "lora_path": "sql"}, 400, "InvalidUserInput"),
        (LOAD, {"lora_name": "x", "lora_path": ""}, 400, "InvalidUserInput"),
        (LOAD, {"lora_name": "x", "lora_path": "none"}, 404, "NotFoundError"),
        (LOAD, {"lora_name": "x", "lora_path": "sql/adapter_config.json"}, 404, "NotFoundError"),
        (LOAD, {"lora_name": "x", "lora_path": "\0"}, 400, "InvalidUserInput"),
        (LOAD, {"lora_name": "x", "lora_path": "p" * 4000}, 400, "InvalidUserInput"),
        (LOAD, {"lora_name": "x", "lora_path": "s3://bucket/x"}, 400, "InvalidUserInput"),
        (LOAD, {"lora_name": "x", "lora_path": "HTTPS://host/x"}, 400, "InvalidUserInput"),
        (LOAD, {"lora_name": "tiny", "lora_path": "sql"}, 400, "InvalidUserInput"),
        (LOAD, {"lora_name": "a b", "lora_path": "sql"}, 400, "InvalidUserInput"),
        (LOAD, {"lora_name": "x"}, 400, INVALID),
        (LOAD, {"lora_name": "x", "lora_path": "sql", "is_3d_lora_weight": True}, 400, INVALID),
        (LOAD, {"lora_name": "x", "lora_path": "sql", "other": 1}, 400, INVALID),
        (UNLOAD, {"lora_name": ""}, 400, "InvalidUserInput"),
        (UNLOAD, {}, 400, INVALID),
        (UNLOAD, {"lora_name": "nobody"}, 404, "NotFoundError"),
        (UNLOAD, {"lora_name": "../x"}, 404, "NotFoundError"),
        (UNLOAD, {"lora_name": "sql@1"}, 404, "NotFoundError"),
    ],
)
def test_errors(
    client: TestClient, registry: FakeRegistry, allowed: Path, path: str, body: object, status: int, kind: str
) -> None:
    answer = client.post(path, json=body)

    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind), answer.text
    assert not registry.live


def test_a_bad_adapter_is_the_users_error(client: TestClient, allowed: Path) -> None:
    make_folder(allowed / "broken", b"bad")
    answer = load(client, "broken")

    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "InvalidUserInput")
    assert "wrong shape" in answer.json()["error"]["message"]


def test_nothing_outside_the_allowed_folder_is_read(
    client: TestClient, registry: FakeRegistry, allowed: Path, tmp_path: Path
) -> None:
    outside = make_folder(tmp_path / "outside")
    (allowed / "link").symlink_to(outside)
    (allowed / "up").symlink_to("..")
    half = make_folder(allowed / "half")
    (half / "adapter_model.safetensors").unlink()
    (half / "adapter_model.safetensors").symlink_to(outside / "adapter_model.safetensors")
    for file in ("labels.json", "lineage.json"):
        (outside / file).write_text("{}")
        (make_folder(allowed / f"with-{file}") / file).symlink_to(outside / file)
    loop = allowed / "loop"
    loop.symlink_to(loop)
    make_folder(tmp_path / "allowed-not")

    paths = [outside, "../outside", "link", "up/outside", "sql/../../outside", "half", "sql/../sql"]
    paths += ["with-labels.json", "with-lineage.json"]
    for path in [*paths, "/etc", "/", "/no/such", tmp_path / "allowed-not", "../allowed-not"]:
        answer = load(client, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "path_not_allowed"), path
    assert load(client, "loop").status_code in (400, 404)
    assert not registry.live


def test_what_lies_outside_is_not_even_looked_at(
    client: TestClient, allowed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only links can't be told apart from folders without a look."""
    seen: list[str] = []
    lstat = os.lstat

    def spy(path: str, *args: Any, **kwargs: Any) -> os.stat_result:
        seen.append(os.fspath(path))
        return lstat(path, *args, **kwargs)

    monkeypatch.setattr(os, "lstat", spy)
    for path in (tmp_path / "elsewhere", "../elsewhere", "/etc/hosts", "s3://bucket/etc"):
        assert load(client, path).status_code in (400, 403)
    assert [path for path in seen if "/elsewhere" in path or "/etc" in path] == []
    assert load(client, "sql").status_code == 200
    assert seen


def test_unloading_takes_aliases_along(client: TestClient, registry: FakeRegistry, allowed: Path) -> None:
    load(client, "sql")
    registry.set_alias("sql", "prod", [Target(1)])
    for part in ("sql@1", "sql@prod", "sql@default"):
        assert client.post(UNLOAD, json={"lora_name": part}).status_code == 404
    assert registry.resolve("sql@prod").ref == "sql@1"
    assert client.post(UNLOAD, json={"lora_name": "sql"}).status_code == 200
    assert not registry.live


def test_a_tenant_loads_and_unloads_its_own(
    client: TestClient, registry: FakeRegistry, allowed: Path
) -> None:
    load(client, "sql")
    as_caller(client, ACME)
    assert load(client, "sql").text == "Success: LoRA adapter 'sql' added successfully."
    assert sorted(registry.live) == ["acme/sql", "sql"]
    assert client.post(UNLOAD, json={"lora_name": "default/sql"}).status_code == 404
    assert client.post(UNLOAD, json={"lora_name": "sql"}).status_code == 200
    assert list(registry.live) == ["sql"]


def test_links_within_the_allowed_folder_are_followed(client: TestClient, allowed: Path) -> None:
    (allowed / "alias").symlink_to("sql")

    assert load(client, "alias", "other").status_code == 200


def test_without_an_allowed_folder_the_route_refuses(tmp_path: Path) -> None:
    context = make_context(tmp_path / "data")
    answer = load(TestClient(create_app(context)), make_folder(tmp_path / "sql"))

    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "adapter_dir_not_set")
    assert "--adapter-dir" in answer.json()["error"]["message"]
