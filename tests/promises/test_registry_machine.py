"""The registry and its blobs do what plain dictionaries would, after any sequence of calls, by any replica.

Each step asks one of the replicas for a change and does the same to the model, or expects the same refusal.
Then everything that can be read is compared on every replica, and so are the files on their disks.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from adapters.base import BaseSpec
from adapters.blobs.blobs import open_blobs
from adapters.errors import AdapterConflict, AdapterNotFound
from adapters.limits import AdapterLimits
from adapters.registry.database import Database
from adapters.registry.names import full_name
from adapters.registry.records import LOCAL, Alias, Caller, Target
from adapters.registry.registry import Registry
from tests.adapters.conftest import AdapterFiles, plain_adapter, spec_of, tiny_llama
from tests.postgres import Cluster

Adapter = tuple[str, str]
CALLERS = {tenant: Caller(tenant, f"key of {tenant}") for tenant in ("default", "acme", "rival")}
ADAPTERS = st.sampled_from([("acme", "tone"), ("default", "tone")])
ALIASES = st.sampled_from(["default", "prod"])
PROMOTE = st.sampled_from(["auto", "auto", "yes", "no"])
REPLICA = st.integers(0, 1)
WHO = {"adapter": ADAPTERS, "replica": REPLICA}
NUMBER = st.integers(0, 6)
"""Of a version: most stand for one that answers, see `Model.pick`."""
PERCENT = st.integers(1, 99)
KEYS = ("", "ann", "bob", "eve")


@dataclass
class Edition:
    """What an alias meant for a while: versions with percents; none: it was removed."""

    targets: dict[int, int]
    shadow: int | None
    before: int | None


@dataclass
class Model:
    """Of one adapter: what its versions are, and what its aliases meant from the first day on."""

    versions: dict[int, int] = field(default_factory=dict)
    """Content by number, of those that answer."""
    deprecated: set[int] = field(default_factory=set)
    given: int = 0
    aliases: dict[str, list[Edition]] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)

    def alias(self, name: str) -> Edition | None:
        editions = self.aliases.get(name, [])
        return editions[-1] if editions and editions[-1].targets else None

    def pick(self, number: int) -> int:
        """One of the versions that answer; for a few numbers, and where none does, one that may not."""
        answering = sorted(self.versions)
        return answering[number % len(answering)] if answering and number < 6 else number

    def put(
        self, name: str, targets: dict[int, int], shadow: int | None = None, before: int | None = None
    ) -> None:
        known = self.alias(name)
        if before is None and known is not None:
            is_same = (known.targets, known.shadow) == (targets, shadow)
            before = known.before if is_same else len(self.aliases[name])
        self.aliases.setdefault(name, []).append(Edition(targets, shadow, before or None))

    def publish(self, content: int, promote: str) -> bool:
        newest = max(self.versions, default=0)
        default = self.alias("default")
        is_new = not newest or self.versions[newest] != content
        if is_new:
            self.given += 1
            self.versions[self.given] = content
        latest = max(self.versions)
        follows = promote == "auto" and default is not None and default.targets == {newest: 100} and is_new
        if default is None or promote == "yes" or follows:
            assert default is None or is_new or promote == "yes"
            if default is None or default.targets != {latest: 100}:
                self.put("default", {latest: 100}, default.shadow if default and follows else None)
        return is_new

    def meaning(self, number: int) -> set[str]:
        return {
            name
            for name in self.aliases
            if (edition := self.alias(name)) and number in {*edition.targets, edition.shadow}
        }


def _action(name: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    return st.fixed_dictionaries(arguments).map(lambda drawn: (name, drawn))


# Hypothesis would leave out some rules in each example; as one rule, all kinds come, so often each.
ACTIONS = [
    *6
    * [
        _action(
            "publish",
            adapter=ADAPTERS,
            replica=REPLICA,
            content=st.integers(1, 3),
            promote=PROMOTE,
        )
    ],
    *3 * [_action("promote", **WHO, alias=ALIASES, number=NUMBER, stale=st.booleans())],
    *2
    * [
        _action(
            "mix",
            adapter=ADAPTERS,
            replica=REPLICA,
            one=NUMBER,
            other=NUMBER,
            shadow=NUMBER | st.none(),
            percent=PERCENT,
        )
    ],
    *2 * [_action("canary", **WHO, alias=ALIASES, number=NUMBER, percent=PERCENT)],
    *3 * [_action("rollback", **WHO, alias=ALIASES)],
    *[_action("remove_alias", **WHO)],
    *1
    * [
        _action(
            "deprecate",
            adapter=ADAPTERS,
            replica=REPLICA,
            number=NUMBER,
            reason=st.sampled_from(["old", None]),
        )
    ],
    *3 * [_action("delete", **WHO, number=NUMBER | st.none(), force=st.booleans())],
    *2
    * [
        _action(
            "share",
            adapter=ADAPTERS,
            replica=REPLICA,
            other=st.sampled_from(["rival", "*"]),
            shared=st.booleans(),
        )
    ],
    *2 * [_action("hold", replica=REPLICA, content=st.integers(1, 3))],
    *[_action("release")],
    *[_action("reopen", replica=REPLICA)],
    *[_action("sweep", replica=REPLICA)],
]


class Opened(ExitStack):
    """What one run needs; `url`: of its database."""

    url: str | None = None


class Machine(RuleBasedStateMachine):
    """On one database; `url` None: SQLite, where there is one replica."""

    def __init__(self, base: BaseSpec, files: AdapterFiles, opened: Callable[[], Opened]) -> None:
        super().__init__()
        self.base, self.files = base, files
        self.stack = opened()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.url: str | None = self.stack.url
        self.models: dict[Adapter, Model] = {}
        self.digests: dict[int, str] = {}
        self.held: list[tuple[int, int]] = []
        """Replica and content."""
        self.replicas: list[Registry] = [self.open(number) for number in range(1 if self.url is None else 2)]
        self.replicas[0].tenants.put("acme")
        self.replicas[0].tenants.put("rival")

    def open(self, number: int) -> Registry:
        data = self.folder / str(number)
        store = None if self.url is None else f"file://{self.folder / 'store'}"
        blobs = open_blobs(data, store, None)
        return Registry(data, self.base, AdapterLimits(), database_url=self.url, blobs=blobs)

    def teardown(self) -> None:
        for registry in self.replicas:
            registry.close()
        self.stack.close()

    @initialize()
    def begin(self) -> None:
        for content in (1, 2, 3):
            self.publish(("acme", "tone"), 0, content, "auto")

    @rule(action=st.one_of(ACTIONS))
    def act(self, action: tuple[str, dict[str, Any]]) -> None:
        name, arguments = action
        getattr(self, name)(**arguments)

    def use(self, replica: int, adapter: Adapter) -> tuple[Registry, Model, str, Caller]:
        """A replica, which may not have seen yet what the other did; and who owns the adapter."""
        registry = self.replicas[replica % len(self.replicas)]
        return registry, self.models.setdefault(adapter, Model()), adapter[1], CALLERS[adapter[0]]

    def publish(self, adapter: Adapter, replica: int, content: int, promote: str) -> None:
        registry, model, name, caller = self.use(replica, adapter)
        config = json.dumps(json.loads(self.files.config) | {"lora_alpha": content}).encode()
        version, is_new = registry.publish(
            name,
            config,
            self.files.weights,
            caller=caller,
            promote=promote,  # type: ignore[arg-type]
        )
        assert is_new == model.publish(content, promote)
        assert version.ref == f"{full_name(*adapter)}@{max(model.versions)}"
        assert version.digest == self.digests.setdefault(content, version.digest)

    def promote(self, adapter: Adapter, replica: int, alias: str, number: int, stale: bool) -> None:
        registry, model, name, caller = self.use(replica, adapter)
        number = model.pick(number)
        revision = len(model.aliases[alias]) if model.alias(alias) else 0
        expected = revision + 1 if stale else revision

        def change() -> Alias:
            return registry.promote(f"{name}@{number}", alias, expected=expected, caller=caller)

        if number not in model.versions:
            with pytest.raises(AdapterNotFound):
                change()
        elif stale:
            with pytest.raises(AdapterConflict, match=f"is at revision {revision}, not {expected}"):
                change()
        else:
            model.put(alias, {number: 100})
            assert change().revision == len(model.aliases[alias])

    def mix(
        self, adapter: Adapter, replica: int, one: int, other: int, shadow: int | None, percent: int
    ) -> None:
        registry, model, name, caller = self.use(replica, adapter)
        one, other = model.pick(one), model.pick(other)
        shadow = None if shadow is None else model.pick(shadow)
        if one == other or shadow in (one, other):
            return
        targets = [Target(one, percent), Target(other, 100 - percent)]
        if {one, other} | ({shadow} - {None}) <= model.versions.keys():
            registry.set_alias(name, "prod", targets, shadow=shadow, caller=caller)
            model.put("prod", {one: percent, other: 100 - percent}, shadow)
        else:
            with pytest.raises(AdapterNotFound):
                registry.set_alias(name, "prod", targets, shadow=shadow, caller=caller)

    def canary(self, adapter: Adapter, replica: int, alias: str, number: int, percent: int) -> None:
        registry, model, name, caller = self.use(replica, adapter)
        number = model.pick(number)
        known = model.alias(alias)
        if number not in model.versions or known is None:
            with pytest.raises(AdapterNotFound):
                registry.canary(f"{name}@{number}", percent, alias, caller=caller)
        elif set(known.targets) - {number}:
            changed = registry.canary(f"{name}@{number}", percent, alias, caller=caller)
            targets = {target.version: target.percent for target in changed.targets}
            assert (targets[number], sum(targets.values())) == (percent, 100)
            assert set(targets) - {number} <= set(known.targets)
            model.put(alias, targets, None if known.shadow == number else known.shadow)

    def rollback(self, adapter: Adapter, replica: int, alias: str) -> None:
        registry, model, name, caller = self.use(replica, adapter)
        known = model.alias(alias)
        goal = model.aliases[alias][known.before - 1] if known is not None and known.before else None
        if goal is None or not set(goal.targets) <= model.versions.keys():
            with pytest.raises((AdapterNotFound, AdapterConflict)):
                registry.rollback(name, alias, caller=caller)
            return
        registry.rollback(name, alias, caller=caller)
        shadow = goal.shadow if goal.shadow in model.versions else None
        model.put(alias, goal.targets, shadow, goal.before or 0)

    def remove_alias(self, adapter: Adapter, replica: int) -> None:
        registry, model, name, caller = self.use(replica, adapter)
        if model.alias("prod") is None:
            with pytest.raises(AdapterNotFound):
                registry.remove_alias(name, "prod", caller=caller)
        else:
            registry.remove_alias(name, "prod", caller=caller)
            model.put("prod", {})

    def deprecate(self, adapter: Adapter, replica: int, number: int, reason: str | None) -> None:
        registry, model, name, caller = self.use(replica, adapter)
        number = model.pick(number)
        if number not in model.versions:
            with pytest.raises(AdapterNotFound):
                registry.deprecate(f"{name}@{number}", reason, caller=caller)
            return
        registry.deprecate(f"{name}@{number}", reason, caller=caller)
        (model.deprecated.add if reason else model.deprecated.discard)(number)

    def delete(self, adapter: Adapter, replica: int, number: int | None, force: bool) -> None:
        registry, model, name, caller = self.use(replica, adapter)
        number = None if number is None else model.pick(number)
        ref = name if number is None else f"{name}@{number}"
        doomed = set(model.versions) if number is None else {number} & model.versions.keys()
        meaning = {alias for alias in model.aliases if model.alias(alias)} - {"default"}
        if number is not None:
            meaning = model.meaning(number)
        if not doomed or (meaning and not force):
            with pytest.raises(AdapterConflict if doomed else AdapterNotFound):
                registry.delete(ref, caller=caller, force=force)
            return
        assert {version.version for version in registry.delete(ref, caller=caller, force=force)} == doomed
        for each in doomed:
            del model.versions[each]
            model.deprecated.discard(each)
        for alias in sorted(model.aliases):
            self.leave(registry, adapter, alias, doomed)
        if not model.versions:
            model.shared.clear()

    def leave(self, registry: Registry, adapter: Adapter, alias: str, doomed: set[int]) -> None:
        """What an alias means after its versions were deleted: how the others share is for it to say."""
        model = self.models[adapter]
        known = model.alias(alias)
        if known is None or not doomed & {*known.targets, known.shadow}:
            return
        left = set(known.targets) - doomed
        if not left and alias == "default" and model.versions:
            left = {max(model.versions)}
        shadow = None if not left or known.shadow in doomed | left else known.shadow
        targets: dict[int, int] = {}
        if left:
            found = {each.alias: each for each in registry.aliases(full_name(*adapter))}[alias]
            targets = {target.version: target.percent for target in found.targets}
            assert (set(targets), sum(targets.values())) == (left, 100)
        model.put(alias, targets, shadow)

    def share(self, adapter: Adapter, replica: int, other: str, shared: bool) -> None:
        registry, model, name, caller = self.use(replica, adapter)
        if shared and not model.versions:
            with pytest.raises(AdapterNotFound):
                registry.share(name, other, caller=caller)
            return
        (registry.share if shared else registry.unshare)(name, other, caller=caller)
        (model.shared.add if shared else model.shared.discard)(other)

    def hold(self, replica: int, content: int) -> None:
        number = replica % len(self.replicas)
        registry = self.replicas[number]
        registry._parts.sync.catch_up()
        if content in self.live() or (number, content) in self.held:
            registry.hold(self.digests[content])
            assert registry.load(self.digests[content]).digest == self.digests[content]
            self.held.append((number, content))
        elif content in self.digests:
            with pytest.raises(AdapterNotFound):
                registry.hold(self.digests[content])

    def release(self) -> None:
        if self.held:
            number, content = self.held.pop(0)
            self.replicas[number].release(self.digests[content])

    def reopen(self, replica: int) -> None:
        number = replica % len(self.replicas)
        self.replicas[number].close()
        self.held = [(holder, content) for holder, content in self.held if holder != number]
        self.replicas[number] = self.open(number)

    def sweep(self, replica: int) -> None:
        report = self.replicas[replica % len(self.replicas)].sweep()
        assert (report.checked, report.quarantined, report.missing) == (len(self.live()), (), ())

    def live(self) -> set[int]:
        return {content for model in self.models.values() for content in model.versions.values()}

    @invariant()
    def every_replica_says_what_the_model_says(self) -> None:
        for number, registry in enumerate(self.replicas):
            registry._parts.sync.catch_up()
            for adapter, model in self.models.items():
                self.compare(registry, adapter, model)
            assert len(registry.list()) == sum(len(model.versions) for model in self.models.values())
            held = {self.digests[content] for holder, content in self.held if holder == number}
            live = {self.digests[content] for content in self.live()}
            here = set(registry._blobs.digests())
            assert here == live | held if self.url is None else here <= live | held and held <= here

    def compare(self, registry: Registry, adapter: Adapter, model: Model) -> None:
        name = full_name(*adapter)
        versions = {version.version: version for version in registry.versions(name)}
        assert {number: version.digest for number, version in versions.items()} == {
            number: self.digests[content] for number, content in model.versions.items()
        }
        assert {n for n, version in versions.items() if version.state == "deprecated"} == model.deprecated
        for alias in ("default", "prod"):
            edition = model.alias(alias)
            if edition is None:
                with pytest.raises(AdapterNotFound):
                    registry.resolve(f"{name}@{alias}")
                continue
            for key in KEYS:
                route = registry.route(f"{name}@{alias}", LOCAL, key)
                assert route == self.replicas[0].route(f"{name}@{alias}", LOCAL, key)
                assert route.version.version in edition.targets
                assert (route.shadow.version if route.shadow else None) == edition.shadow
        if model.versions:
            told = {alias.alias: alias for alias in registry.aliases(name)}
            means = {
                alias: {target.version: target.percent for target in each.targets}
                for alias, each in told.items()
            }
            assert means == {a: e.targets for a in model.aliases if (e := model.alias(a)) is not None}
            assert {a: each.revision for a, each in told.items()} == {a: len(model.aliases[a]) for a in told}
        seen = [version.ref for version in registry.list(CALLERS["rival"]) if version.full_name == name]
        assert bool(seen) == bool(model.shared and model.versions)


def _migrated(url: str) -> None:
    Database(url).close()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> AdapterFiles:
    return plain_adapter(tmp_path_factory.mktemp("machine") / "adapter")


def drive(adapter: AdapterFiles, cluster: Cluster | None, examples: int) -> None:
    base = spec_of(tiny_llama())

    def opened() -> Opened:
        stack = Opened()
        if cluster is not None:
            stack.url = stack.enter_context(cluster.database(_migrated))
        return stack

    run_state_machine_as_test(
        cast(type[RuleBasedStateMachine], lambda: Machine(base, adapter, opened)),
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_sqlite(adapter: AdapterFiles) -> None:
    drive(adapter, None, 16)


def test_two_replicas_on_postgres(adapter: AdapterFiles, postgres: Cluster) -> None:
    drive(adapter, postgres, 10)
