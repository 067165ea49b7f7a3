"""What changes of one adapter's name lead to, in plain dictionaries: what the registry is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Change = tuple[Any, ...]
"""What is asked, and its arguments: see the methods of `Past`."""
DEFAULT = "default"


@dataclass
class Edition:
    """What an alias meant for a while: percents by version; none: it was removed."""

    targets: dict[int, int]
    before: int
    """The edition that a rollback goes to; 0: none."""


@dataclass
class Past:
    """Attributes:
    versions: content by number, of those that are not deleted.
    unchecked: numbers of those that do not answer yet.
    deprecated: of those that do.
    given: the last number.
    aliases: what each meant, oldest first.
    audit: what the log says of all this, in order: an action, and the number or the alias that it is about.
    """

    versions: dict[int, int] = field(default_factory=dict)
    unchecked: set[int] = field(default_factory=set)
    deprecated: set[int] = field(default_factory=set)
    given: int = 0
    aliases: dict[str, list[Edition]] = field(default_factory=dict)
    audit: list[tuple[str, str]] = field(default_factory=list)

    def apply(self, change: Change) -> None:
        """A change that was not refused."""
        kind, *arguments = change
        getattr(self, kind)(*arguments)

    @property
    def live(self) -> list[int]:
        return sorted(self.versions.keys() - self.unchecked)

    def meaning(self, alias: str) -> dict[int, int]:
        """Percents by version; empty if there is no such alias."""
        editions = self.aliases.get(alias)
        return editions[-1].targets if editions else {}

    def publish(self, content: int) -> None:
        live = self.live
        if not live or self.versions[live[-1]] != content:
            self._add(content)
            self.finish(self.given)

    def begin(self, content: int) -> None:
        self._add(content)
        self.audit.append(("upload", str(self.given)))

    def finish(self, number: int) -> None:
        """`default` goes with the newest version as long as nobody moved it elsewhere."""
        newest = max(self.live, default=0)
        default = self.meaning(DEFAULT)
        self.unchecked.remove(number)
        self.audit.append(("publish", str(number)))
        if not default or (list(default) == [newest] and newest < number):
            self.promote(number, DEFAULT)

    def set_alias(self, alias: str, targets: dict[int, int]) -> None:
        self._put(alias, targets, "set_alias" if targets else "remove_alias")

    def remove_alias(self, alias: str) -> None:
        if not self.meaning(alias):
            raise KeyError(alias)
        self.set_alias(alias, {})

    def promote(self, number: int, alias: str) -> None:
        self._put(alias, {number: 100}, "promote")

    def rollback(self, alias: str) -> None:
        """Raises KeyError if there is nothing before."""
        editions = self.aliases[alias]
        if not editions[-1].before:
            raise KeyError(alias)
        goal = editions[editions[-1].before - 1]
        editions.append(Edition(goal.targets, goal.before))
        self.audit.append(("rollback", alias))

    def deprecate(self, number: int, reason: str | None) -> None:
        if (number in self.deprecated) != (reason is not None):
            (self.deprecated.discard if reason is None else self.deprecated.add)(number)
            self.audit.append(("restore" if reason is None else "deprecate", str(number)))

    def delete(self, numbers: list[int]) -> None:
        """By force: aliases lose what is deleted, and `default` falls back on the newest that is left."""
        for number in numbers:
            del self.versions[number]
            self.unchecked.discard(number)
            self.deprecated.discard(number)
            self.audit.append(("delete", str(number)))
        for alias in sorted(self.aliases):
            meant = self.meaning(alias)
            left = dict.fromkeys(meant.keys() - set(numbers), 100)  # no alias here means more than two
            if not left and alias == DEFAULT and self.live:
                left = {self.live[-1]: 100}
            if meant.keys() & set(numbers):
                self.set_alias(alias, left)

    def _add(self, content: int) -> None:
        self.given += 1
        self.versions[self.given] = content
        self.unchecked.add(self.given)

    def _put(self, alias: str, targets: dict[int, int], action: str) -> None:
        editions, known = self.aliases.setdefault(alias, []), self.meaning(alias)
        before = editions[-1].before if known and known == targets else len(editions)
        editions.append(Edition(targets, before if known else 0))
        self.audit.append((action, alias))
