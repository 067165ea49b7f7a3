"""Takes an adapter in: copy, check the copy in full, store it under its digest, write its row.

    publish:  copy -> check -> digest -> blob -> row `ready`
    begin:    copy -> row `uploaded`;  finish: check -> digest -> blob -> row `ready` or `refused`

The order of the writes makes a crash harmless: a blob without a row is swept, a row without a blob can't be.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from sqlalchemy import Connection, func, insert, select, update

from adapters.base import BaseSpec
from adapters.blobs.blobs import Blobs
from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.checkpoint.labels import labels_beside, parse_labels, read_text
from adapters.errors import (
    AdapterConflict,
    AdapterForbidden,
    InvalidAdapter,
    QuotaExceeded,
    RegistryUnavailable,
)
from adapters.limits import AdapterLimits
from adapters.mixture import unmixable
from adapters.registry.aliases import Aliases
from adapters.registry.database import Database, Write
from adapters.registry.files import Files, largest_rank
from adapters.registry.keeping import Keeper
from adapters.registry.lineage import check_quantization, lineage_beside, parse_lineage, quantization_warning
from adapters.registry.names import DEFAULT_ALIAS, DEFAULT_TENANT, check_new_name, check_tenant
from adapters.registry.proof import Prove
from adapters.registry.records import (
    LIVE,
    AdapterVersion,
    Caller,
    Lineage,
    Promote,
    Quota,
    Target,
)
from adapters.registry.rows import Adapter, put_version, quota_of, versions_of
from adapters.registry.schema import ADAPTERS, VERSIONS
from adapters.registry.sweep import claim, is_claimed

log = logging.getLogger(__name__)
COUNTED = ("uploaded", "checking", *LIVE)
"""States of versions that count against quotas."""
_NO_LINEAGE = Lineage()
_MAX_SOURCE = 1000


@dataclass(frozen=True, slots=True)
class Upload:
    """What somebody hands in.

    Attributes:
        name: also `tenant/name`, from an operator.
        config: the text of adapter_config.json.
        weights: a safetensors file.
        labels: names of its head's outputs, as JSON; see `parse_labels`.
        quantization: of its base while it was trained, if that is known; see `lineage.py`.
        digest: of the content, as its sender expects it, hex.
    """

    name: str
    config: bytes
    weights: Path
    source: str = ""
    labels: bytes | None = None
    quantization: str | None = None
    lineage: Lineage = field(default_factory=Lineage)
    promote: Promote = "auto"
    digest: str | None = None


def upload_of(name: str, folder: Path, source: str, promote: Promote, limits: AdapterLimits) -> Upload:
    """The two files of a folder that PEFT saved, and what stands beside them; see `Registry.publish_folder`.

    Raises:
        InvalidAdapter: a file is missing, or says what it can't.
    """
    if not (folder / WEIGHTS_FILE).is_file() and (folder / "adapter_model.bin").is_file():
        raise InvalidAdapter(
            "adapter_model.bin is a pickle/zip checkpoint, not safetensors; "
            "re-save it with safe_serialization=True"
        )
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise InvalidAdapter(f"{folder} holds no {file}")
    config = read_text(folder / CONFIG_FILE, limits.max_config_bytes)
    told = lineage_beside(folder)
    trained_on = told.get("quantization")
    return Upload(
        name,
        config,
        folder / WEIGHTS_FILE,
        source,
        labels_beside(folder, config),
        None if trained_on is None else check_quantization(trained_on),
        parse_lineage(told),
        promote,
    )


class Publisher:
    """Publishes for one base."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        keeper: Keeper,
        files: Files,
        aliases: Aliases,
        base: BaseSpec,
        limits: AdapterLimits,
        prove: Prove,
        catch_up: Callable[[], None],
    ) -> None:
        self._database, self._blobs, self._keeper, self._files = database, blobs, keeper, files
        self._aliases, self._base, self._limits = aliases, base, limits
        self._prove, self._catch_up = prove, catch_up

    def publish(self, upload: Upload, caller: Caller) -> tuple[AdapterVersion, bool]:
        """See `Registry.publish`."""
        adapter = self.check_name(upload.name, caller)
        with self._database.read() as connection:
            quota_of(connection, adapter[0])  # before the long work: whether there is such a tenant
        with self.stage(upload) as staged:
            found = self.check(staged, upload, adapter)
            self.claim(found.digest)
            with self._keeper.stored(staged, found.digest):
                version, is_new = self._enter(found, upload, caller)
                self._catch_up()
        self.warn(version)
        return version, is_new

    def publish_folder(
        self, name: str, folder: Path, source: str, promote: Promote, caller: Caller
    ) -> tuple[AdapterVersion, bool]:
        """See `Registry.publish_folder`."""
        return self.publish(upload_of(name, folder, source, promote, self._limits), caller)

    def stage(self, upload: Upload) -> AbstractContextManager[Path]:
        """A private copy of the files; see `BlobStore.stage`."""
        most = self._limits.max_file_bytes
        return self._blobs.stage(upload.config, upload.weights, most, upload.labels)

    def new(self, upload: Upload, adapter: Adapter, created: float, size: int) -> AdapterVersion:
        """The version that an upload asks for, as far as that is known before a look into its files."""
        trained_on = None if upload.quantization is None else check_quantization(upload.quantization)
        tenant, name = adapter
        return AdapterVersion(
            name=name,
            version=0,
            digest="",
            base_digest=self._base.digest,
            created=created,
            size=size,
            rank=0,
            parameters=0,
            target_modules=(),
            source=clean(upload.source),
            trained_on_quantization=trained_on,
            tenant=tenant,
            lineage=upload.lineage,
        )

    def check_name(self, name: str, caller: Caller) -> Adapter:
        """Whose adapter it is to be.

        Raises:
            InvalidName: it breaks a rule.
            AdapterForbidden: it would be another tenant's.
        """
        tenant, slash, bare = name.rpartition("/")
        if slash:
            check_tenant(tenant) if tenant != DEFAULT_TENANT else None
        check_new_name(bare, self._base.name)
        if slash and tenant != caller.tenant and not caller.operator:
            raise AdapterForbidden(f"only {tenant!r} itself may publish adapters of tenant {tenant!r}")
        return (tenant if slash else caller.tenant), bare

    def check(self, staged: Path, upload: Upload, adapter: Adapter) -> AdapterVersion:
        """Check the staged files in full; the version that they make, without its number.

        Raises:
            InvalidAdapter, AdapterTooLarge, ProofUnavailable: it can't be served on this base.
        """
        named = parse_labels(upload.labels) if upload.labels is not None else ()
        plan, weights = self._files.check(staged, upload.config, named)
        if upload.digest is not None and upload.digest != weights.digest:
            raise InvalidAdapter(
                f"the content has digest {weights.digest}, not {upload.digest[:64]!r} as was expected"
            )
        wrapped = (*weights.deltas, *weights.embeddings, *weights.experts)
        found = replace(
            self.new(upload, adapter, time.time(), (staged / WEIGHTS_FILE).stat().st_size),
            digest=weights.digest,
            rank=largest_rank(weights),
            parameters=plan.parameters,
            target_modules=tuple(sorted({module.rpartition(".")[2] for module in wrapped})),
            task=weights.task,
            labels=weights.labels,
            invocation=weights.invocation,
            variant=plan.config.variant,
            unmixable=unmixable(weights),
        )
        with self._database.read() as connection:
            newest = versions_of(connection, adapter, self._base.digest)[-1:]
        if newest and newest[0].digest == found.digest and newest[0].proof.status == "proved":
            return replace(found, proof=newest[0].proof)
        return replace(found, proof=self._prove(staged, weights))

    def _enter(self, found: AdapterVersion, upload: Upload, caller: Caller) -> tuple[AdapterVersion, bool]:
        """Write the row; none, if the newest version has this content already."""
        adapter = found.tenant, found.name
        with self._database.write() as write:
            self.check_claim(write.connection, found.digest)
            live = versions_of(write.connection, adapter, self._base.digest)
            if live and live[-1].digest == found.digest and not tells_more(found, live[-1]):
                if upload.promote == "yes":
                    self._point(write, live[-1], live[:-1], "yes", caller)
                return live[-1], False
            version = self.number(write, found)
            put_version(write, version, is_new=True)
            write.audit(caller, "publish", version.ref, None, published(version), version.tenant)
            self._point(write, version, live, upload.promote, caller)
            return version, True

    def claim(self, digest: str) -> None:
        """Before a blob is stored: another replica's sweep must leave it."""
        if self._database.shared:
            with self._database.write() as write:
                claim(write, digest)

    def check_claim(self, connection: Connection, digest: str) -> None:
        """As a version is written that needs the blob.

        Raises:
            RegistryUnavailable: to store it took so long that it was swept; its publisher tries again.
        """
        if self._database.shared and not is_claimed(connection, digest):
            raise RegistryUnavailable(f"adapter {digest[:12]} was removed while it was published; try again")

    def number(self, write: Write, version: AdapterVersion) -> AdapterVersion:
        """Give it the next number of its name, if the quotas allow one more.

        Raises:
            QuotaExceeded, AdapterConflict, AdapterTooLarge: they do not.
        """
        adapter = version.tenant, version.name
        self._check_quotas(write.connection, adapter, version.size, version.rank)
        tenant, name = adapter
        where = ADAPTERS.c.tenant == tenant, ADAPTERS.c.name == name
        known = write.connection.execute(select(ADAPTERS.c.next_version).where(*where)).scalar()
        number = known or 1
        if known is None:
            row = {"tenant": tenant, "name": name, "next_version": 2}
            write.connection.execute(insert(ADAPTERS).values(row))
        else:
            write.connection.execute(update(ADAPTERS).where(*where).values(next_version=number + 1))
        return replace(version, version=number)

    def _point(
        self,
        write: Write,
        version: AdapterVersion,
        others: list[AdapterVersion],
        promote: Promote,
        caller: Caller,
    ) -> None:
        """Have the alias `default` follow to `version`, as it is asked for; `others`: live before it."""
        adapter = version.tenant, version.name
        default = self._aliases.get(write.connection, adapter, DEFAULT_ALIAS)
        targets = (Target(version.version),)
        if default is not None and default.targets == targets:
            return
        newest = others[-1].version if others else 0
        follows = default is None or [target.version for target in default.targets] == [newest]
        if (
            default is None
            or promote == "yes"
            or (promote == "auto" and follows and newest < version.version)
        ):
            shadow = default.shadow if default is not None and promote == "auto" else None
            self._aliases.put(write, adapter, DEFAULT_ALIAS, targets, caller, shadow=shadow, action="promote")

    def _check_quotas(self, connection: Connection, adapter: Adapter, size: int, rank: int) -> None:
        """Whether the tenant may have one more version of `size` bytes.

        Raises:
            QuotaExceeded: naming the quota.
            AdapterConflict: the registry is full.
            TenantNotFound: there is no such tenant.
        """
        quota = quota_of(connection, adapter[0])
        counted = select(func.count(), func.coalesce(func.sum(VERSIONS.c.size), 0)).where(
            VERSIONS.c.state.in_(COUNTED)
        )
        most = self._limits.max_adapters
        if connection.execute(counted).one()[0] >= most:
            raise AdapterConflict(f"{most} adapter versions are live, the most there may be; delete some")
        count, taken = connection.execute(counted.where(VERSIONS.c.tenant == adapter[0])).one()
        _within(quota, adapter[0], count, int(taken), size, rank)

    def ready(self, write: Write, version: AdapterVersion, promote: Promote, caller: Caller) -> None:
        """An uploaded version is checked: it answers from now on.

        Raises:
            QuotaExceeded: now that its rank is known.
        """
        adapter = version.tenant, version.name
        _check_rank(quota_of(write.connection, version.tenant), version.tenant, version.rank)
        put_version(write, version, is_new=False)
        write.audit(caller, "publish", version.ref, None, published(version), version.tenant)
        live = versions_of(write.connection, adapter, self._base.digest)
        self._point(write, version, [each for each in live if each != version], promote, caller)

    def warn(self, version: AdapterVersion) -> None:
        warning = quantization_warning(self._base, version.trained_on_quantization)
        if warning is not None:
            log.warning("adapter %s: %s", version.ref, warning)


