"""A registry in memory, with the rules that routes which ask models show; `stand.py` has the real one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters.base import BaseSpec
from adapters.errors import AdapterConflict, AdapterForbidden, AdapterNotFound, InvalidAdapter, InvalidName
from adapters.registry.names import DEFAULT_ALIAS, DEFAULT_TENANT, Ref, check_new_name, parse_ref
from adapters.registry.records import (
    LOCAL,
    AdapterVersion,
    Alias,
    Caller,
    Desired,
    Lineage,
    Promote,
    Route,
    Target,
)
from tests.server.api.fake_access import FakeKeys, FakeTenants

BASE = BaseSpec(name="tiny", digest="ba5e" * 16, linears={})
_NO_LINEAGE = Lineage()


class FakeRegistry:
    """Weights that begin with `bad` are refused. What a tenant does not own it sees only if it is shared."""

    def __init__(self) -> None:
        self.live: dict[str, list[AdapterVersion]] = {}
        self.gone: list[AdapterVersion] = []
        self.numbers: Counter[str] = Counter()
        self.held: Counter[str] = Counter()
        self.moved: dict[tuple[str, str], Alias] = {}
        self.shared: dict[str, set[str]] = {}
        self.seen_weights: Path | None = None
        self.seen_labels: bytes | None = None
        self.seen_promote: Promote | None = None
        self.seen_digest: str | None = None
        self.fail: Exception | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.keys, self.tenants = FakeKeys(), FakeTenants()

    def publish(
        self,
        name: str,
        config: bytes,
        weights: Path,
        source: str = "",
        labels: bytes | None = None,
        quantization: str | None = None,
        *,
        caller: Caller = LOCAL,
        lineage: Lineage = _NO_LINEAGE,
        promote: Promote = "auto",
        digest: str | None = None,
    ) -> tuple[AdapterVersion, bool]:
        if self.fail is not None:
            raise self.fail
        tenant, slash, bare = name.rpartition("/")
        tenant = tenant if slash else caller.tenant
        check_new_name(bare, BASE.name)
        if tenant != caller.tenant and not caller.operator:
            raise AdapterForbidden(f"{name} belongs to another tenant")
        self.seen_weights, self.seen_labels = weights, labels
        self.seen_promote, self.seen_digest = promote, digest
        content = weights.read_bytes()
        if content.startswith(b"bad"):
            raise InvalidAdapter("tensor x has the wrong shape")
        found = hashlib.sha256(config + content).hexdigest()
        full = _full_name(tenant, bare)
        versions = self.live.setdefault(full, [])
        if versions and versions[-1].digest == found:
            return versions[-1], False
        self.numbers[full] += 1
        version = AdapterVersion(
            tenant=tenant,
            name=bare,
            version=self.numbers[full],
            digest=found,
            base_digest=BASE.digest,
            created=1_700_000_000.5,
            size=len(content),
            rank=8,
            parameters=1234,
            target_modules=("q_proj", "v_proj"),
            source=source,
            trained_on_quantization=quantization,
            lineage=lineage,
        )
        current = self.moved.get((full, DEFAULT_ALIAS))
        newest = current is not None and current.targets == (Target(versions[-1].version),)
        versions.append(version)
        if current is None or promote == "yes" or (promote == "auto" and newest):
            self.set_alias(full, DEFAULT_ALIAS, [Target(version.version)])
        return version, True

    def publish_folder(
        self,
        name: str,
        folder: Path,
        source: str = "",
        *,
        caller: Caller = LOCAL,
        promote: Promote = "auto",
    ) -> tuple[AdapterVersion, bool]:
        config = (folder / "adapter_config.json").read_bytes()
        weights = folder / "adapter_model.safetensors"
        return self.publish(name, config, weights, source, caller=caller, promote=promote)

    def add(self, name: str, folder: Path, content: str = "", **fields: Any) -> AdapterVersion:
        """Publish without files of one's own; `fields` of the version say otherwise than its files."""
        caller = Caller(fields.get("tenant", DEFAULT_TENANT))
        full = _full_name(caller.tenant, name)
        weights = folder / "fake-weights"
        weights.write_text(f"{full} {self.numbers[full]} {content}")
        version = replace(self.publish(name, b"{}", weights, caller=caller)[0], **fields)
        self.live[full][-1] = version
        return version

    def route(self, ref: str, caller: Caller = LOCAL, key: str | None = None) -> Route:
        """With a key that is a number below 100, that is its place among the shares; else the first."""
        full, parsed = self._parsed(ref, caller)
        if parsed.version is not None:
            return Route(self._version(ref, full, parsed.version))
        alias = self.moved.get((full, parsed.alias or DEFAULT_ALIAS))
        if alias is None:
            raise AdapterNotFound(f"no adapter {ref!r}")
        place, below = int(key) if key and key.isdigit() else 0, 0
        chosen = alias.targets[-1]
        for target in alias.targets:
            below += target.percent
            if place < below:
                chosen = target
                break
        shadow = None if alias.shadow is None else self._version(ref, full, alias.shadow)
        return Route(self._version(ref, full, chosen.version), alias.alias, shadow)

    def resolve(self, ref: str, caller: Caller = LOCAL) -> AdapterVersion:
        return self.route(ref, caller).version

    def find(self, ref: str, caller: Caller = LOCAL) -> AdapterVersion:
        return self.resolve(ref, caller)

    def list(self, caller: Caller = LOCAL) -> Sequence[AdapterVersion]:
        versions = (version for versions in self.live.values() for version in versions)
        return sorted(
            (version for version in versions if self._sees(version.full_name, version.tenant, caller)),
            key=lambda version: (version.tenant, version.name, version.version),
        )

    def versions(self, name: str, caller: Caller = LOCAL) -> Sequence[AdapterVersion]:
        try:
            return tuple(self.live[self._parsed(name, caller)[0]])
        except AdapterNotFound:
            return ()

    def aliases(self, name: str, caller: Caller = LOCAL) -> Sequence[Alias]:
        full, _ = self._parsed(name, caller)
        return [alias for (owner, _), alias in sorted(self.moved.items()) if owner == full]

    def set_alias(
        self,
        name: str,
        alias: str,
        targets: Sequence[Target],
        *,
        shadow: int | None = None,
        expected: int | None = None,
        caller: Caller = LOCAL,
    ) -> Alias:
        full, _ = self._own(name, caller)
        current = self.moved.get((full, alias))
        revision = current.revision if current else 0
        if expected not in (None, revision):
            raise AdapterConflict(f"{full}@{alias} is at revision {revision}, not {expected}")
        tenant, _, bare = full.rpartition("/")
        moved = Alias(
            tenant or DEFAULT_TENANT,
            bare,
            alias,
            tuple(targets),
            shadow,
            revision + 1,
            1_700_000_001.5,
            caller.actor,
        )
        self.moved[full, alias] = moved
        return moved

    def want(self, ref: str, desired: Desired, *, caller: Caller = LOCAL) -> AdapterVersion:
        full, _ = self._own(ref, caller)
        version = self.resolve(ref, caller)
        changed = replace(version, desired=desired)
        self.live[full] = [changed if other is version else other for other in self.live[full]]
        return changed

    def wanted(self) -> Sequence[AdapterVersion]:
        return [version for version in self.list(LOCAL) if version.desired]

    def delete(self, ref: str, *, caller: Caller = LOCAL, force: bool = False) -> Sequence[AdapterVersion]:
        full, parsed = self._own(ref, caller)
        aliases = self.aliases(full)
        if parsed.version is None:
            names = [alias.alias for alias in aliases if alias.alias != DEFAULT_ALIAS]
            if names and not force:
                raise AdapterConflict(f"{full} has the alias {names[0]}")
            found, self.live[full] = self.live[full], []
            self.moved = {key: alias for key, alias in self.moved.items() if key[0] != full}
        else:
            for alias in aliases:
                if any(target.version == parsed.version for target in alias.targets):
                    raise AdapterConflict(f"{ref} is what the alias {alias.alias} means; move it first")
            found = [self._version(ref, full, parsed.version)]
            self.live[full] = [version for version in self.live[full] if version not in found]
        if not self.live[full]:
            del self.live[full]
        self.gone += [replace(version, state="deleted") for version in found]
        return found

    def share(self, name: str, tenant: str, *, caller: Caller = LOCAL) -> None:
        self.shared.setdefault(self._own(name, caller)[0], set()).add(tenant)

    def unfinished(self) -> Sequence[AdapterVersion]:
        return ()

    def hold(self, digest: str) -> None:
        self.held[digest] += 1

    def release(self, digest: str) -> None:
        assert self.held[digest] > 0
        self.held[digest] -= 1

    def holders(self, digest: str) -> int:
        return self.held[digest]

    def _parsed(self, ref: str, caller: Caller) -> tuple[str, Ref]:
        try:
            parsed = parse_ref(ref)
        except InvalidName:
            raise AdapterNotFound(f"no adapter {ref!r}") from None
        tenant = parsed.tenant or caller.tenant
        full = _full_name(tenant, parsed.name)
        if full not in self.live or not self._sees(full, tenant, caller):
            raise AdapterNotFound(f"no adapter {ref!r}")
        return full, parsed

    def _own(self, ref: str, caller: Caller) -> tuple[str, Ref]:
        full, parsed = self._parsed(ref, caller)
        if not caller.operator and self.live[full][0].tenant != caller.tenant:
            raise AdapterForbidden(f"{ref} belongs to another tenant")
        return full, parsed

    def _sees(self, full: str, tenant: str, caller: Caller) -> bool:
        allowed = self.shared.get(full, set())
        return tenant == caller.tenant or caller.operator or bool(allowed & {caller.tenant, "*"})

    def _version(self, ref: str, full: str, number: int) -> AdapterVersion:
        for version in self.live.get(full, ()):
            if version.version == number:
                return version
        raise AdapterNotFound(f"no adapter {ref!r}")


def _full_name(tenant: str, name: str) -> str:
    return name if tenant == DEFAULT_TENANT else f"{tenant}/{name}"
