"""A process that changes a registry until it is killed, and tells of each change before and after it.

It imports little, so that it can be started often.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock, Thread

from adapters.base import BaseSpec
from adapters.blobs.blobs import open_blobs
from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.errors import AdapterError
from adapters.limits import AdapterLimits
from adapters.registry.records import Target
from adapters.registry.registry import Registry
from tests.promises.past import DEFAULT, Change

NAMES = ("tone", "legal")
"""Each is changed by one thread."""
_MOST = 8
"""Live versions of one name."""


@dataclass(frozen=True)
class Place:
    """Where a registry is, and what is published there.

    Attributes:
        url: of its database; None: SQLite in the data directory.
        store: a URL for blobs; None: they are in the data directory alone.
        adapter: a PEFT folder.
    """

    data: Path
    url: str | None
    store: str | None
    base: BaseSpec
    adapter: Path

    def open(self) -> Registry:
        blobs = open_blobs(self.data, self.store, None)
        return Registry(self.data, self.base, AdapterLimits(), database_url=self.url, blobs=blobs)

    def config(self, content: int) -> bytes:
        """What one content is known by; the weights are the same."""
        known = json.loads((self.adapter / CONFIG_FILE).read_bytes())
        return json.dumps(known | {"lora_alpha": content}).encode()


def change_until_killed(place: Place, seed: int, log: Connection) -> None:
    """Send None once the registry is open; then (name, change, None) before each change, and after it
    (name, change, result), where False says that it was refused.
    """
    telling = Lock()

    def tell(*message: object) -> None:
        with telling:
            log.send(message)

    with place.open() as registry:
        log.send(None)

        def work(name: str) -> None:
            worker = Worker(place, registry, name, random.Random(f"{seed} {name}"))
            while True:
                change = worker.draw()
                tell(name, change, None)
                try:
                    result = worker.make(change)
                except AdapterError:
                    result = False
                tell(name, change, result)

        threads = [Thread(target=work, args=(name,)) for name in NAMES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class Worker:
    """Draws changes of one name and makes them."""

    def __init__(self, place: Place, registry: Registry, name: str, chance: random.Random) -> None:
        self.place, self.registry, self.name, self.chance = place, registry, name, chance
        self.begun: list[int] = []

    def draw(self) -> Change:
        """Any change that may succeed; some will be refused."""
        chance = self.chance
        numbers = [version.version for version in self.registry.versions(self.name)]
        if self.begun:
            return "finish", self.begun.pop()
        if len(numbers) < 2 or (len(numbers) < _MOST and chance.random() < 0.2):
            return chance.choice(("publish", "begin")), chance.randrange(1, 1000)
        number, alias = chance.choice(numbers), chance.choice((DEFAULT, "prod"))
        percent = chance.randrange(1, 100)
        targets = dict(zip(chance.sample(numbers, 2), (percent, 100 - percent), strict=True))
        changes: list[Change] = [
            ("set_alias", alias, targets),
            ("promote", number, alias),
            ("rollback", alias),
            ("remove_alias", "prod"),
            ("deprecate", number, chance.choice(("old", None))),
            ("delete", [number]),
        ]
        everything: Change = ("delete", numbers)
        return everything if chance.random() < 0.02 else chance.choice(changes)

    def make(self, change: Change) -> object:
        """Make it; what it gave: a version's number, an alias's revision, or True."""
        kind, *arguments = change
        result: object = getattr(self, kind)(*arguments)
        return result

    def publish(self, content: int) -> int:
        weights = self.place.adapter / WEIGHTS_FILE
        return self.registry.publish(self.name, self.place.config(content), weights)[0].version

    def begin(self, content: int) -> int:
        weights = self.place.adapter / WEIGHTS_FILE
        number = self.registry.begin(self.name, self.place.config(content), weights).version
        self.begun.append(number)
        return number

    def finish(self, number: int) -> bool:
        return self.registry.finish(self.registry.find(f"{self.name}@{number}")).state == "ready"

    def set_alias(self, alias: str, targets: dict[int, int]) -> int:
        shares = [Target(*share) for share in targets.items()]
        return self.registry.set_alias(self.name, alias, shares).revision

    def promote(self, number: int, alias: str) -> int:
        return self.registry.promote(f"{self.name}@{number}", alias).revision

    def rollback(self, alias: str) -> int:
        return self.registry.rollback(self.name, alias).revision

    def remove_alias(self, alias: str) -> bool:
        self.registry.remove_alias(self.name, alias)
        return True

    def deprecate(self, number: int, reason: str | None) -> bool:
        return self.registry.deprecate(f"{self.name}@{number}", reason).version == number

    def delete(self, numbers: list[int]) -> bool:
        """One version, or all of the name."""
        ref = f"{self.name}@{numbers[0]}" if len(numbers) == 1 else self.name
        gone = self.registry.delete(ref, force=True)
        return [version.version for version in gone] == numbers