def clean(text: str) -> str:
    """What every database takes: without NUL, and what is no text."""
    return text.replace("\0", "")[:_MAX_SOURCE].encode(errors="replace").decode()


def published(version: AdapterVersion) -> dict[str, object]:
    """What the audit log says of a new version."""
    return {"digest": version.digest, "size": version.size, "source": version.source}


def _within(quota: Quota, tenant: str, count: int, taken: int, size: int, rank: int) -> None:
    if quota.max_versions is not None and count >= quota.max_versions:
        raise QuotaExceeded(
            f"tenant {tenant!r} has {count} versions, and its quota max_versions is {quota.max_versions}; "
            "delete some"
        )
    if quota.max_bytes is not None and taken + size > quota.max_bytes:
        raise QuotaExceeded(
            f"tenant {tenant!r} has {taken} bytes of weights; with {size} more it is over its quota "
            f"max_bytes of {quota.max_bytes}"
        )
    _check_rank(quota, tenant, rank)


def _check_rank(quota: Quota, tenant: str, rank: int) -> None:
    if quota.max_rank is not None and rank > quota.max_rank:
        raise QuotaExceeded(
            f"the adapter has rank {rank}, and the quota max_rank of tenant {tenant!r} is {quota.max_rank}"
        )


def tells_more(version: AdapterVersion, known: AdapterVersion) -> bool:
    """Whether it says of the same content what was not known."""
    told = version.trained_on_quantization
    more = told is not None and told != known.trained_on_quantization
    return more or (version.lineage != _NO_LINEAGE and version.lineage != known.lineage)
