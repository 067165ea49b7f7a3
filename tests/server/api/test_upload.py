"""Multipart uploads, byte by byte: on disk while they come, bounded, and gone afterwards."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from pathlib import Path

import pytest

from adapters.checkpoint.labels import MAX_LABELS_BYTES
from server.api import limits, multipart
from server.api.app import create_app
from server.api.context import ServerContext
from server.api.lineage import LINEAGE_BYTES
from server.api.upload import CONFIG_BYTES, NAME_BYTES, QUANTIZATION_BYTES, WORD_BYTES, remove_left_over
from server.settings import MIB
from tests.server.api.asgi import Exchange
from tests.server.api.fakes import FakeRegistry

BOUNDARY = "frontier"


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    file = f'; filename="{filename}"' if filename else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
    return head.encode() + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
NAME, CONFIG, WEIGHTS = part("name", b"shop"), part("config", b"{}"), part("weights", b"w" * 10, "w.bin")


def send(context: ServerContext, chunks: Iterable[bytes], kind: str | None = None) -> Exchange:
    kind = kind or f"multipart/form-data; boundary={BOUNDARY}"
    headers = [(b"content-type", kind.encode())]
    exchange = Exchange(create_app(context), "/v1/adapters", chunks, headers)
    asyncio.run(exchange.run())
    return exchange


def left_over(context: ServerContext) -> list[Path]:
    folder = context.settings.data_dir / "uploads"
    return list(folder.iterdir()) if folder.exists() else []


def test_parts_come_in_any_order_and_any_pieces(context: ServerContext, registry: FakeRegistry) -> None:
    body = WEIGHTS + NAME + CONFIG + END
    exchange = send(context, [body[i : i + 1] for i in range(len(body))])

    assert exchange.status == 201
    assert registry.live["shop"][0].size == 10


def test_what_it_was_trained_on_may_come_too_but_not_without_bound(
    context: ServerContext, registry: FakeRegistry
) -> None:
    assert send(context, [NAME, part("quantization", b"nf4"), CONFIG, WEIGHTS, END]).status == 201
    assert registry.list()[-1].trained_on_quantization == "nf4"
    too_long = part("quantization", b"n" * (QUANTIZATION_BYTES + 1))
    assert send(context, [NAME, too_long, CONFIG, WEIGHTS, END]).status == 413


def test_labels_may_come_too_but_not_without_bound(context: ServerContext, registry: FakeRegistry) -> None:
    assert send(context, [NAME, part("labels", b'["a"]'), CONFIG, WEIGHTS, END]).status == 201
    assert registry.seen_labels == b'["a"]'
    assert send(context, [NAME, CONFIG, WEIGHTS, END]).status == 200
    assert [registry.seen_labels] == [None]
    too_long = part("labels", b" " * (MAX_LABELS_BYTES + 1))
    assert send(context, [NAME, CONFIG, too_long, WEIGHTS, END]).status == 413


def test_what_a_client_says_of_its_upload_goes_to_the_registry(
    context: ServerContext, registry: FakeRegistry
) -> None:
    sha256 = part("sha256", hashlib.sha256(b"w" * 10).hexdigest().encode())
    said = [part("promote", b"no"), part("digest", b"0" * 64), part("lineage", b'{"job": "ft-1"}')]
    assert send(context, [sha256, *said, NAME, WEIGHTS, CONFIG, END]).status == 201

    assert (registry.seen_promote, registry.seen_digest) == ("no", "0" * 64)
    assert registry.list()[-1].lineage.job == "ft-1"


def test_weights_lie_in_the_data_folder_under_a_name_of_ours(
    context: ServerContext, registry: FakeRegistry
) -> None:
    assert send(context, [NAME, CONFIG, part("weights", b"w", "../../evil"), END]).status == 201

    assert registry.seen_weights is not None
    assert registry.seen_weights.is_relative_to(context.settings.data_dir / "uploads")
    assert registry.seen_weights.name == "weights"
    assert not left_over(context)


def test_weights_go_to_disk_while_they_come(
    context: ServerContext, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.api.multipart.WRITE_BYTES", 65536)
    sizes: list[int] = []

    def chunks() -> Iterable[bytes]:
        yield NAME + CONFIG + part("weights", b"")[:-2]
        for _ in range(8):
            (folder,) = left_over(context)
            sizes.append((folder / "weights").stat().st_size)
            yield b"w" * 65536
        yield b"\r\n" + END

    assert send(context, chunks()).status == 201
    assert sizes[-1] >= 5 * 65536
    assert registry.live["shop"][0].size == 8 * 65536


@pytest.mark.parametrize(
    ("parts", "status", "param"),
    [
        ([NAME, CONFIG, part("weights", b"w" * (MIB + 1))], 413, "weights"),
        ([part("name", b"n" * (NAME_BYTES + 1)), CONFIG, WEIGHTS], 413, "name"),
        ([NAME, part("config", b" " * (CONFIG_BYTES + 1)), WEIGHTS], 413, "config"),
        ([part("name", b"\xff"), CONFIG, WEIGHTS], 400, "name"),
        ([CONFIG, WEIGHTS], 400, "name"),
        ([NAME, WEIGHTS], 400, "config"),
        ([NAME, CONFIG], 400, "weights"),
        ([NAME, CONFIG, WEIGHTS, part("extra", b"x")], 400, "extra"),
        ([NAME, NAME, CONFIG, WEIGHTS], 400, "name"),
        ([NAME, CONFIG, WEIGHTS, part("promote", b"maybe")], 400, "promote"),
        ([NAME, CONFIG, WEIGHTS, part("promote", b"\xff")], 400, "promote"),
        ([NAME, CONFIG, WEIGHTS, part("digest", b"ABCD")], 400, "digest"),
        ([NAME, CONFIG, WEIGHTS, part("sha256", b"g" * 64)], 400, "sha256"),
        ([NAME, CONFIG, WEIGHTS, part("sha256", b"0" * 64)], 400, "sha256"),
        ([NAME, CONFIG, WEIGHTS, part("digest", b"0" * (WORD_BYTES + 1))], 413, "digest"),
        ([NAME, CONFIG, WEIGHTS, part("lineage", b" " * (LINEAGE_BYTES + 1))], 413, "lineage"),
    ],
)
def test_each_part_is_known_bounded_and_sent_once(
    context: ServerContext, registry: FakeRegistry, parts: list[bytes], status: int, param: str
) -> None:
    exchange = send(context, [*parts, END])

    assert (exchange.status, exchange.error["param"]) == (status, param)
    assert not registry.live
    assert not left_over(context)


def test_an_endless_upload_is_cut_off(context: ServerContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DISCARD_BYTES", MIB)
    head = NAME + CONFIG + part("weights", b"")[:-2]
    exchange = send(context, [head, *[b"w" * 65536] * 1000])

    assert exchange.status == 413
    assert exchange.read <= 2 * MIB + 4 * 65536
    assert not left_over(context)


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (NAME + CONFIG + WEIGHTS, None, 400),
        (NAME + CONFIG + WEIGHTS[:-5], None, 400),
        (b"no multipart at all", None, 400),
        (b"", None, 400),
        (NAME, "multipart/form-data", 400),
        (NAME, f"multipart/form-data; boundary={'b' * 300}", 400),
        (b"{}", "application/json", 415),
        (b"x", "application/octet-stream", 415),
    ],
)
def test_broken_framing(context: ServerContext, body: bytes, kind: str | None, status: int) -> None:
    exchange = send(context, [body], kind)

    assert exchange.status == status, exchange.body
    assert not left_over(context)


def test_a_client_that_leaves_midway_leaves_nothing(context: ServerContext, registry: FakeRegistry) -> None:
    async def main() -> Exchange:
        headers = [(b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode())]
        exchange = Exchange(create_app(context), "/v1/adapters", [NAME, CONFIG], headers, stays_open=True)
        task = asyncio.create_task(exchange.run())
        async with asyncio.timeout(10):
            while not left_over(context):
                await asyncio.sleep(0.01)
        exchange.gone.set()
        await task
        return exchange

    assert asyncio.run(main()).status == 499
    assert not context.uploads
    assert not left_over(context)
    assert not registry.live


def test_an_upload_that_stops_coming_gives_its_place_back(
    context: ServerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection may be dead without anybody having said so."""
    monkeypatch.setattr(multipart, "IDLE_SECONDS", 0.2)
    monkeypatch.setattr(limits, "DISCARD_SECONDS", 0.1)
    headers = [(b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode())]
    exchange = Exchange(create_app(context), "/v1/adapters", [NAME, CONFIG], headers, stays_open=True)
    asyncio.run(asyncio.wait_for(exchange.run(), 10))

    assert (exchange.status, exchange.error["code"]) == (408, "upload_timeout")
    assert not context.uploads
    assert not left_over(context)


def test_what_a_killed_server_left_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "uploads" / "upload-x"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"w")
    remove_left_over(tmp_path)
    remove_left_over(tmp_path)

    assert not folder.exists()
