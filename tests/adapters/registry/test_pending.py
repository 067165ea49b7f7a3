"""Publications that are checked after they were acknowledged; on both databases."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from adapters.errors import AdapterConflict, AdapterNotFound, ProofUnavailable, QuotaExceeded
from adapters.limits import AdapterLimits
from adapters.registry.pending import LOST
from adapters.registry.proof import Proof
from adapters.registry.records import AdapterVersion, Caller, Quota
from adapters.registry.registry import Registry
from tests.adapters.registry.conftest import Shop

ACME = Caller("acme", "key-1")


def begin(
    shop: Shop, registry: Registry, name: str = "tone", alpha: float = 8, **options: object
) -> AdapterVersion:
    config = shop.files.set(lora_alpha=alpha)
    return registry.begin(name, config, shop.files.weights, **options)  # type: ignore[arg-type]


def waiting(shop: Shop) -> list[str]:
    return sorted(path.name for path in (shop.folder / "data" / "pending").iterdir())


def test_uploaded_then_ready(shop: Shop, registry: Registry) -> None:
    version = begin(shop, registry, source="upload")
    assert (version.ref, version.state, version.digest, version.source) == (
        "tone@1",
        "uploaded",
        "",
        "upload",
    )
    assert registry.find("tone") == registry.find("tone@1") == version
    assert registry.unfinished() == (version,)
    assert registry.list() == ()
    with pytest.raises(AdapterNotFound):
        registry.resolve("tone@1")
    assert waiting(shop) == ["default@tone@1"]
    done = registry.finish(version)
    assert (done.ref, done.state, done.rank) == ("tone@1", "ready", 4)
    assert registry.resolve("tone") == done
    assert registry.load(done.digest).digest == done.digest
    assert registry.unfinished() == ()
    assert waiting(shop) == []
    assert [entry.action for entry in registry.audit(subject="tone@1")] == ["upload", "publish"]
    again = begin(shop, registry, digest=done.digest)
    assert again == done
    assert registry.finish(again) == done
    assert waiting(shop) == []


def test_refused_with_the_reason(shop: Shop, registry: Registry) -> None:
    content = shop.files.weights.read_bytes()
    shop.files.weights.write_bytes(content[:-1])
    version = begin(shop, registry)
    shop.files.weights.write_bytes(content)
    done = registry.finish(version)
    assert done.state == "refused"
    assert "truncated" in done.reason
    assert registry.find("tone@1") == done
    with pytest.raises(AdapterNotFound):
        registry.finish(version)
    assert shop.publish(registry, "tone") == "tone@2"
    assert waiting(shop) == []


def test_an_older_upload_that_ends_later_does_not_take_the_alias(shop: Shop, registry: Registry) -> None:
    slow = begin(shop, registry, alpha=1)
    assert shop.publish(registry, "tone", 2) == "tone@2"
    registry.finish(slow)
    assert registry.resolve("tone").version == 2
    last = begin(shop, registry, alpha=3)
    registry.finish(last)
    assert registry.resolve("tone").version == 3


def test_after_a_crash_its_own_server_goes_on(shop: Shop, registry: Registry) -> None:
    kept = begin(shop, registry, "kept")
    lost = begin(shop, registry, "lost")
    gone = begin(shop, registry, "gone")
    registry.delete("gone")
    with pytest.raises(AdapterNotFound):
        registry.finish(gone)
    registry.close()
    pending = shop.folder / "data" / "pending"
    shutil.rmtree(pending / "default@lost@1")
    (pending / "default@never@1").mkdir()
    again = shop.open()
    assert again.unfinished() == (kept,)
    assert waiting(shop) == ["default@kept@1"]
    refused = again.find("lost@1")
    assert (refused.state, refused.reason) == ("refused", LOST)
    assert again.finish(kept).state == "ready"
    assert lost.ref == refused.ref


def test_what_can_t_be_proved_now_waits(shop: Shop, registry: Registry) -> None:
    version = begin(shop, registry)

    def away(folder: Path, adapter: object) -> Proof:
        raise ProofUnavailable("not now")

    registry.prove = away
    with pytest.raises(ProofUnavailable):
        registry.finish(version)
    assert registry.find("tone@1").state == "checking"
    registry.prove = lambda folder, adapter: Proof("proved")
    assert registry.finish(version).proof.status == "proved"


def test_quotas_and_limits_count_what_waits(shop: Shop, registry: Registry) -> None:
    registry.tenants.put("acme", Quota(max_versions=1, max_rank=3))
    version = begin(shop, registry, caller=ACME)
    with pytest.raises(QuotaExceeded, match="max_versions"):
        begin(shop, registry, "other", caller=ACME)
    assert registry.finish(version).reason.startswith("the adapter has rank 4, and the quota max_rank")
    registry.close()
    with Registry(
        shop.folder / "data", shop.base, AdapterLimits(max_adapters=1), database_url=shop.url
    ) as small:
        begin(shop, small, "one")
        with pytest.raises(AdapterConflict, match="1 adapter versions are live"):
            begin(shop, small, "two")
