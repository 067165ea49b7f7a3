"""The registry and its blobs do what plain dictionaries would, after any sequence of calls, by any replica.

Each call goes to one of the replicas and to the model, which have to say or refuse the same. Then everything
that can be read is compared on every replica, and so are the files on their disks.
`MACHINE_EXAMPLES=500` looks further, by chance.

Planted faults that it found: a shadow, share, alias or file forgotten by a deletion, a rollback that toggles,
numbers that come twice, a twin's files removed, and twelve more.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from adapters.checkpoint.plan import AdapterPlan
from adapters.delta import AdapterWeights
from adapters.registry.files import Files
from adapters.registry.records import Promote
from tests.postgres import Cluster
from tests.promises.registry_pair import OWNERS, Pair, open_shop

LONGER = int(os.environ.get("MACHINE_EXAMPLES", "0"))

# Few of each, so that the same ones meet again.
OWNER = st.sampled_from(OWNERS)
REPLICA = st.integers(0, 1)
CONTENT = st.integers(1, 3)
ALIAS = st.sampled_from(["default", "prod"])
OTHER = st.sampled_from(["guest", "*"])
PROMOTE = st.sampled_from(["auto", "auto", "yes", "no"])
PICK = st.integers(0, 7)
"""Of a version: `Machine.pick` makes one that answers of most."""
PERCENT = st.sampled_from([1, 10, 33, 50, 99])
STALE = st.sampled_from([None, None, 0, 1])
"""None: any revision is changed; else the one that is expected, off by so much."""


class Machine(Pair):
    """Single calls, and sequences that chance alone would seldom make; all is compared after each call."""

    @invariant()
    def is_as_the_model_says(self) -> None:
        self.check()

    def pick(self, owner: str, pick: int) -> int:
        """A version that answers, the newest first; of 7, and where none does: one that does not."""
        model = self.models[owner]
        answering = sorted(model.versions, reverse=True)
        if pick == 7 or not answering:
            return next(n for n in range(model.given + 1, -1, -1) if n not in model.versions)
        return answering[pick % len(answering)]

    def revision(self, owner: str, alias: str, stale: int | None) -> int | None:
        model = self.models[owner]
        return None if stale is None else stale + (len(model.aliases[alias]) if model.alias(alias) else 0)

    def have(self, owner: str, replica: int, least: int = 2) -> list[int]:
        """At least two versions of an adapter, or three, newest first."""
        for content in (1, 2, 1, 2):
            if len(self.models[owner].versions) < least:
                self.publish(owner, replica, content)
                self.check()
        return sorted(self.models[owner].versions, reverse=True)

    @rule(owner=OWNER, replica=REPLICA, content=CONTENT, promote=PROMOTE)
    def publishes(self, owner: str, replica: int, content: int, promote: Promote) -> None:
        self.publish(owner, replica, content, promote)

    @rule(owner=OWNER, replica=REPLICA, alias=ALIAS, pick=PICK, stale=STALE)
    def promotes(self, owner: str, replica: int, alias: str, pick: int, stale: int | None) -> None:
        self.promote(owner, replica, alias, self.pick(owner, pick), self.revision(owner, alias, stale))

    @rule(owner=OWNER, replica=REPLICA, alias=ALIAS, picks=st.tuples(PICK, PICK, PICK), percent=PERCENT)
    def mixes(self, owner: str, replica: int, alias: str, picks: tuple[int, ...], percent: int) -> None:
        one, other, shadow = (self.pick(owner, pick) for pick in picks)
        targets = {one: percent, other: 100 - percent} if one != other else {one: 100}
        self.point(owner, replica, alias, targets, None if shadow in targets else shadow)

    @rule(owner=OWNER, replica=REPLICA, alias=ALIAS, pick=PICK, percent=PERCENT | st.sampled_from([0, 100]))
    def begins_canary(self, owner: str, replica: int, alias: str, pick: int, percent: int) -> None:
        self.canary(owner, replica, alias, self.pick(owner, pick), percent)

    @rule(owner=OWNER, replica=REPLICA, alias=ALIAS, stale=STALE)
    def rolls_back(self, owner: str, replica: int, alias: str, stale: int | None) -> None:
        self.back(owner, replica, alias, self.revision(owner, alias, stale))

    @rule(owner=OWNER, replica=REPLICA, pick=PICK, reason=st.sampled_from(["old", None]))
    def deprecates(self, owner: str, replica: int, pick: int, reason: str | None) -> None:
        self.mark(owner, replica, self.pick(owner, pick), reason)

    @rule(owner=OWNER, replica=REPLICA, pick=PICK, force=st.booleans())
    def deletes(self, owner: str, replica: int, pick: int, force: bool) -> None:
        self.delete(owner, replica, self.pick(owner, pick), force)

    @rule(owner=OWNER, replica=REPLICA, other=OTHER, shared=st.booleans())
    def shares(self, owner: str, replica: int, other: str, shared: bool) -> None:
        self.share(owner, replica, other, shared)

    @rule(replica=REPLICA, content=CONTENT)
    def holds(self, replica: int, content: int) -> None:
        self.hold(replica, content)

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def releases(self, pick: int) -> None:
        self.release(*self.held[pick % len(self.held)])

    @rule(replica=REPLICA)
    def reopens(self, replica: int) -> None:
        self.reopen(replica)

    @rule(replica=REPLICA)
    def sweeps(self, replica: int) -> None:
        report = self.replicas[replica % len(self.replicas)].sweep()
        assert (report.checked, report.quarantined, report.missing) == (len(self.live()), (), ())

    # Sequences

    @rule(owner=OWNER, replica=REPLICA, content=CONTENT, other=OTHER, force=st.booleans())
    def is_born_again(self, owner: str, replica: int, content: int, other: str, force: bool) -> None:
        """What was deleted leaves nothing to the next of its name: no share, no alias, no way back."""
        self.have(owner, replica)
        self.promote(owner, replica, "prod", self.pick(owner, 0))
        self.share(owner, replica, other)
        self.check()
        self.delete(owner, replica, None, force=False)
        if force:
            self.remove(owner, replica)
            self.check()
        self.delete(owner, replica, None, force=not force)
        self.check()
        self.publish(owner, replica, content)
        self.check()
        self.back(owner, replica, "default")

    @rule(owner=OWNER, replica=REPLICA)
    def has_a_shadow(self, owner: str, replica: int) -> None:
        """A shadow is needed, also by a way back."""
        new, old, *_ = self.have(owner, replica)
        self.point(owner, replica, "prod", {new: 100}, shadow=old)
        self.promote(owner, replica, "default", new)
        self.check()
        self.delete(owner, replica, old, force=False)
        self.promote(owner, replica, "prod", new)
        self.check()
        self.delete(owner, replica, old)
        self.check()
        self.back(owner, replica, "prod")

    @rule(owner=OWNER, replica=REPLICA, alias=ALIAS, percent=PERCENT)
    def walks_back(self, owner: str, replica: int, alias: str, percent: int) -> None:
        new, old, *_ = self.have(owner, replica)
        self.promote(owner, replica, alias, old)
        self.canary(owner, replica, alias, new, percent)
        self.check()
        self.promote(owner, replica, alias, new)
        for _ in range(3):
            self.back(owner, replica, alias)
            self.check()
        self.remove(owner, replica)
        self.promote(owner, replica, "prod", new)
        self.back(owner, replica, "prod")

    @rule(owner=OWNER, replica=REPLICA, alias=ALIAS, percent=PERCENT, share=PERCENT)
    def has_three_targets(self, owner: str, replica: int, alias: str, percent: int, share: int) -> None:
        new, one, other, *_ = self.have(owner, replica, least=3)
        self.point(owner, replica, alias, {one: share, other: 100 - share})
        self.canary(owner, replica, alias, new, percent)
        self.check()
        self.delete(owner, replica, one)

    @rule(owner=OWNER, replica=REPLICA, content=CONTENT, ends=st.booleans())
    def is_held_while_deleted(self, owner: str, replica: int, content: int, ends: bool) -> None:
        """The files go with the last hold, or with the process that held them."""
        self.publish(owner, replica, content)
        held = self.hold(replica, content)
        assert held
        for each in OWNERS:
            for number in [n for n, known in self.models[each].versions.items() if known == content]:
                self.delete(each, replica, number)
                self.check()
        if ends:
            self.reopen(replica)
        else:
            self.release(replica, content)

    @rule(owners=st.permutations(OWNERS), replica=REPLICA, content=CONTENT)
    def is_there_twice(self, owners: list[str], replica: int, content: int) -> None:
        for owner in owners:
            self.publish(owner, replica, content)
        for owner in owners:
            self.delete(owner, replica, max(self.models[owner].versions))
            self.check()

    @rule(owner=OWNER, replica=REPLICA, alias=ALIAS)
    def is_deprecated_and_meant(self, owner: str, replica: int, alias: str) -> None:
        new, old, *_ = self.have(owner, replica)
        self.mark(owner, replica, old, "old")
        self.promote(owner, replica, alias, old)
        self.check()
        self.publish(owner, replica, self.models[owner].versions[new])
        self.mark(owner, replica, old, None)

    @rule(owner=OWNER, replica=REPLICA)
    def has_its_quota(self, owner: str, replica: int) -> None:
        new, old, *_ = self.have(owner, replica)
        model = self.models[owner]
        content = model.versions[new] % 3 + 1
        self.allow(owner, len(model.versions))
        self.publish(owner, replica, content)
        self.check()
        self.delete(owner, replica, old)
        self.publish(owner, replica, content)
        self.check()
        self.allow(owner, None)

    @precondition(lambda self: len(self.replicas) > 1)
    @rule(owner=OWNER, replica=REPLICA, content=CONTENT, pick=st.integers(0, 6), alias=ALIAS)
    def changes_apart(self, owner: str, replica: int, content: int, pick: int, alias: str) -> None:
        """One replica changes what the other one changed and does not know yet."""
        self.publish(owner, replica, content)
        self.promote(owner, 1 - replica, alias, self.pick(owner, pick))
        self.delete(owner, replica, self.pick(owner, pick + 1))
        self.back(owner, 1 - replica, alias)
        self.share(owner, replica, "guest")


def drive(folder: Path, cluster: Cluster | None, examples: int) -> int:
    """How many calls were made."""
    shop = open_shop(folder, cluster)
    run_state_machine_as_test(
        cast(type[RuleBasedStateMachine], lambda: Machine(shop)),
        settings=settings(
            max_examples=LONGER or examples,
            stateful_step_count=30,
            deadline=None,
            derandomize=not LONGER,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return shop.calls


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What survives a crash, and what is right in a file, is for other tests: no waiting for the disk, and
    each content is checked once."""
    known: dict[bytes, tuple[AdapterPlan, AdapterWeights]] = {}

    def check(files: Files, folder: Path, config: bytes, labels: tuple[str, ...]) -> Any:
        if config not in known:
            known[config] = real(files, folder, config, labels)
        return known[config]

    real = Files.check
    monkeypatch.setattr(Files, "check", check)
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def test_sqlite(tmp_path: Path) -> None:
    assert drive(tmp_path, None, 20) > 1_000


def test_two_replicas_on_postgres(tmp_path: Path, postgres: Cluster) -> None:
    assert drive(tmp_path, postgres, 6) > 300
