"""`/v1/files`: what is refused, before it is stored, and what is on disk meanwhile."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from adapters.registry.records import Quota
from server.api import multipart
from server.settings import MIB
from tests.server.api.asgi import Exchange
from tests.server.api.stand import Stand, error

BOUNDARY = "frontier"
END = f"--{BOUNDARY}--\r\n".encode()


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    file = f'; filename="{filename}"' if filename else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
    return head.encode() + content + b"\r\n"


PURPOSE, FILE = part("purpose", b"fine-tune"), part("file", b"{}\n", "x.jsonl")


def send(stand: Stand, chunks: Iterable[bytes], declared: int | None = None) -> Exchange:
    headers = [(b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode())]
    if declared is not None:
        headers.append((b"content-length", str(declared).encode()))
    exchange = Exchange(stand.app, "/v1/files", chunks, headers)
    asyncio.run(exchange.run())
    return exchange


def post(
    stand: Stand, content: bytes = b"{}\n", name: str = "x.jsonl", more: dict[str, str] | None = None
) -> Any:
    data = {"purpose": "fine-tune", **(more or {})}
    return stand.client.post("/v1/files", files={"file": (name, content)}, data=data)


def stored(stand: Stand) -> list[Path]:
    return list((stand.context.settings.data_dir / "training" / "files").iterdir())


@pytest.fixture
def small(stand: Stand) -> Stand:
    settings = {"max_training_file_mb": 1}
    stand.context.settings = stand.context.settings.model_copy(update=settings)
    return stand


def test_content_comes_back_whole_and_in_parts(stand: Stand) -> None:
    file = post(stand, b"0123456789").json()
    path = f"/v1/files/{file['id']}/content"
    whole = stand.client.get(path)
    assert (whole.content, whole.headers["x-sha256"]) == (b"0123456789", file["sha256"])
    some = stand.client.get(path, headers={"range": "bytes=2-4"})
    assert (some.status_code, some.content) == (206, b"234")


def test_what_a_job_wrote_says_what_it_is_and_what_others_sent_does_not(stand: Stand) -> None:
    types = {
        "a.csv": "text/csv; charset=utf-8",
        "a.md": "text/markdown; charset=utf-8",
        "a.png": "image/png",
        "a.json": "application/json",
        "a.html": "application/octet-stream",
    }
    sent = post(stand, name="x.png").json()["id"]
    answer = stand.client.get(f"/v1/files/{sent}/content")
    assert answer.headers["content-type"] == "application/octet-stream"
    body = {"model": "tiny", "training_file": sent}
    job_id = stand.client.post("/v1/fine_tuning/jobs", json=body).json()["id"]
    job = stand.training.jobs.get(stand.caller, job_id)
    contents = {name: name.encode() for name in types}
    with (
        stand.training.files.results(job, contents) as results,
        stand.registry.database.write() as write,
    ):
        results.enter(write)
    for file_id, (name, kind) in zip(results.ids, types.items(), strict=True):
        answer = stand.client.get(f"/v1/files/{file_id}/content")
        assert (answer.content, answer.headers["content-type"]) == (name.encode(), kind)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a" * 3000, "ä ö.jsonl", "x\x01y"])
def test_a_file_name_is_text_and_never_a_path(stand: Stand, name: str) -> None:
    answer = post(stand, name=name)
    assert answer.status_code == 200
    assert [path.name for path in stored(stand)] == [answer.json()["id"]]
    assert len(answer.json()["filename"]) <= 1024


@pytest.mark.parametrize(
    ("parts", "status", "param"),
    [
        ([PURPOSE, END], 400, "file"),
        ([FILE, END], 400, "purpose"),
        ([PURPOSE, part("file", b"", "x"), END], 400, "file"),
        ([part("purpose", b"assistants"), FILE, END], 400, "purpose"),
        ([part("purpose", b"p" * 65), FILE, END], 413, "purpose"),
        ([PURPOSE, FILE, part("extra", b"1"), END], 400, "extra"),
        ([PURPOSE, FILE, FILE, END], 400, "file"),
        ([PURPOSE, FILE], 400, None),
        ([PURPOSE, FILE, part("expires_after[seconds]", b"3600"), END], 400, "expires_after.anchor"),
        ([PURPOSE, FILE, part("expires_after[anchor]", b"created_at"), END], 400, "expires_after.seconds"),
        (
            [
                PURPOSE,
                FILE,
                part("expires_after[anchor]", b"now"),
                part("expires_after[seconds]", b"3600"),
                END,
            ],
            400,
            "expires_after.anchor",
        ),
    ],
)
def test_what_is_refused_is_not_stored(
    refusing: Stand, parts: list[bytes], status: int, param: str | None
) -> None:
    exchange = send(refusing, parts)
    assert (exchange.status, exchange.error["param"]) == (status, param)
    assert stored(refusing) == []
    assert list((refusing.context.settings.data_dir / "uploads").iterdir()) == []


@pytest.mark.parametrize("seconds", ["3599", "2592001", "1e4", "-3600", "x"])
def test_files_expire_after_an_hour_to_30_days(refusing: Stand, seconds: str) -> None:
    given = {"expires_after[anchor]": "created_at", "expires_after[seconds]": seconds}
    answer = post(refusing, more=given)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "expires_after.seconds"


def test_another_kind_of_body(stand: Stand) -> None:
    assert stand.client.post("/v1/files", json={"file": "x"}).status_code == 415


def test_a_file_that_is_too_large_is_refused_before_it_comes(small: Stand) -> None:
    def chunks() -> Iterable[bytes]:
        yield PURPOSE + part("file", b"", "x")[:-2]
        for _ in range(100):
            yield b"x" * MIB

    exchange = send(small, chunks(), declared=100 * MIB)
    assert (exchange.status, exchange.error["code"]) == (413, "body_too_large")
    endless = send(small, chunks())
    assert endless.status == 413
    assert stored(small) == []


def test_a_file_goes_to_disk_while_it_comes(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "WRITE_BYTES", 65536)
    sizes: list[int] = []

    def chunks() -> Iterable[bytes]:
        yield PURPOSE + part("file", b"", "x")[:-2]
        for _ in range(8):
            (folder,) = (stand.context.settings.data_dir / "uploads").iterdir()
            sizes.append((folder / "content").stat().st_size)
            yield b"w" * 65536
        yield b"\r\n" + END

    assert send(stand, chunks()).status == 200
    assert sizes[-1] >= 5 * 65536
    assert stored(stand)[0].stat().st_size == 8 * 65536


def test_no_room_is_known_before_the_file_comes(stand: Stand) -> None:
    with stand.tenant("acme"):
        stand.registry.tenants.put("acme", Quota(max_file_bytes=MIB))
        exchange = send(stand, [PURPOSE], declared=2 * MIB)
        assert (exchange.status, exchange.error["code"]) == (403, "quota_exceeded")
        assert post(stand, b"x" * MIB).status_code == 200
        assert error(post(stand)) == (403, "quota_exceeded")


def test_a_full_disk_is_the_servers_fault(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("server.jobs.files.sync", full)
    assert error(post(stand)) == (507, "insufficient_storage")
    assert stored(stand) == []


def test_a_file_in_use_is_a_conflict(stand: Stand) -> None:
    file = post(stand).json()["id"]
    job = stand.client.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file}).json()
    refused = stand.client.delete(f"/v1/files/{file}")
    assert error(refused) == (409, "file_in_use")
    assert job["id"] in refused.json()["error"]["message"]
    assert stand.client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel").status_code == 200
    assert stand.client.delete(f"/v1/files/{file}").json() == {"id": file, "object": "file", "deleted": True}
    assert stored(stand) == []


def test_while_the_server_drains_nothing_comes_in(stand: Stand) -> None:
    file = post(stand).json()["id"]
    stand.context.draining = True
    assert error(post(stand)) == (503, "draining")
    assert error(stand.client.delete(f"/v1/files/{file}")) == (503, "draining")
    assert stand.client.get(f"/v1/files/{file}").status_code == 200


def test_a_server_that_does_not_train(stand: Stand) -> None:
    stand.context.training = None
    assert error(stand.client.get("/v1/files")) == (403, "training_off")
    assert error(post(stand)) == (403, "training_off")
