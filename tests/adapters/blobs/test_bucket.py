"""A bucket over real HTTP, behind a proxy that fails, waits and hangs up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.blobs.bucket import Bucket
from adapters.errors import RegistryUnavailable
from tests import s3
from tests.adapters.blobs.stand import QUICK

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("status", [500, 503, 0])
def test_what_goes_by_itself_is_tried_again(
    status: int, bucket: s3.S3Bucket, front: s3.Proxy, tmp_path: Path
) -> None:
    store = Bucket(bucket.url, QUICK)
    front.misbehave = s3.failing(2, status)
    assert store.create("one", b"1")
    front.misbehave = s3.failing(2, status)
    assert store.read("one", 0, 9) == b"1"
    front.misbehave = s3.failing(2, status)
    assert store.list("").keys() == {"one"}
    store.close()


@pytest.mark.parametrize(("status", "reason"), [(503, "OSError"), (0, "ConnectionClosedError")])
def test_at_some_time_it_gives_up(status: int, reason: str, bucket: s3.S3Bucket, front: s3.Proxy) -> None:
    store = Bucket(bucket.url, QUICK)
    front.misbehave = s3.failing(1000, status)
    with pytest.raises(RegistryUnavailable, match=rf"blob store s3://.* failed \(one\): {reason}") as caught:
        store.read("one", 0, 9)
    assert "\n" not in str(caught.value)
    # aiohttp itself sends a GET again when a connection that it had kept open breaks.
    assert QUICK.attempts <= len(front.requests) <= 2 * QUICK.attempts
    store.close()


def test_patience_has_an_end(bucket: s3.S3Bucket, front: s3.Proxy) -> None:
    store = Bucket(bucket.url, replace(QUICK, attempts=1000, longest=0.3))
    front.misbehave = s3.failing(1000, 503)
    began = time.monotonic()
    with pytest.raises(RegistryUnavailable):
        store.read("one", 0, 9)
    assert 0.3 <= time.monotonic() - began < 5
    store.close()


def test_an_answer_that_never_comes_is_asked_for_again(bucket: s3.S3Bucket, front: s3.Proxy) -> None:
    store = Bucket(bucket.url, replace(QUICK, read=0.3))
    store.create("one", b"1")
    hung: list[s3.Request] = []

    def hang_once(request: s3.Request) -> s3.Answer | None:
        if not hung:
            hung.append(request)
            time.sleep(1.0)
        return None

    front.misbehave = hang_once
    began = time.monotonic()
    assert store.read("one", 0, 9) == b"1"
    assert 0.3 <= time.monotonic() - began < 1.0
    store.close()


def test_slow_answers_are_waited_for(bucket: s3.S3Bucket, front: s3.Proxy) -> None:
    store = Bucket(bucket.url, QUICK)
    front.misbehave = s3.slow(0.2)
    assert store.create("one", b"1")
    assert store.read("one", 0, 9) == b"1"
    assert len(front.requests) == 2
    store.close()


def test_what_is_forbidden_is_not_tried_again(bucket: s3.S3Bucket, front: s3.Proxy) -> None:
    store = Bucket(bucket.url, QUICK)
    front.misbehave = s3.failing(1000, 403)
    with pytest.raises(RegistryUnavailable, match="permission denied"):
        store.create("one", b"1")
    assert len(front.requests) == 1
    store.close()


def test_a_lost_answer_to_a_write_is_no_second_writer(bucket: s3.S3Bucket, front: s3.Proxy) -> None:
    """The object is there, and whoever wrote it hears so: it compares what is stored with what it has."""
    store = Bucket(bucket.url, QUICK)
    bucket.put("one", b"1")
    front.misbehave = s3.failing(1, 500)
    assert not store.create("one", b"1")
    assert store.read("one", 0, 9) == b"1"
    store.close()


def test_writes_are_conditional_where_it_says_create(bucket: s3.S3Bucket, front: s3.Proxy) -> None:
    store = Bucket(bucket.url, QUICK)
    bucket.put("one", b"1")
    assert not store.create("one", b"2")
    assert bucket.get("one") == b"1"
    store.put("one", b"3")
    assert bucket.get("one") == b"3"
    store.close()


def test_a_store_without_conditional_writes_is_served(bucket: s3.S3Bucket, front: s3.Proxy) -> None:
    store = Bucket(bucket.url, QUICK)
    seen: list[int] = []

    def not_implemented(request: s3.Request) -> s3.Answer | None:
        seen.append(request.number)
        return s3.Answer(501) if request.method == "PUT" and request.is_conditional else None

    front.misbehave = not_implemented
    assert store.create("one", b"1")
    assert not store.create("one", b"2")
    assert store.read("one", 0, 9) == b"1"
    store.close()


def test_large_files_go_up_in_parts_and_appear_at_once(
    bucket: s3.S3Bucket, front: s3.Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.blobs.bucket._PART", 5 * 1024**2)
    data = os.urandom(1024) * (11 * 1024)
    (tmp_path / "file").write_bytes(data)
    during = []

    def look(request: s3.Request) -> s3.Answer | None:
        if "partNumber" in request.path:
            during.append(bucket.list())
        return s3.Answer(503) if "partNumber=2" in request.path and len(during) < 3 else None

    front.misbehave = look
    store = Bucket(bucket.url, QUICK)
    assert store.create("large", tmp_path / "file")
    assert during
    assert not any(during)
    assert bucket.get("large") == data
    assert not store.create("large", tmp_path / "file")
    uploads = bucket.client.list_multipart_uploads(Bucket=bucket.name)
    assert "Uploads" not in uploads  # those that failed were given up
    store.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": ""}, "NoCredentialsError"),
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}, "EndpointConnectionError: Could not connect"),
    ],
)
def test_what_is_wrong_with_the_environment_is_told(
    change: dict[str, str], message: str, bucket: s3.S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in change.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    store = Bucket(bucket.url, QUICK)
    with pytest.raises(RegistryUnavailable, match=message):
        store.read("one", 0, 1)
    store.close()


def test_the_usual_variable_for_all_services_does_too(
    bucket: s3.S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.endpoint)
    store = Bucket(bucket.url, QUICK)
    assert store.create("one", b"1")
    store.close()


def test_no_bucket_is_told_apart_from_no_object(bucket: s3.S3Bucket) -> None:
    store = Bucket("s3://no-such-bucket/prefix", QUICK)
    with pytest.raises(RegistryUnavailable, match="not found: The specified bucket does not exist"):
        store.read("one", 0, 1)
    with pytest.raises(RegistryUnavailable, match="not found"):
        store.create("one", b"1")
    store.close()


@pytest.mark.parametrize("end", ["", "import os; os.fork() or sys.exit(); os.wait(); store.close()"])
def test_a_process_that_used_it_ends_at_once_and_quietly(end: str, bucket: s3.S3Bucket) -> None:
    code = (
        "import sys, time; from adapters.blobs.bucket import Bucket\n"
        f"store = Bucket({bucket.url!r}); store.create('one', b'1')\n"
        f"{end}\n"
        "print(time.time())"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=os.environ | s3.environment(bucket.endpoint),
        capture_output=True,
        text=True,
        timeout=60,
    )
    ended = time.time()
    assert (done.returncode, done.stderr) == (0, "")
    assert ended - json.loads(done.stdout) < 2
