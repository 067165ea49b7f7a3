"""A registry whose process is killed again and again, compared after each time with what it had said."""

from __future__ import annotations

import copy
import json
import multiprocessing
import random
import time
from collections import Counter
from multiprocessing.connection import Connection

import psycopg
from sqlalchemy import select

from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.registry.registry import Registry
from adapters.registry.schema import ALIAS_HISTORY
from tests.promises.changing import NAMES, Place, change_until_killed
from tests.promises.past import Change, Past

LONGEST = 0.03
"""Seconds from a message to the kill, at most: a change takes about as long."""


class Killed:
    """Attributes:
    told: how often each kind of change was acknowledged.
    unsaid: how often each was begun and not acknowledged.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.pasts = {name: Past() for name in NAMES}
        self.told: Counter[str] = Counter()
        self.unsaid: Counter[str] = Counter()

    def round(self, seed: int) -> None:
        """Start a process, kill it, and compare."""
        # Not forked from here: what other tests have started would not go on in a child.
        chance, processes = random.Random(seed), multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload([change_until_killed.__module__])
        receive, send = processes.Pipe(duplex=False)
        unsaid: dict[str, Change] = {}
        with receive:
            child = processes.Process(target=change_until_killed, args=(self.place, seed, send))
            child.start()
            send.close()
            if seed % 8:  # else it may be killed while it opens the registry
                self.hear(receive, unsaid, chance.randrange(1, 14))
            time.sleep(chance.uniform(0, LONGEST))
            child.kill()
            child.join()
            self.hear(receive, unsaid)
        self.unsaid.update(change[0] for change in unsaid.values())
        if self.place.url is not None:
            wait_until_alone(self.place.url)
        with self.place.open() as registry:
            self.check(registry, unsaid)

    def hear(self, log: Connection, unsaid: dict[str, Change], most: int = 1_000_000) -> None:
        """Read messages until there are no more; note what was acknowledged, and what was not."""
        for _ in range(most):
            assert log.poll(60)
            try:
                message = log.recv()
            except EOFError:
                return
            if message is None:
                continue
            name, change, result = message
            if result is None:
                unsaid[name] = change
            elif unsaid.pop(name) == change and result is not False:
                self.told[change[0]] += 1
                self.acknowledge(self.pasts[name], change, result)

    def acknowledge(self, past: Past, change: Change, result: object) -> None:
        """It gave the number, or the revision, that it had to give."""
        past.apply(change)
        kind, *arguments = change
        if kind == "publish":
            assert result == past.live[-1]
        elif kind == "begin":
            assert result == past.given
        elif kind in ("set_alias", "promote", "rollback"):
            alias = arguments[1] if kind == "promote" else arguments[0]
            assert result == len(past.aliases[alias])

    def check(self, registry: Registry, unsaid: dict[str, Change]) -> None:
        """All that was acknowledged is there, and of what was begun the whole or nothing."""
        for version in sorted(registry.unfinished(), key=lambda version: version.version):
            assert registry.finish(version).state == "ready"  # as a server does that starts again
        for name, past in self.pasts.items():
            possible = [past, *_after(past, unsaid.get(name))]
            for each in possible:
                for number in sorted(each.unchecked):
                    each.finish(number)
            shown, views = self.shown(registry, name), [view(each) for each in possible]
            assert shown in views, (name, unsaid)
            self.pasts[name] = possible[views.index(shown)]
        self.check_audit(registry)
        self.check_files(registry)

    def shown(self, registry: Registry, name: str) -> dict[str, object]:
        """What `view` gives, as the registry tells it and its files say."""
        versions = registry.versions(name)
        aliases = registry.aliases(name) if versions else ()
        columns = ALIAS_HISTORY.c
        with registry.database.read() as connection:
            query = select(columns.alias, columns.edition, columns.targets).where(columns.name == name)
            editions = connection.execute(query.order_by(columns.alias, columns.edition)).all()
        return {
            "live": {version.version: self.content(registry, version.digest) for version in versions},
            "deprecated": {version.version for version in versions if version.state == "deprecated"},
            "ever": [version.version for version in registry.history() if version.name == name],
            "aliases": {
                alias.alias: {target.version: target.percent for target in alias.targets} for alias in aliases
            },
            "editions": [(row.alias, row.edition, dict(row.targets)) for row in editions],
        }

    def content(self, registry: Registry, digest: str) -> int:
        """What the files of a digest hold, byte for byte."""
        registry.hold(digest)
        try:
            assert registry.load(digest).digest == digest
            folder = registry.folder(digest)
            content: int = json.loads((folder / CONFIG_FILE).read_bytes())["lora_alpha"]
            assert (folder / CONFIG_FILE).read_bytes() == self.place.config(content)
            assert (folder / WEIGHTS_FILE).read_bytes() == (self.place.adapter / WEIGHTS_FILE).read_bytes()
        finally:
            registry.release(digest)
        return content

    def check_audit(self, registry: Registry) -> None:
        """It has no gap, and tells of every change once."""
        entries = registry.audit(limit=1_000_000)
        assert [entry.id for entry in entries] == list(range(1, len(entries) + 1))
        for name, past in self.pasts.items():
            told = [
                (entry.action, entry.subject) for entry in entries if entry.subject.startswith(f"{name}@")
            ]
            assert told == [(action, f"{name}@{what}") for action, what in past.audit]

    def check_files(self, registry: Registry) -> None:
        """No more files than versions need, and nothing half-made."""
        data = self.place.data
        digests = {version.digest for version in registry.list()}
        assert {path.name for path in (data / "adapters").iterdir()} == digests
        assert not any((data / "pending").iterdir())


def wait_until_alone(url: str) -> None:
    """Postgres has seen that the process is gone, and ended what it had begun."""
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid()"
    )
    deadline = time.monotonic() + 30
    with psycopg.connect(url, autocommit=True) as connection:
        while connection.execute(others).fetchone() != (0,):
            assert time.monotonic() < deadline
            time.sleep(0.005)


def view(past: Past) -> dict[str, object]:
    """All that can be seen of a name."""
    return {
        "live": {number: past.versions[number] for number in past.live},
        "deprecated": past.deprecated,
        "ever": list(range(1, past.given + 1)),
        "aliases": {alias: targets for alias in sorted(past.aliases) if (targets := past.meaning(alias))},
        "editions": [
            (alias, number, edition.targets)
            for alias in sorted(past.aliases)
            for number, edition in enumerate(past.aliases[alias], 1)
        ],
    }


def _after(past: Past, change: Change | None) -> list[Past]:
    """The past with one more change; none if that would be refused."""
    if change is None:
        return []
    changed = copy.deepcopy(past)
    try:
        changed.apply(change)
    except KeyError:
        return []
    return [changed]
