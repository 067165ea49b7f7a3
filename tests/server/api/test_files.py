"""Files of a version over HTTP: byte for byte, with checksums, and given back when the client leaves."""

from __future__ import annotations

import asyncio
import hashlib
import json

import pytest

from server.api import files
from tests.server.api.asgi import Exchange
from tests.server.api.stand import PATH, Stand, config, error, weights


def test_the_files_come_back_as_they_went_in(stand: Stand) -> None:
    version = stand.upload("shop", labels=None, lineage=b'{"job": "ft-1"}', quantization="nf4").json()
    for name, content in (("adapter_config.json", config(1)), ("adapter_model.safetensors", weights())):
        answer = stand.get(f"shop/files/{name}")
        assert (answer.status_code, answer.content) == (200, content)
        sha256 = hashlib.sha256(content).hexdigest()
        assert answer.headers["content-length"] == str(len(content))
        assert (answer.headers["x-sha256"], answer.headers["etag"]) == (sha256, f'"{sha256}"')
        assert answer.headers["x-adapter"] == "shop@1"
        assert answer.headers["x-adapter-digest"] == version["digest"]
    told = stand.get("shop@1/files/lineage.json")
    assert told.json() == {"job": "ft-1", "quantization": "nf4"}
    assert told.headers["x-sha256"] == hashlib.sha256(told.content).hexdigest()
    assert stand.registry.holders(version["digest"]) == 0


def test_what_was_pulled_can_be_pushed(stand: Stand) -> None:
    stand.upload("shop", lineage=b'{"job": "ft-1"}')
    told = json.loads(stand.get("shop/files/lineage.json").content)
    again = stand.upload("shop", lineage=json.dumps(told).encode())

    assert (again.status_code, again.json()["id"]) == (200, "shop@1")


def test_a_part_of_a_file(stand: Stand) -> None:
    stand.upload("shop")
    answer = stand.client.get(
        f"{PATH}/shop/files/adapter_model.safetensors", headers={"range": "bytes=10-19"}
    )

    assert (answer.status_code, answer.content) == (206, weights()[10:20])


def test_what_is_not_there(stand: Stand) -> None:
    (version,) = stand.publish("shop", 1)
    for name in (
        "labels.json",
        "derived.safetensors",
        "manifest.json",
        "x",
        "%2e%2e%2fregistry.sqlite3",
    ):
        answer = stand.get(f"shop/files/{name}")
        assert answer.status_code == 404, name
    assert error(stand.get("shop/files/labels.json")) == (404, "file_not_found")
    assert error(stand.get("nobody/files/adapter_config.json")) == (404, "adapter_not_found")
    with stand.tenant("acme"):
        assert error(stand.get("default/shop/files/adapter_config.json")) == (404, "adapter_not_found")
    assert stand.registry.holders(version["digest"]) == 0


def test_a_file_is_held_while_it_is_sent_and_no_longer(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = stand.publish("shop", 1)[0]["digest"]
    monkeypatch.setattr(files._HeldFile, "chunk_size", 16)

    async def leave() -> int:
        exchange = Exchange(
            stand.app, f"{PATH}/shop/files/adapter_model.safetensors", [], method="GET", hold_sends=True
        )
        task = asyncio.create_task(exchange.run())
        async with asyncio.timeout(10):
            while len(exchange.messages) < 2:
                await asyncio.sleep(0.01)
        held = stand.registry.holders(digest)
        exchange.gone.set()
        async with asyncio.timeout(10):
            await task
        return held

    assert asyncio.run(leave()) == 1
    assert stand.registry.holders(digest) == 0


def test_a_file_that_vanished_from_the_disk_holds_nothing(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    (version,) = stand.publish("shop", 1)
    (stand.registry.folder(version["digest"]) / "adapter_config.json").unlink()

    assert stand.get("shop/files/adapter_config.json").status_code == 404
    assert stand.registry.holders(version["digest"]) == 0
