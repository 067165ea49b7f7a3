"""Tenants and keys in memory: no keys and no quotas, unless a test gives some."""

from __future__ import annotations

from adapters.registry.records import Key, Quota, Scope, Tenant


class FakeKeys:
    """Keys by their secrets."""

    def __init__(self) -> None:
        self.secrets: dict[str, Key] = {}

    @property
    def any(self) -> bool:
        return bool(self.secrets)

    def authenticate(self, secret: str) -> Key | None:
        return self.secrets.get(secret)

    def give(self, secret: str, *scopes: Scope, tenant: str = "default") -> None:
        """Have `secret` open the routes of `scopes` to `tenant`."""
        key_id = f"key-{len(self.secrets):012x}"
        self.secrets[secret] = Key(key_id, tenant, secret, scopes, 1_700_000_000.5)


class FakeTenants:
    """Quotas by tenant."""

    def __init__(self) -> None:
        self.quotas: dict[str, Quota] = {}

    def quota(self, name: str) -> Quota:
        return self.quotas.get(name, Quota())

    def list(self) -> tuple[Tenant, ...]:
        return tuple(Tenant(name, 0.0, quota) for name, quota in self.quotas.items())
