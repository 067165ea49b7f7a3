"""What the registry tells of: versions, aliases, tenants, keys and the audit log; immutable records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from adapters.registry.names import DEFAULT_TENANT, full_name, name_for
from adapters.registry.proof import NO_PROOF, Proof

State = Literal["uploaded", "checking", "ready", "refused", "deprecated", "deleted"]
"""Of a version. Only `ready` and `deprecated` ones answer; `refused` and `deleted` ones are tombstones."""
Desired = Literal["", "loaded", "pinned"]
"""What a server keeps in memory by itself: nothing, loaded at start, or loaded and never evicted."""
Promote = Literal["auto", "yes", "no"]
"""Whether the alias `default` follows a new version: if it meant the newest one before, always, or never."""
Scope = Literal["use", "publish", "admin", "metrics", "operator"]
"""Of a key. `use` asks models; `publish` uploads and moves aliases; `admin` deletes, shares and manages keys,
each within the key's tenant. `metrics` reads `/metrics`; `operator` may do everything for every tenant."""
LIVE: tuple[State, ...] = ("ready", "deprecated")
"""States of the versions that answer."""
SCOPES: tuple[Scope, ...] = ("use", "publish", "admin", "metrics", "operator")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks the registry.

    Attributes:
        tenant: whose adapters are meant by bare names, and who owns what is published so.
        actor: who it is in the audit log: a key's id, `cli`, `start`.
        operator: sees and changes what belongs to any tenant.
    """

    tenant: str = DEFAULT_TENANT
    actor: str = "local"
    operator: bool = False

    def owns(self, tenant: str) -> bool:
        """Whether what belongs to `tenant` is this caller's to change, and all that is known of it to see."""
        return self.operator or self.tenant == tenant


LOCAL = Caller(operator=True)
"""The process itself, and whoever asks a server without keys."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file that an adapter was trained on. `sha256` is hex."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a version comes from, in its publisher's words.

    Attributes:
        parent: ref of the version that its training started from.
        parent_digest: of that version's content, hex.
        job: the training job that made it.
        data: what it was trained on.
        scores: evaluation results, by name.
    """

    parent: str | None = None
    parent_digest: str | None = None
    job: str | None = None
    data: tuple[DataFile, ...] = ()
    scores: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One version of an adapter. Its content never changes; its state, reason and `desired` may.

    Attributes:
        digest: identity of the content, hex; empty until it is known.
        base_digest: the base that it was checked against, hex.
        created: Unix time in seconds.
        size: bytes of the weights file.
        rank: largest of all its modules.
        parameters: numbers in all its tensors.
        target_modules: distinct last components of the wrapped modules' names, sorted.
        source: where it came from, in the publisher's words.
        task, labels, invocation: as in `AdapterWeights`.
        trained_on_quantization: of its base while it was trained, as `lineage.py` has it; None: nobody said.
        variant: what it is, in a short name such as `lora`, `dora`, `pissa` or `vera`.
        unmixable: why it can't be scaled or be part of a mixture; empty if it can.
        proof: what the comparison with PEFT said before it was published.
        reason: why it was refused, or what the publisher said of its deprecation; else empty.
        replica: which server checks it, while it is `uploaded` or `checking`.
    """

    name: str
    version: int
    digest: str
    base_digest: str
    created: float
    size: int
    rank: int
    parameters: int
    target_modules: tuple[str, ...]
    source: str = ""
    task: str | None = None
    labels: tuple[str, ...] = ()
    invocation: tuple[int, ...] = ()
    variant: str = "lora"
    trained_on_quantization: str | None = None
    unmixable: str = ""
    proof: Proof = NO_PROOF
    tenant: str = DEFAULT_TENANT
    state: State = "ready"
    reason: str = ""
    desired: Desired = ""
    lineage: Lineage = field(default_factory=Lineage)
    replica: str = ""

    @property
    def full_name(self) -> str:
        """`name`, or `tenant/name` of another tenant than the default one."""
        return full_name(self.tenant, self.name)

    @property
    def ref(self) -> str:
        """`name@version`, or `tenant/name@version` of another tenant than the default one."""
        return f"{self.full_name}@{self.version}"

    def ref_for(self, tenant: str) -> str:
        """The reference by which a caller of `tenant` can ask for it; see `name_for`."""
        return f"{name_for(tenant, self.tenant, self.name)}@{self.version}"


@dataclass(frozen=True, slots=True)
class Target:
    """One version that an alias may mean, and for what share of its requests, in percent."""

    version: int
    percent: int = 100


@dataclass(frozen=True, slots=True)
class Alias:
    """A name for one version, or for several by shares (a canary).

    Attributes:
        targets: percents add up to 100.
        shadow: a version that gets copies of its requests, whose answers nobody sees.
        revision: 1 at first, one more with each change; a change may name the one that it expects.
        updated: Unix time in seconds.
        actor: who changed it last.
    """

    tenant: str
    name: str
    alias: str
    targets: tuple[Target, ...]
    shadow: int | None
    revision: int
    updated: float
    actor: str


@dataclass(frozen=True, slots=True)
class Route:
    """What a reference means for one request.

    Attributes:
        alias: the alias that led to it; empty if the reference named a version.
        shadow: gets a copy of the request, and its answer is thrown away.
    """

    version: AdapterVersion
    alias: str = ""
    shadow: AdapterVersion | None = None


@dataclass(frozen=True, slots=True)
class Quota:
    """What one tenant may have; None: no bound.

    Attributes:
        max_versions: live versions.
        max_bytes: of the weights files of all live versions.
        max_rank: of one adapter.
        max_in_flight: requests at one time.
        tokens_per_minute: prompt and generated tokens, averaged over a minute.
        max_jobs: fine-tuning jobs that are not over.
        max_file_bytes: of all its training files.
        weight: its share of the batch, beside those of others.
    """

    max_versions: int | None = None
    max_bytes: int | None = None
    max_rank: int | None = None
    max_in_flight: int | None = None
    tokens_per_minute: int | None = None
    max_jobs: int | None = None
    max_file_bytes: int | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Tenant:
    """A customer or team. The default tenant always exists."""

    name: str
    created: float
    quota: Quota = field(default_factory=Quota)


@dataclass(frozen=True, slots=True)
class Key:
    """An API key, without its secret: only a hash of that is stored.

    Attributes:
        id: `key-` and 12 hex digits; the secret begins with it, so that a leaked one can be found.
        expires, revoked: Unix times in seconds; None: never, not.
    """

    id: str
    tenant: str
    name: str
    scopes: tuple[Scope, ...]
    created: float
    expires: float | None = None
    revoked: float | None = None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change, as it was made. `before` and `after` are JSON objects, or null where there is nothing.

    Attributes:
        id: grows by one with each change.
        subject: a ref, an alias such as `legal@prod`, a tenant or a key's id.
    """

    id: int
    time: float
    tenant: str
    actor: str
    action: str
    subject: str
    before: dict[str, object] | None
    after: dict[str, object] | None


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a look at every blob found. Each entry is a digest, hex.

    Attributes:
        checked: how many blobs were read and compared with their digests.
        quarantined: did not match, and were put aside.
        missing: versions need them, and they are nowhere.
        removed: nothing needed them any more.
    """

    checked: int
    quarantined: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
