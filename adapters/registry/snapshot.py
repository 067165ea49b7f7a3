"""What is published and what is held, in memory, so that no request waits for the database."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Iterable
from threading import Lock

from sqlalchemy import Connection, select

from adapters.errors import AdapterForbidden, AdapterNotFound, InvalidName
from adapters.registry.names import DEFAULT_ALIAS, Ref, full_name, parse_ref
from adapters.registry.records import LIVE, AdapterVersion, Alias, Caller, Route, Target
from adapters.registry.rows import Adapter, alias_of, version_of
from adapters.registry.schema import ALIASES, SHARES, VERSIONS

EVERYBODY = "*"
_TOMBSTONES = ("refused", "deleted")


class Snapshot:
    """The versions, aliases and shares of one base, and for each digest how many need its files.

    Safe from any thread; its lock is never held across a disk access.
    """

    def __init__(self, base_digest: str) -> None:
        self._base_digest = base_digest
        self._lock = Lock()
        self._versions: dict[Adapter, dict[int, AdapterVersion]] = {}
        self._aliases: dict[Adapter, dict[str, Alias]] = {}
        self._shares: dict[Adapter, set[str]] = {}
        self._needing: dict[tuple[str, str, int], str] = {}
        self._live: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        self._loose: set[str] = set()

    def follow(self, connection: Connection, since: int) -> bool:
        """Take over what was changed after revision `since`."""
        changed_versions = select(VERSIONS).where(VERSIONS.c.revision > since)
        changed_aliases = select(ALIASES).where(
            ALIASES.c.revision > since, ALIASES.c.base_digest == self._base_digest
        )
        changed_shares = select(SHARES).where(SHARES.c.revision > since)
        if not since:
            changed_versions = changed_versions.where(VERSIONS.c.state.not_in(_TOMBSTONES))
        versions = [version_of(row) for row in connection.execute(changed_versions).mappings()]
        aliases = [alias_of(row) for row in connection.execute(changed_aliases).mappings()]
        shares = connection.execute(changed_shares).all()
        with self._lock:
            for version in versions:
                self._take(version)
            for alias in aliases:
                named = self._aliases.setdefault((alias.tenant, alias.name), {})
                if alias.targets:
                    named[alias.alias] = alias
                else:
                    named.pop(alias.alias, None)
            for share in shares:
                others = self._shares.setdefault((share.tenant, share.name), set())
                (others.add if share.deleted is None else others.discard)(share.other)
        return bool(versions or aliases or shares)

    def _take(self, version: AdapterVersion) -> None:
        """Versions of other bases only keep their files."""
        key = (version.tenant, version.name, version.version)
        if key in self._needing:
            digest = self._needing.pop(key)
            self._live[digest] -= 1
            self._loose.add(digest)
        if version.state in LIVE:
            self._needing[key] = version.digest
            self._live[version.digest] += 1
        if version.base_digest != self._base_digest:
            return
        group = self._versions.setdefault((version.tenant, version.name), {})
        if version.state in _TOMBSTONES:
            group.pop(version.version, None)
        else:
            group[version.version] = version
        if not group:
            del self._versions[version.tenant, version.name]

    # Reading by name

    def route(self, text: str, caller: Caller, key: str | None) -> Route:
        """What `name`, `name@3` or `name@alias` means for one request.

        Raises:
            AdapterNotFound: nothing that answers, or nothing that the caller may see.
        """
        ref, adapter = self._visible(text, caller)
        with self._lock:
            versions = self._versions.get(adapter, {})
            if ref.version is not None:
                return Route(self._answering(versions, ref.version, text))
            name = ref.alias or DEFAULT_ALIAS
            alias = self._aliases.get(adapter, {}).get(name)
            if alias is None:
                raise _not_found(text)
            chosen = self._answering(versions, choose(alias, key), text)
            shadow = versions.get(alias.shadow) if alias.shadow is not None else None
            return Route(chosen, name, shadow if shadow is not None and shadow.state in LIVE else None)

    def _answering(self, versions: dict[int, AdapterVersion], number: int, text: str) -> AdapterVersion:
        version = versions.get(number)
        if version is None or version.state not in LIVE:
            raise _not_found(text)
        return version

    def find(self, text: str, caller: Caller) -> tuple[Ref, Adapter, AdapterVersion | None]:
        """The reference, whose adapter it is, and its version if that is no tombstone."""
        ref, adapter = self._visible(text, caller)
        with self._lock:
            number = ref.version
            if number is None:
                alias = self._aliases.get(adapter, {}).get(ref.alias or DEFAULT_ALIAS)
                number = choose(alias, None) if alias is not None else 0
            return ref, adapter, self._versions.get(adapter, {}).get(number)

    def adapter(self, text: str, caller: Caller) -> Adapter:
        """Whose adapter a `name` or `tenant/name` is, of those that the caller may see.

        Raises:
            InvalidName: it names a version or an alias.
            AdapterNotFound: there is nothing that the caller may see.
        """
        ref, adapter = self._visible(text, caller)
        with self._lock:
            if adapter not in self._versions:
                raise _not_found(text)
        return _whole(ref, adapter, text)

    def owned(self, text: str, caller: Caller) -> tuple[Ref, Adapter]:
        """The same for any reference, of those that the caller may change.

        Raises:
            AdapterNotFound: there is nothing that the caller may see.
            AdapterForbidden: it is another tenant's, who shares it.
        """
        ref, adapter = self._visible(text, caller)
        if adapter[0] != caller.tenant and not caller.operator:
            raise AdapterForbidden(f"{full_name(*adapter)} is shared with you; only its owner may change it")
        return ref, adapter

    def owned_adapter(self, text: str, caller: Caller) -> Adapter:
        """As `adapter` and as `owned`."""
        ref, adapter = self.owned(text, caller)
        return _whole(ref, adapter, text)

    def _visible(self, text: str, caller: Caller) -> tuple[Ref, Adapter]:
        try:
            ref = parse_ref(text)
        except InvalidName:
            raise _not_found(text) from None
        adapter = (ref.tenant or caller.tenant, ref.name)
        if not self.may_see(adapter, caller):
            raise _not_found(text)
        return ref, adapter

    def may_see(self, adapter: Adapter, caller: Caller) -> bool:
        """Whether it is the caller's, or shared with it."""
        if caller.operator or adapter[0] == caller.tenant:
            return True
        others = self._shares.get(adapter, ())
        return caller.tenant in others or EVERYBODY in others

    def all(self, caller: Caller) -> tuple[AdapterVersion, ...]:
        """Those that answer, by tenant, name and version."""
        with self._lock:
            seen = sorted(adapter for adapter in self._versions if self.may_see(adapter, caller))
            return tuple(version for adapter in seen for version in _live(self._versions[adapter].values()))

    def unfinished(self, replica: str) -> tuple[AdapterVersion, ...]:
        """Those that a server has taken and not checked yet."""
        with self._lock:
            groups = list(self._versions.values())
            found = [each for group in groups for each in group.values()]
        return tuple(each for each in found if each.state not in LIVE and each.replica == replica)

    def versions(self, adapter: Adapter) -> tuple[AdapterVersion, ...]:
        """Those that answer, oldest first."""
        with self._lock:
            return _live(self._versions.get(adapter, {}).values())

    def aliases(self, adapter: Adapter) -> tuple[Alias, ...]:
        """By name."""
        with self._lock:
            return tuple(alias for _, alias in sorted(self._aliases.get(adapter, {}).items()))

    def shares(self, adapter: Adapter) -> tuple[str, ...]:
        """Names of tenants, and `*`."""
        with self._lock:
            return tuple(sorted(self._shares.get(adapter, ())))

    # Who needs which files

    def hold(self, digest: str) -> None:
        with self._lock:
            if not self._live[digest] and not self._held[digest]:
                raise AdapterNotFound(f"no adapter with digest {digest[:12]}")
            self._held[digest] += 1

    def keep(self, digest: str) -> None:
        """Hold a digest that no version may have yet."""
        with self._lock:
            self._held[digest] += 1

    def release(self, digest: str) -> bool:
        """Take one hold back; whether nothing needs the files now."""
        with self._lock:
            if not self._held[digest]:
                raise ValueError(f"digest {digest[:12]} is not held")
            self._held[digest] -= 1
            return not self._held[digest] and not self._live[digest]

    def take_loose(self) -> set[str]:
        """Digests that lost a version since the last call; others may still need them."""
        with self._lock:
            loose, self._loose = self._loose, set()
            return loose

    def is_unused(self, digest: str) -> bool:
        """Whether nothing needs the files. Then nobody can hold them either, until a version is added."""
        with self._lock:
            unused = not self._live[digest] and not self._held[digest]
            if unused:
                self._live.pop(digest, None)
                self._held.pop(digest, None)
            return unused

    def is_held(self, digest: str) -> bool:
        """Whether somebody reads the files."""
        return self.holders(digest) > 0

    def holders(self, digest: str) -> int:
        """How many holds were not given back yet."""
        with self._lock:
            return self._held.get(digest, 0)

    def needed(self) -> set[str]:
        """Digests of all live versions, of every base."""
        with self._lock:
            return set(self._needing.values())


