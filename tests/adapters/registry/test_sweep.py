"""What is damaged is set aside; what nothing needs leaves the shared store after a while, nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import update

from adapters.blobs.blobs import open_blobs
from adapters.blobs.local import WEIGHTS_FILE
from adapters.errors import AdapterNotFound, InvalidAdapter, RegistryUnavailable
from adapters.registry.registry import Registry
from adapters.registry.schema import BLOBS, VERSIONS
from adapters.registry.sweep import GRACE_SECONDS
from tests.adapters.registry.conftest import Shop


@pytest.fixture
def stored(shop: Shop) -> Registry:
    """With a store beside its own folder."""
    url = f"file://{shop.folder / 'store'}"
    return shop.open(blobs=open_blobs(shop.folder / "data", url, None))


def in_store(shop: Shop) -> set[str]:
    return {path.parent.name for path in (shop.folder / "store").rglob("manifest.json")}


def later(registry: Registry, seconds: float) -> None:
    """As if all that was done had been done so long ago."""
    with registry._parts.database.write() as write:
        write.connection.execute(update(VERSIONS).values(changed=VERSIONS.c.changed - seconds))
        write.connection.execute(update(BLOBS).values(touched=BLOBS.c.touched - seconds))


def test_damaged_files_are_set_aside_and_publishing_repairs(shop: Shop, registry: Registry) -> None:
    refs = [shop.publish(registry, "tone", alpha) for alpha in (1, 2)]
    good, bad = (registry.resolve(ref).digest for ref in refs)
    assert registry.sweep().checked == 2
    weights = shop.folder / "data" / "adapters" / bad / WEIGHTS_FILE
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    report = registry.sweep()
    assert (report.checked, report.quarantined, report.missing, report.removed) == (1, (bad,), (bad,), ())
    with pytest.raises((AdapterNotFound, InvalidAdapter)):
        registry.load(bad)
    assert registry.load(good).digest == good
    report = registry.sweep()  # it is still missed
    assert (report.checked, report.missing) == (1, (bad,))
    assert shop.publish(registry, "tone", 2) == refs[1]
    assert registry.load(bad).digest == bad
    assert registry.sweep().checked == 2


def test_a_stored_copy_replaces_a_damaged_one(shop: Shop, stored: Registry) -> None:
    shop.publish(stored, "tone", 1)
    digest = stored.resolve("tone").digest
    (shop.folder / "data" / "adapters" / digest / WEIGHTS_FILE).write_bytes(b"")
    report = stored.sweep()
    assert (report.quarantined, report.missing) == ((digest,), ())
    assert stored.load(digest).digest == digest


def test_what_was_deleted_leaves_the_store_after_a_while(
    shop: Shop, stored: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.blobs.blobs.Blobs.settled", lambda self: self._remote.older_than(-1.0))
    shop.publish(stored, "tone", 1)
    shop.publish(stored, "tone", 2)
    kept = stored.resolve("tone").digest
    gone = stored.resolve("tone@1").digest
    stored.delete("tone@1")
    assert stored._blobs.digests() == [kept]  # the local copy goes at once
    assert stored.sweep().removed == ()
    assert in_store(shop) == {kept, gone}
    later(stored, GRACE_SECONDS + 1)
    assert stored.sweep().removed == (gone,)
    assert in_store(shop) == {kept}
    assert stored.load(kept).digest == kept
    assert shop.publish(stored, "tone", 1) == "tone@3"
    assert in_store(shop) == {kept, gone}


def test_what_is_held_or_being_published_stays(
    shop: Shop, stored: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.blobs.blobs.Blobs.settled", lambda self: self._remote.older_than(-1.0))
    shop.publish(stored, "tone", 1)
    digest = stored.resolve("tone").digest
    stored.hold(digest)
    stored.delete("tone")
    later(stored, GRACE_SECONDS + 1)
    assert stored.sweep().removed == ()
    stored.release(digest)
    assert stored.sweep().removed == (digest,)


def test_a_publication_whose_blob_was_swept_meanwhile_is_tried_again(
    shop: Shop, stored: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not stored._parts.database.shared:
        pytest.skip("there is nobody else")
    commit = stored._blobs.commit

    def slow(staged: Path, digest: str) -> None:
        commit(staged, digest)
        with stored._parts.database.write() as write:  # another replica sweeps
            write.connection.execute(BLOBS.delete())

    with monkeypatch.context() as patched:
        patched.setattr(stored._blobs, "commit", slow)
        with pytest.raises(RegistryUnavailable, match="was removed while it was published; try again"):
            shop.publish(stored, "tone", 1)
    assert stored.list() == ()
    assert shop.publish(stored, "tone", 1) == "tone@1"
