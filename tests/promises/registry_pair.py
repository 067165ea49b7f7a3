"""A registry, by one or two replicas, and its model side by side: calls of both, and their comparison."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis.stateful import RuleBasedStateMachine

from adapters.base import BaseSpec
from adapters.blobs.blobs import open_blobs
from adapters.errors import AdapterError, AdapterNotFound
from adapters.limits import AdapterLimits
from adapters.registry.database import Database
from adapters.registry.records import LOCAL, Alias, Caller, Promote, Quota, Target
from adapters.registry.registry import Registry
from tests.adapters.conftest import save, spec_of, tiny_llama, wrap
from tests.postgres import Cluster
from tests.promises.registry_model import Log, Means, Model

T = TypeVar("T")
OWNERS = ("acme", "rival")
CALLERS = {tenant: Caller(tenant, f"key of {tenant}") for tenant in (*OWNERS, "guest")}
KEYS = ("ann", "bob")


@dataclass
class Shop:
    """What all runs share. Contents differ in one number.

    Attributes:
        cluster: None: SQLite, copied from a data directory that is ready.
        calls: made until now, of all runs.
    """

    folder: Path
    cluster: Cluster | None
    base: BaseSpec
    weights: Path
    configs: dict[int, bytes]
    digests: dict[int, str] = field(default_factory=dict)
    calls: int = 0

    @property
    def empty(self) -> Path:
        return self.folder / "empty"


def open_shop(folder: Path, cluster: Cluster | None) -> Shop:
    base = spec_of(tiny_llama(hidden=16, layers=1))
    model = wrap(tiny_llama(hidden=16, layers=1), r=1, lora_alpha=1, target_modules=["q_proj"])
    files = save(model, folder / "adapter")
    known = json.loads(files.config)
    configs = {alpha: json.dumps(known | {"lora_alpha": alpha}).encode() for alpha in (1, 2, 3)}
    shop = Shop(folder, cluster, base, files.weights, configs)
    Registry(shop.empty, base, AdapterLimits()).close()
    return shop


def migrated(url: str) -> None:
    Database(url).close()


class Pair(RuleBasedStateMachine):
    """Two adapters of one name, in two tenants, on one database; on SQLite (`url` None) of one replica."""

    def __init__(self, shop: Shop) -> None:
        super().__init__()
        self.shop = shop
        self.stack = ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(dir=shop.folder)))
        self.url = self.stack.enter_context(shop.cluster.database(migrated)) if shop.cluster else None
        self.log: Log = []
        self.noted = 0
        self.models = {owner: Model(owner, "tone", self.log) for owner in OWNERS}
        self.quotas: dict[str, int] = {}
        self.held: list[tuple[int, int]] = []
        """Replica and content."""
        self.local: list[set[int]] = [set() for _ in range(1 if self.url is None else 2)]
        """Contents on the disk of each replica."""
        if self.url is None:
            shutil.copytree(shop.empty, self.folder / "0")
        self.replicas = [self.open(number) for number in range(len(self.local))]
        for tenant in CALLERS:
            self.allow(tenant, None)

    def open(self, number: int) -> Registry:
        data = self.folder / str(number)
        store = None if self.url is None else f"file://{self.folder / 'store'}"
        blobs = open_blobs(data, store, None)
        registry = Registry(data, self.shop.base, AdapterLimits(), database_url=self.url, blobs=blobs)
        registry._parts.sync.stop()  # replicas learn of changes when a step says so, so that steps repeat
        return registry

    def teardown(self) -> None:
        for registry in self.replicas:
            registry.close()
        self.stack.close()

    # Calls, of the registry and of the model

    def both(self, replica: int, real: Callable[[Registry], T], model: Callable[[], Any]) -> T | None:
        """What the registry says; None: it refused, as the model did."""
        self.shop.calls += 1
        number = replica % len(self.replicas)
        try:
            model()
        except AdapterError as error:
            with pytest.raises(type(error)):
                real(self.replicas[number])
            return None
        said = real(self.replicas[number])
        self.local[number] &= self.needed(number)
        return said

    def allow(self, tenant: str, versions: int | None) -> None:
        self.replicas[0].tenants.put(tenant, Quota(max_versions=versions))
        self.quotas.pop(tenant, None)
        if versions is not None:
            self.quotas[tenant] = versions
        self.log.append((tenant, "tenant.put", tenant))

    def publish(self, owner: str, replica: int, content: int, promote: Promote = "auto") -> None:
        model = self.models[owner]
        has_room = len(model.versions) < self.quotas.get(owner, 10**6)
        told: list[tuple[int, bool]] = []
        said = self.both(
            replica,
            lambda registry: registry.publish(
                "tone", self.shop.configs[content], self.shop.weights, caller=CALLERS[owner], promote=promote
            ),
            lambda: told.append(model.publish(content, promote, has_room)),
        )
        if said is not None:
            assert [(said[0].version, said[1])] == told
            assert said[0].digest == self.shop.digests.setdefault(content, said[0].digest)
        number = replica % len(self.local)
        self.local[number] |= {content} & self.needed(number)

    def change(
        self, owner: str, replica: int, real: Callable[[Registry, Caller], Alias], model: Callable[[], Means]
    ) -> None:
        """Of an alias."""
        told: list[Means] = []
        said = self.both(
            replica, lambda registry: real(registry, CALLERS[owner]), lambda: told.append(model())
        )
        assert said is None or [means(said)] == told

    def point(
        self,
        owner: str,
        replica: int,
        alias: str,
        targets: dict[int, int],
        shadow: int | None = None,
        expected: int | None = None,
    ) -> None:
        self.change(
            owner,
            replica,
            lambda registry, caller: registry.set_alias(
                "tone",
                alias,
                [Target(*each) for each in targets.items()],
                shadow=shadow,
                expected=expected,
                caller=caller,
            ),
            lambda: self.models[owner].set(alias, targets, shadow, expected),
        )

    def promote(self, owner: str, replica: int, alias: str, number: int, expected: int | None = None) -> None:
        self.change(
            owner,
            replica,
            lambda registry, caller: registry.promote(
                f"tone@{number}", alias, expected=expected, caller=caller
            ),
            lambda: self.models[owner].promote(number, alias, expected),
        )

    def canary(self, owner: str, replica: int, alias: str, number: int, percent: int) -> None:
        self.change(
            owner,
            replica,
            lambda registry, caller: registry.canary(f"tone@{number}", percent, alias, caller=caller),
            lambda: self.models[owner].canary(number, percent, alias),
        )

    def back(self, owner: str, replica: int, alias: str, expected: int | None = None) -> None:
        self.change(
            owner,
            replica,
            lambda registry, caller: registry.rollback("tone", alias, expected=expected, caller=caller),
            lambda: self.models[owner].rollback(alias, expected),
        )

    def remove(self, owner: str, replica: int, expected: int | None = None) -> None:
        self.both(
            replica,
            lambda registry: registry.remove_alias("tone", "prod", expected=expected, caller=CALLERS[owner]),
            lambda: self.models[owner].remove_alias("prod", expected),
        )

    def mark(self, owner: str, replica: int, number: int, reason: str | None) -> None:
        self.both(
            replica,
            lambda registry: registry.deprecate(f"tone@{number}", reason, caller=CALLERS[owner]),
            lambda: self.models[owner].deprecate(number, reason),
        )

    def delete(self, owner: str, replica: int, number: int | None, force: bool = True) -> None:
        ref = "tone" if number is None else f"tone@{number}"
        told: list[list[int]] = []
        said = self.both(
            replica,
            lambda registry: registry.delete(ref, caller=CALLERS[owner], force=force),
            lambda: told.append(self.models[owner].delete(number, force)),
        )
        assert said is None or [[version.version for version in said]] == told

    def share(self, owner: str, replica: int, other: str, shared: bool = True) -> None:
        def real(registry: Registry) -> None:
            (registry.share if shared else registry.unshare)("tone", other, caller=CALLERS[owner])

        self.both(replica, real, lambda: self.models[owner].share(other, shared))

    def hold(self, replica: int, content: int) -> bool:
        """Hold and read it, if it is there."""
        number = replica % len(self.replicas)
        registry = self.replicas[number]
        registry._parts.sync.catch_up()
        self.local[number] &= self.needed(number)
        digest = self.shop.digests.get(content, "0" * 64)
        if content not in self.needed(number):
            with pytest.raises(AdapterNotFound):
                registry.hold(digest)
            return False
        registry.hold(digest)
        assert registry.load(digest).digest == digest
        self.held.append((number, content))
        self.local[number].add(content)
        return True

    def release(self, replica: int, content: int) -> None:
        number = replica % len(self.replicas)
        self.held.remove((number, content))
        self.replicas[number].release(self.shop.digests[content])
        self.local[number] &= self.needed(number)

    def needed(self, number: int) -> set[int]:
        """Contents that a replica must not remove."""
        return self.live() | {content for holder, content in self.held if holder == number}

    def live(self) -> set[int]:
        return {content for model in self.models.values() for content in model.versions.values()}

    def reopen(self, replica: int) -> None:
        number = replica % len(self.replicas)
        self.replicas[number].close()
        self.held = [(holder, content) for holder, content in self.held if holder != number]
        self.local[number] &= self.live()
        self.replicas[number] = self.open(number)

    # What there is to read

    def check(self) -> None:
        """Every replica, once it has caught up, says what the model says."""
        said = []
        for number, registry in enumerate(self.replicas):
            registry._parts.sync.catch_up()
            self.local[number] &= self.needed(number)
            said.append([self.compare(registry, model) for model in self.models.values()])
            self.compare_files(number)
        assert said[1:] == said[:-1], "replicas choose differently for one key"
        self.compare_audit(self.replicas[self.noted % len(self.replicas)])

    def compare(self, registry: Registry, model: Model) -> dict[str, int]:
        """What each key was answered with."""
        name = model.full_name
        found = {each.version: (each.digest, each.state) for each in registry.versions(name)}
        assert found == {
            number: (self.shop.digests[content], "deprecated" if number in model.deprecated else "ready")
            for number, content in model.versions.items()
        }
        assert registry.shares(name) == tuple(sorted(model.shared))
        if model.versions:
            told = {alias.alias: (means(alias), alias.revision) for alias in registry.aliases(name)}
            current = {alias: model.alias(alias) for alias in model.aliases}
            assert told == {a: (e.means, len(model.aliases[a])) for a, e in current.items() if e}
        chosen: dict[str, int] = {}
        for caller in (LOCAL, *CALLERS.values()):
            visible = caller.operator or model.seen_by(caller.tenant)
            listed = [each.version for each in registry.list(caller) if each.tenant == model.tenant]
            assert listed == (sorted(model.versions) if visible else [])
            for selector, meant in model.refs().items():
                text = f"tone{selector}" if caller.tenant == model.tenant else f"{name}{selector}"
                chosen |= compare_routes(registry, text, caller, meant if visible else ({}, None))
        return chosen

    def compare_files(self, number: int) -> None:
        here = {path.name for path in (self.folder / str(number) / "adapters").iterdir()}
        assert here == {self.shop.digests[content] for content in self.local[number]}
        live = {self.shop.digests[content] for content in self.live()}
        if self.url is None:
            assert live <= here
        else:
            assert live <= set(self.replicas[number]._blobs.settled(0))

    def compare_audit(self, registry: Registry) -> None:
        """One entry for each change, and the history of each alias that was changed."""
        entries = registry.audit(after=self.noted, limit=1000)
        assert [(e.tenant, e.action, e.subject) for e in entries] == self.log[self.noted :]
        assert [e.id for e in entries] == list(range(self.noted + 1, len(self.log) + 1))
        changed = {(tenant, subject.rpartition("@")[2]) for tenant, _, subject in self.log[self.noted :]}
        self.noted = len(self.log)
        for tenant, alias in changed:
            model = self.models.get(tenant)
            if model is None or not model.versions or alias not in model.aliases:
                continue
            history = registry.alias_history(model.full_name, alias)
            assert [means(each) for each in reversed(history)] == [e.means for e in model.aliases[alias]]
            assert [each.revision for each in history] == list(range(len(history), 0, -1))


def compare_routes(registry: Registry, text: str, caller: Caller, meant: Means) -> dict[str, int]:
    targets, shadow = meant
    if not targets:
        assert route_of(registry, text, caller, None) is None
        return {}
    found = {key: route_of(registry, text, caller, key) for key in KEYS[: len(targets)]}
    assert all(route is not None and route[0] in targets and route[1] == shadow for route in found.values())
    return {f"{text} {key}": route[0] for key, route in found.items() if route}


def route_of(registry: Registry, text: str, caller: Caller, key: str | None) -> tuple[int, int | None] | None:
    """Version and shadow; None: there is nothing."""
    try:
        route = registry.route(text, caller, key)
    except AdapterNotFound:
        return None
    return route.version.version, route.shadow.version if route.shadow else None


def means(alias: Alias) -> Means:
    return {target.version: target.percent for target in alias.targets}, alias.shadow