def choose(alias: Alias, key: str | None) -> int:
    """The version that an alias means for one request: always the same for one key, else by chance.

    Each target draws a number from the key, and the largest wins: raising one target's share moves keys to it
    and none between the others.
    """
    if len(alias.targets) == 1:
        return alias.targets[0].version
    if key is None:
        weights = [target.percent for target in alias.targets]
        return random.choices(alias.targets, weights)[0].version
    return max(alias.targets, key=lambda target: _draw(alias, target, key)).version


def _draw(alias: Alias, target: Target, key: str) -> float:
    """Exponentially distributed with the target's share as its rate; negated, so that the earliest wins."""
    text = "\0".join((full_name(alias.tenant, alias.name), alias.alias, str(target.version), key))
    drawn = int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8])
    return math.log((drawn + 0.5) / 2**64) / target.percent


def _whole(ref: Ref, adapter: Adapter, text: str) -> Adapter:
    if ref.version is not None or ref.alias is not None:
        raise InvalidName(f"{text[:100]!r} must be an adapter's name without '@'")
    return adapter


def _live(versions: Iterable[AdapterVersion]) -> tuple[AdapterVersion, ...]:
    return tuple(sorted((v for v in versions if v.state in LIVE), key=lambda version: version.version))


def _not_found(text: str) -> AdapterNotFound:
    return AdapterNotFound(f"no adapter {text[:100]!r}; GET /v1/models lists what there is")
