"""The merged model as a tar stream: whole, one at a time, and nothing left however it ends."""

from __future__ import annotations

import asyncio
import io
import shutil
import sys
import tarfile
from collections import namedtuple
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from server.api import merged
from tests.server.api.asgi import Exchange
from tests.server.api.stand import PATH, Stand, error, eventually

WRITES = """
import pathlib, sys
base, adapter, output = map(pathlib.Path, sys.argv[1:])
assert (adapter / "adapter_model.safetensors").is_file()
output.mkdir()
(output / "config.json").write_text("{}")
(output / "model.safetensors").write_bytes(bytes(range(256)) * 8000)
"""
SLEEPS = "import time; time.sleep(60)"
REFUSES = """
import sys
print("a warning", file=sys.stderr)
print("multilora: the adapter can't be merged: it has a task head", file=sys.stderr)
sys.exit(1)
"""


def running(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Have this Python program make the model instead of `multilora merge`."""

    def command(base: Path, adapter: Path, output: Path) -> list[str]:
        return [sys.executable, "-c", script, str(base), str(adapter), str(output)]

    monkeypatch.setattr(merged, "command", command)


def left_over(stand: Stand) -> list[Path]:
    folder = stand.context.settings.data_dir / merged.FOLDER
    return list(folder.iterdir()) if folder.exists() else []


def test_a_model_folder_comes_as_a_tar_stream(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    (version,) = stand.publish("shop", 1)
    running(monkeypatch, WRITES)
    answer = stand.get("shop/merged")

    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-tar")
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.headers["x-adapter"] == "shop@1"
    assert answer.headers["content-disposition"] == 'attachment; filename="shop-1-merged.tar"'
    with tarfile.open(fileobj=io.BytesIO(answer.content), mode="r:") as archive:
        found = {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]
    assert found == {
        "shop-1/config.json": b"{}",
        "shop-1/model.safetensors": bytes(range(256)) * 8000,
    }
    assert not left_over(stand)
    assert stand.registry.holders(version["digest"]) == 0
    assert not stand.context.merging.locked()


def test_what_cant_be_merged_is_refused_with_the_reason(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    (version,) = stand.publish("shop", 1)
    running(monkeypatch, REFUSES)
    answer = stand.get("shop/merged")

    assert error(answer) == (400, "not_mergeable")
    assert answer.json()["error"]["message"] == "the adapter can't be merged: it has a task head"
    running(monkeypatch, "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="ended with 3"):
        stand.get("shop/merged")
    assert not left_over(stand)
    assert stand.registry.holders(version["digest"]) == 0
    assert error(stand.get("nobody/merged")) == (404, "adapter_not_found")


def test_a_full_disk_is_known_before(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.publish("shop", 1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))

    assert error(stand.get("shop/merged")) == (507, "insufficient_storage")
    assert not left_over(stand)


def test_one_at_a_time_and_it_ends_when_the_client_leaves(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    (version,) = stand.publish("shop", 1)
    running(monkeypatch, SLEEPS)
    exchange = Exchange(stand.app, f"{PATH}/shop/merged", [], method="GET")

    async def go() -> None:
        exchange.gone = asyncio.Event()
        await exchange.run()

    portal = stand.client.portal
    assert portal is not None
    thread = Thread(target=portal.call, args=(go,))
    thread.start()
    eventually(lambda: bool(left_over(stand)) and (left_over(stand)[0] / "log").exists())
    busy = stand.get("shop/merged")
    assert (error(busy), busy.headers["retry-after"]) == ((429, "merge_running"), "30")
    portal.call(exchange.gone.set)
    thread.join(10)

    assert not thread.is_alive()
    assert exchange.status == 499
    assert not left_over(stand)
    assert stand.registry.holders(version["digest"]) == 0
    assert not stand.context.merging.locked()


def test_a_client_that_leaves_while_it_is_sent_leaves_nothing(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    (version,) = stand.publish("shop", 1)
    running(monkeypatch, WRITES)
    exchange = Exchange(stand.app, f"{PATH}/shop/merged", [], method="GET", hold_sends=True)

    async def go() -> Any:
        exchange.gone = asyncio.Event()
        task = asyncio.create_task(exchange.run())
        async with asyncio.timeout(10):
            while len(exchange.messages) < 2:
                await asyncio.sleep(0.01)
            exchange.gone.set()
            await task

    assert stand.client.portal is not None
    stand.client.portal.call(go)

    assert not left_over(stand)
    assert stand.registry.holders(version["digest"]) == 0
    assert not stand.context.merging.locked()


def test_what_a_killed_server_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / merged.FOLDER / "model-x").mkdir(parents=True)
    merged.remove_left_over(tmp_path)
    merged.remove_left_over(tmp_path)

    assert not (tmp_path / merged.FOLDER).exists()
