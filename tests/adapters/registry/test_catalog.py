"""What commands see of a data directory beside a server that runs on it."""

from __future__ import annotations

from pathlib import Path

from adapters.base import BaseSpec
from adapters.registry.catalog import Catalog
from adapters.registry.records import Caller
from adapters.registry.registry import Registry
from tests.adapters.conftest import LIMITS, AdapterFiles, spec_of, tiny_llama


def test_live_versions_while_a_server_has_the_folder(
    tmp_path: Path, base: BaseSpec, files: AdapterFiles
) -> None:
    with Registry(tmp_path, base, LIMITS) as registry:
        first, _ = registry.publish("tone", files.config, files.weights)
        second, _ = registry.publish("tone", files.set(lora_alpha=2), files.weights)
        registry.publish("gone", files.config, files.weights)
        registry.delete("gone")
        catalog = Catalog(tmp_path / "registry.sqlite3")
        assert catalog.live() == [first, second]
        marked = registry.deprecate("tone@1", "old")
        registry.delete("tone@2", force=True)
        assert catalog.live() == [marked]  # what was changed since it was opened
        catalog.close()


def test_versions_of_every_base_and_tenant_in_order(
    tmp_path: Path, base: BaseSpec, files: AdapterFiles
) -> None:
    with Registry(tmp_path, base, LIMITS) as registry:
        registry.tenants.put("acme")
        voice, _ = registry.publish("voice", files.config, files.weights)
        acme, _ = registry.publish("zeal", files.config, files.weights, caller=Caller("acme"))
    with Registry(tmp_path, spec_of(tiny_llama(), digest="c" * 64), LIMITS) as registry:
        tone, _ = registry.publish("tone", files.config, files.weights)
        assert registry.list() == (tone,)
    catalog = Catalog(tmp_path / "registry.sqlite3")
    assert catalog.live() == [acme, tone, voice]
    catalog.close()
