"""Changes of aliases as their owners ask for them: set, remove, promote, canary, roll back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from adapters.errors import AdapterConflict, AdapterNotFound, InvalidAlias
from adapters.registry.aliases import Aliases, with_canary
from adapters.registry.database import Database
from adapters.registry.names import DEFAULT_ALIAS, full_name
from adapters.registry.records import Alias, Caller, Target
from adapters.registry.snapshot import Snapshot


class Moves:
    """Each in a transaction of its own; `Registry` has what they raise.

    Args:
        catch_up: called after each change.
    """

    def __init__(
        self, database: Database, snapshot: Snapshot, aliases: Aliases, catch_up: Callable[[], None]
    ) -> None:
        self._database, self._snapshot, self._aliases = database, snapshot, aliases
        self._catch_up = catch_up

    def set(
        self,
        name: str,
        alias: str,
        targets: Sequence[Target],
        shadow: int | None,
        expected: int | None,
        caller: Caller,
    ) -> Alias:
        adapter = self._snapshot.owned_adapter(name, caller)
        if not targets:
            raise InvalidAlias(f"alias {alias[:63]!r} has no targets; remove it instead")
        with self._database.write() as write:
            changed = self._aliases.put(
                write, adapter, alias, tuple(targets), caller, shadow=shadow, expected=expected
            )
        self._catch_up()
        return changed

    def remove(self, name: str, alias: str, expected: int | None, caller: Caller) -> None:
        adapter = self._snapshot.owned_adapter(name, caller)
        if alias == DEFAULT_ALIAS:
            raise AdapterConflict(f"alias '{full_name(*adapter)}@{alias}' stays as long as its adapter does")
        with self._database.write() as write:
            self._aliases.remove(write, adapter, alias, caller, expected)
        self._catch_up()

    def promote(self, ref: str, alias: str, expected: int | None, caller: Caller) -> Alias:
        parsed, adapter = self._snapshot.owned(ref, caller)
        with self._database.write() as write:
            targets = (Target(self._aliases.version(write.connection, adapter, parsed)),)
            changed = self._aliases.put(
                write, adapter, alias, targets, caller, expected=expected, action="promote"
            )
        self._catch_up()
        return changed

    def canary(self, ref: str, percent: int, alias: str, expected: int | None, caller: Caller) -> Alias:
        parsed, adapter = self._snapshot.owned(ref, caller)
        with self._database.write() as write:
            version = self._aliases.version(write.connection, adapter, parsed)
            known = self._aliases.get(write.connection, adapter, alias)
            if known is None:
                raise AdapterNotFound(f"no alias '{full_name(*adapter)}@{alias[:63]}'")
            changed = self._aliases.put(
                write,
                adapter,
                alias,
                with_canary(known.targets, version, percent),
                caller,
                shadow=None if known.shadow == version else known.shadow,
                expected=expected,
                action="canary",
            )
        self._catch_up()
        return changed

    def rollback(self, name: str, alias: str, expected: int | None, caller: Caller) -> Alias:
        adapter = self._snapshot.owned_adapter(name, caller)
        with self._database.write() as write:
            changed = self._aliases.rollback(write, adapter, alias, caller, expected)
        self._catch_up()
        return changed

    def history(self, name: str, alias: str, caller: Caller) -> tuple[Alias, ...]:
        adapter = self._snapshot.adapter(name, caller)
        with self._database.read() as connection:
            return tuple(self._aliases.history(connection, adapter, alias))
