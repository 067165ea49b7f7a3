"""What a blob URL means, and which are refused before anything is tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.blobs.bucket import Bucket
from adapters.blobs.location import open_objects
from adapters.blobs.shared import SharedFolder
from adapters.errors import AdapterError


def test_a_folder(tmp_path: Path) -> None:
    objects = open_objects(f"file://{tmp_path}/a%20b/", tmp_path / "data")
    assert isinstance(objects, SharedFolder)
    assert (tmp_path / "a b").is_dir()


def test_a_bucket(tmp_path: Path) -> None:
    objects = open_objects("s3://bucket/prefix/", tmp_path)
    assert isinstance(objects, Bucket)
    assert objects.url == "s3://bucket/prefix"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "is not a URL"),
        ("bucket/prefix", "is not a URL"),
        ("s3:bucket", "is not a URL"),
        ("/mnt/adapters", "is not a URL"),
        ("simplecache::s3://bucket", "is not a URL"),
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        ("s3://key:secret@bucket/prefix", "has credentials in it"),
        ("s3://bucket/a?versionId=1", "must be a plain path"),
        ("s3://bucket/a#b", "must be a plain path"),
        ("s3://bucket/../other", "must be a plain path"),
        ("file://mnt/adapters", "by its whole path"),
        ("file://", "by its whole path"),
        ("file:///", "by its whole path"),
        ("foo://bucket", "no way is known to reach foo://bucket: Protocol not known: foo"),
    ],
)
def test_wrong_urls_are_refused_in_one_line(url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=message) as caught:
        open_objects(url, tmp_path)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("store", "data"), [("a", "a"), ("a/b", "a"), ("a", "a/b")])
def test_store_and_data_directory_are_apart(store: str, data: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="must not lie in one another"):
        open_objects(f"file://{tmp_path / store}", tmp_path / data)


def test_what_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"gs:// needs a package that is not installed: .*gcsfs"):
        open_objects("gs://bucket", tmp_path)


def test_without_s3fs_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(protocol: str, **options: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("adapters.blobs.bucket.fsspec.filesystem", absent)
    with pytest.raises(AdapterError, match=r"s3:// needs .* pip install 'multilora\[s3\]'"):
        open_objects("s3://bucket", tmp_path)
