"""What a replica does in a process of its own, in `test_sync.py`; imports little, to start quickly."""

from __future__ import annotations

import json
from multiprocessing.connection import Connection
from pathlib import Path

from adapters.base import BaseSpec
from adapters.blobs.blobs import open_blobs
from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.errors import AdapterConflict
from adapters.limits import AdapterLimits
from adapters.registry.records import Target
from adapters.registry.registry import Registry


def race(folder: Path, url: str, base: BaseSpec, adapter: Path, number: int, log: Connection) -> None:
    """Publish four versions, and try to win each of eight revisions of an alias."""
    data, store = folder / f"r{number}", f"file://{folder / 'store'}"
    config = json.loads((adapter / CONFIG_FILE).read_bytes())
    blobs = open_blobs(data, store, None)
    with Registry(data, base, AdapterLimits(), database_url=url, blobs=blobs) as registry:
        log.send("ready")
        log.recv()
        numbers = []
        for step in range(4):
            text = json.dumps(config | {"lora_alpha": number * 100 + step + 1}).encode()
            numbers.append(registry.publish("tone", text, adapter / WEIGHTS_FILE)[0].version)
        won = []
        for revision in range(8):
            try:
                registry.set_alias("tone", "prod", [Target(numbers[0])], expected=revision)
                won.append(revision)
            except AdapterConflict:
                continue
        log.send((numbers, won))
