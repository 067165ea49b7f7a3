"""What the registry promises of names, in plain dictionaries: the oracle of test_registry_machine.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from adapters.errors import AdapterConflict, AdapterNotFound, InvalidAlias, QuotaExceeded
from adapters.registry.names import full_name

Log = list[tuple[str, str, str]]
"""Tenant, action and subject of every change."""
Means = tuple[dict[int, int], int | None]
"""Percents by version, and the shadow."""


@dataclass(frozen=True)
class Edition:
    """What an alias meant for a while; without targets: it was removed.

    `before`: the edition that a way back leads to, from 1; 0: there is no way back.
    """

    targets: dict[int, int]
    shadow: int | None
    before: int

    @property
    def means(self) -> Means:
        return self.targets, self.shadow


@dataclass
class Model:
    """One adapter: its versions, and all that its aliases ever meant. A refused call changes nothing."""

    tenant: str
    name: str
    log: Log
    given: int = 0
    versions: dict[int, int] = field(default_factory=dict)
    """Content by number, of those that answer."""
    deprecated: set[int] = field(default_factory=set)
    aliases: dict[str, list[Edition]] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)

    @property
    def full_name(self) -> str:
        return full_name(self.tenant, self.name)

    def refs(self) -> dict[str, Means]:
        """What every reference to it means; nothing, where it is to be refused."""
        nothing: Means = ({}, None)
        meant = {f"@{n}": ({n: 100}, None) if n in self.versions else nothing for n in range(self.given + 2)}
        for alias in ("default", "prod"):
            edition = self.alias(alias)
            meant[f"@{alias}"] = edition.means if edition else nothing
        return meant | {"": meant["@default"]}

    def seen_by(self, tenant: str) -> bool:
        return bool({tenant, "*"} & {self.tenant, *self.shared})

    def alias(self, name: str) -> Edition | None:
        editions = self.aliases.get(name, [])
        return editions[-1] if editions and editions[-1].targets else None

    def meaning(self, number: int) -> set[str]:
        """Names of the aliases that a version is needed for."""
        current = {name: self.alias(name) for name in self.aliases}
        return {
            n for n, edition in current.items() if edition and number in (*edition.targets, edition.shadow)
        }

    def publish(self, content: int, promote: str, has_room: bool = True) -> tuple[int, bool]:
        newest, default = max(self.versions, default=0), self.alias("default")
        if newest and self.versions[newest] == content:
            if promote == "yes" and default and default.targets != {newest: 100}:
                self._put("promote", "default", {newest: 100})
            return newest, False
        if not has_room:
            raise QuotaExceeded("as many as there may be")
        self.given += 1
        self.versions[self.given] = content
        self._note("publish", f"@{self.given}")
        follows = promote == "auto" and default is not None and set(default.targets) == {newest}
        if default is None or promote == "yes" or follows:
            shadow = default.shadow if default and follows else None
            self._put("promote", "default", {self.given: 100}, shadow)
        return self.given, True

    def set(
        self, alias: str, targets: dict[int, int], shadow: int | None, expected: int | None = None
    ) -> Means:
        if shadow in targets:
            raise InvalidAlias("a target and the shadow")
        self._need(*targets, *([] if shadow is None else [shadow]))
        self._expect(alias, expected)
        return self._put("set_alias", alias, targets, shadow)

    def promote(self, number: int, alias: str, expected: int | None = None) -> Means:
        self._need(number)
        self._expect(alias, expected)
        return self._put("promote", alias, {number: 100})

    def canary(self, number: int, percent: int, alias: str) -> Means:
        known = self._known(alias)
        others = {target: share for target, share in known.targets.items() if target != number}
        if percent < 100 and not others:
            raise InvalidAlias("nothing beside it")
        targets = ({number: percent} if percent else {}) | scaled(others, 100 - percent)
        shadow = None if known.shadow == number else known.shadow
        self._need(*targets)
        return self._put("canary", alias, targets, shadow)

    def rollback(self, alias: str, expected: int | None = None) -> Means:
        before = self._known(alias).before
        goal = self.aliases[alias][before - 1]
        if not before or not goal.targets.keys() <= self.versions.keys():
            raise AdapterConflict("no way back")
        self._expect(alias, expected)
        shadow = goal.shadow if goal.shadow in self.versions else None
        return self._put("rollback", alias, goal.targets, shadow, goal.before)

    def remove_alias(self, alias: str, expected: int | None = None) -> None:
        self._expect(alias, expected)
        self._known(alias)
        self._put("remove_alias", alias, {})

    def deprecate(self, number: int, reason: str | None) -> None:
        self._need(number)
        if (number in self.deprecated) != (reason is not None):
            (self.deprecated.add if reason else self.deprecated.discard)(number)
            self._note("deprecate" if reason else "restore", f"@{number}")

    def delete(self, number: int | None, force: bool) -> list[int]:
        doomed = sorted(self.versions) if number is None else [n for n in self.versions if n == number]
        if not doomed:
            raise AdapterNotFound("nothing to delete")
        current = {name for name in self.aliases if self.alias(name)}
        if (current - {"default"} if number is None else self.meaning(doomed[0])) and not force:
            raise AdapterConflict("an alias means it")
        for each in doomed:
            del self.versions[each]
            self.deprecated.discard(each)
            self._note("delete", f"@{each}")
        for alias in sorted(current):
            self._leave(alias, doomed)
        if not self.versions:
            self.shared.clear()
        return doomed

    def share(self, other: str, shared: bool) -> None:
        if shared and not self.versions:
            raise AdapterNotFound("nothing to share")
        if (other in self.shared) != shared:
            (self.shared.add if shared else self.shared.discard)(other)
            self._note("share" if shared else "unshare", "")

    def _leave(self, alias: str, doomed: list[int]) -> None:
        targets, shadow = self._known(alias).means
        if not {*targets, shadow} & set(doomed):
            return
        left = scaled({number: share for number, share in targets.items() if number not in doomed}, 100)
        if not left and alias == "default" and self.versions:
            left = {max(self.versions): 100}
        gone = not left or shadow in doomed or shadow in left
        self._put("set_alias" if left else "remove_alias", alias, left, None if gone else shadow)

    def _put(
        self, action: str, alias: str, targets: dict[int, int], shadow: int | None = None, before: int = -1
    ) -> Means:
        editions, known = self.aliases.setdefault(alias, []), self.alias(alias)
        if before < 0 and known is not None and known.means == (targets, shadow):
            before = known.before
        elif before < 0:
            before = len(editions) if known else 0
        editions.append(Edition(targets, shadow, before))
        self._note(action, f"@{alias}")
        return targets, shadow

    def _note(self, action: str, selector: str) -> None:
        self.log.append((self.tenant, action, f"{self.full_name}{selector}"))

    def _known(self, alias: str) -> Edition:
        edition = self.alias(alias)
        if edition is None:
            raise AdapterNotFound("no such alias")
        return edition

    def _need(self, *numbers: int) -> None:
        if not set(numbers) <= self.versions.keys():
            raise AdapterNotFound("no such version")

    def _expect(self, alias: str, expected: int | None) -> None:
        if expected not in (None, len(self.aliases[alias]) if self.alias(alias) else 0):
            raise AdapterConflict("another revision")


def scaled(targets: dict[int, int], percent: int) -> dict[int, int]:
    """`percent` in the proportions of `targets`, in whole numbers by the largest remainders."""
    total = sum(targets.values())
    exact = {number: Fraction(share * percent, total) for number, share in targets.items()}
    whole = {number: int(share) for number, share in exact.items()}
    for number in sorted(exact, key=lambda n: whole[n] - exact[n]):
        if sum(whole.values()) == percent:
            break
        whole[number] += 1
    return {number: share for number, share in whole.items() if share}
