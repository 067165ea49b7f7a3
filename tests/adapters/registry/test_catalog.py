"""What commands see of a data directory beside a server that runs on it."""

from __future__ import annotations

from pathlib import Path

from adapters.base import BaseSpec
from adapters.registry.catalog import Catalog
from adapters.registry.registry import Registry
from tests.adapters.conftest import LIMITS, AdapterFiles


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
        catalog.close()
