"""Names and versions of adapters: publish, resolve, delete; durable, and safe from any thread.

    publish: copy -> check the copy in full -> digest -> rename the copy into the store -> row -> visible
    delete:  row marked -> invisible -> files removed when the last lease is returned

Reads come from memory and never wait for a disk. The order of the two writes makes a crash harmless: a blob
without a row is swept at the next start, a row without a blob cannot be.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self

import torch

from adapters.base import BaseSpec
from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE, BlobStore
from adapters.checkpoint.config import AdapterConfig, parse_config
from adapters.checkpoint.derived import Derived
from adapters.checkpoint.digest import content_digest
from adapters.checkpoint.labels import labels_beside, parse_labels, read_text, stored_labels
from adapters.checkpoint.plan import AdapterPlan, plan_adapter
from adapters.checkpoint.reader import AdapterReader
from adapters.checkpoint.safetensors_file import read_header
from adapters.checkpoint.values import check_values
from adapters.checkpoint.variants.common import BaseWeights
from adapters.delta import AdapterWeights
from adapters.errors import (
    AdapterConflict,
    AdapterNotFound,
    AdapterTooLarge,
    InvalidAdapter,
    InvalidName,
)
from adapters.limits import AdapterLimits
from adapters.mixture import unmixable
from adapters.registry.catalog import Catalog
from adapters.registry.lineage import check_quantization, quantization_beside, quantization_warning
from adapters.registry.names import Ref, check_new_name, parse_ref
from adapters.registry.proof import Proof, Prove, prove_nothing
from adapters.registry.records import AdapterVersion
from adapters.registry.snapshot import Snapshot

__all__ = ["AdapterVersion", "Registry"]
log = logging.getLogger(__name__)


class Registry:
    """The adapters of one base in one data directory, which belongs to this process until `close`.

    Versions that were published for another base stay in the directory, unseen.

    Args:
        data_dir: made if it does not exist.
        base: what adapters are checked against; only versions of its digest are visible.
        dtype: what they are computed in; values too large for it are refused. None: as they are stored.
        base_weights: the base's parameters, which some variants need; without them these are refused.

    Attributes:
        on_unused: called with a digest whose files are gone, since no version has it and nobody holds it.
        prove: called before an adapter is published; what it says is kept with the version.

    Raises:
        AdapterConflict: another process uses `data_dir`.
    """

    def __init__(
        self,
        data_dir: Path,
        base: BaseSpec,
        limits: AdapterLimits,
        dtype: torch.dtype | None = None,
        base_weights: BaseWeights | None = None,
    ) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self._base_weights = base_weights
        self._base, self._limits, self._dtype = base, limits, dtype
        self._in_use = (data_dir / "lock").open("w")
        try:
            fcntl.flock(self._in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._in_use.close()
            raise AdapterConflict(
                f"{data_dir} is in use by another server; stop it, or give another --data-dir"
            ) from None
        self.on_unused: Callable[[str], None] = lambda digest: None
        self.prove: Prove = prove_nothing
        self._catalog = Catalog(data_dir / "registry.sqlite3")
        self._store = BlobStore(data_dir / "adapters")
        self._snapshot = Snapshot(base.digest)
        self._writing = Lock()  # held while files and rows change; resolve, hold and load never take it
        self._unused: set[str] = set()
        self._intact: dict[str, tuple[int, int, int]] = {}
        for version in self._catalog.live():
            self._snapshot.add(version)
        self._unused.update(self._store.digests())
        self._sweep()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the data directory back. What was published stays."""
        self._catalog.close()
        self._in_use.close()

    def publish(
        self,
        name: str,
        config: bytes,
        weights: Path,
        source: str = "",
        labels: bytes | None = None,
        quantization: str | None = None,
    ) -> tuple[AdapterVersion, bool]:
        """Check an adapter in full and make it the newest version of `name`.

        Args:
            config: the text of adapter_config.json.
            weights: a safetensors file.
            labels: names of its head's outputs, as JSON; see `parse_labels`.
            quantization: of its base while it was trained, if that is known; see `lineage.py`.

        Returns:
            The version, and whether it is new: the content that is the newest already is not published twice,
            unless it is told now what it was trained on.

        Raises:
            InvalidName, InvalidAdapter, AdapterTooLarge: it can't be served under this name on this base.
            AdapterConflict: the registry is full.
            ProofUnavailable: only proved adapters are taken, and the proof could not be made.
        """
        check_new_name(name, self._base.name)
        named = parse_labels(labels) if labels is not None else ()
        trained_on = None if quantization is None else check_quantization(quantization)
        with self._store.stage(config, weights, self._limits.max_file_bytes, labels) as staged:
            plan = self._plan(config, staged / WEIGHTS_FILE)
            self._check_memory(plan.applied)
            digest = content_digest(plan.config, staged / WEIGHTS_FILE, self._limits, named)
            adapter = self._read(plan, staged, digest, named)
            self._check(adapter)
            size = (staged / WEIGHTS_FILE).stat().st_size
            proof = self._proof(name, staged, adapter)
            with self._writing:
                version = self._new_version(name, size, plan, adapter, source)
                version = replace(version, trained_on_quantization=trained_on, proof=proof)
                version, is_new = self._commit(staged, version)
        warning = quantization_warning(self._base, trained_on)
        if warning is not None:
            log.warning("adapter %s: %s", version.ref, warning)
        return version, is_new

    def publish_folder(self, name: str, folder: Path, source: str = "") -> tuple[AdapterVersion, bool]:
        """`publish` the two files of a folder that PEFT saved.

        The labels are those of `labels.json` there, or else of a `config.json` with `id2label`; what it was
        trained on may be in `lineage.json`.
        """
        if not (folder / WEIGHTS_FILE).is_file() and (folder / "adapter_model.bin").is_file():
            raise InvalidAdapter(
                "adapter_model.bin is a pickle/zip checkpoint, not safetensors; "
                "re-save it with safe_serialization=True"
            )
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / file).is_file():
                raise InvalidAdapter(f"{folder} holds no {file}")
        config = read_text(folder / CONFIG_FILE, self._limits.max_config_bytes)
        labels, quantization = labels_beside(folder, config), quantization_beside(folder)
        return self.publish(name, config, folder / WEIGHTS_FILE, source, labels, quantization)

    def resolve(self, ref: str) -> AdapterVersion:
        """The version that `name` (the newest) or `name@3` means now.

        Raises:
            AdapterNotFound: there is none on this base.
        """
        return self._matching(ref)[-1]

    def list(self) -> tuple[AdapterVersion, ...]:
        """Every live version for this base, by name, then by version."""
        return self._snapshot.all()

    def versions(self, name: str) -> tuple[AdapterVersion, ...]:
        """The live versions of `name` for this base, oldest first; none if there is no such name."""
        return self._snapshot.versions(name)

    def delete(self, ref: str) -> tuple[AdapterVersion, ...]:
        """Delete one version (`name@3`) or all of `name`; returns those deleted.

        Who holds one of them may go on using it.

        Raises:
            AdapterNotFound: there is none on this base.
        """
        with self._writing:
            doomed = self._matching(ref)
            self._catalog.delete(doomed)
            for version in doomed:
                self._snapshot.discard(version)
                self._unused.add(version.digest)
            self._sweep()
        return doomed

    def hold(self, digest: str) -> None:
        """Keep the files of `digest` until as many `release` calls, whatever is deleted meanwhile.

        Raises:
            AdapterNotFound: no live version has this digest, and nobody holds it.
        """
        self._snapshot.hold(digest)

    def release(self, digest: str) -> None:
        """Give back one `hold`."""
        if self._snapshot.release(digest):
            self._unused.add(digest)
            # The caller is a request that ends: if a writer is busy, the files wait for the next one.
            if self._writing.acquire(blocking=False):
                try:
                    self._sweep()
                finally:
                    self._writing.release()

    def load(self, digest: str, dtype: torch.dtype | None = None) -> AdapterWeights:
        """Read an adapter's weights, checked again in full; hold it, or it may be deleted meanwhile.

        Raises:
            AdapterNotFound: there are no files for this digest.
            InvalidAdapter: the files are damaged, or their values do not fit `dtype`.
        """
        folder = self._store.folder(digest)
        try:
            config = (folder / CONFIG_FILE).read_bytes()
            labels = stored_labels(folder)
            plan = self._plan(config, folder / WEIGHTS_FILE)
            self._check_digest(digest, plan.config, folder / WEIGHTS_FILE, labels)
            return self._read(plan, folder, digest, labels, dtype)
        except FileNotFoundError:
            raise AdapterNotFound(f"no adapter with digest {digest[:12]}") from None
        except InvalidAdapter as error:
            raise InvalidAdapter(f"stored adapter {digest[:12]} can't be loaded: {error}") from error

    def _plan(self, config: bytes, weights: Path) -> AdapterPlan:
        header = read_header(weights, self._limits)
        return plan_adapter(parse_config(config, self._limits), header, self._base)

    def _read(
        self,
        plan: AdapterPlan,
        folder: Path,
        digest: str,
        labels: tuple[str, ...],
        dtype: torch.dtype | None = None,
    ) -> AdapterWeights:
        """The records of the files in `folder`, where what follows from the base's weights is kept too."""
        derived = Derived.load(folder, self._base.serving_digest, self._base_weights)
        reader = AdapterReader(plan, folder / WEIGHTS_FILE, derived, dtype)
        adapter = reader.read(digest, labels, self._limits.max_rank)
        if derived.changed:
            with suppress(OSError):  # on a full disk it is computed again the next time
                derived.save(folder, self._base.serving_digest)
        return adapter

    def _check(self, adapter: AdapterWeights) -> None:
        """That it fits into memory as it is served, and its values into the type that is computed in."""
        self._check_memory(sum(tensor.numel() for tensor in adapter.tensors()))
        if self._dtype is not None:
            check_values(adapter, self._dtype)

    def _check_memory(self, numbers: int) -> None:
        most = self._limits.max_memory_bytes
        needed = numbers * (self._dtype or torch.float32).itemsize
        if most is not None and needed > most:
            raise AdapterTooLarge(
                f"the adapter takes {needed / 2**20:.1f} MiB in memory, more than all adapters together may "
                f"({most / 2**20:.1f} MiB); raise --adapter-memory-gb"
            )

    def _check_digest(
        self, digest: str, config: AdapterConfig, weights: Path, labels: tuple[str, ...]
    ) -> None:
        """Hash the files unless this process has done so since they were written."""
        seen = _status(weights)
        if self._intact.get(digest) != seen:
            if content_digest(config, weights, self._limits, labels) != digest:
                raise InvalidAdapter("its files were changed or damaged on disk; publish it again")
            self._intact[digest] = seen

    def _proof(self, name: str, staged: Path, adapter: AdapterWeights) -> Proof:
        """That of the newest version if it is of the same content, else a new one."""
        newest = self.versions(name)[-1:]
        if newest and newest[0].digest == adapter.digest and newest[0].proof.status == "proved":
            return newest[0].proof
        return self.prove(staged, adapter)

    def _new_version(
        self, name: str, size: int, plan: AdapterPlan, adapter: AdapterWeights, source: str
    ) -> AdapterVersion:
        wrapped = (*adapter.deltas, *adapter.embeddings, *adapter.experts)
        return AdapterVersion(
            name=name,
            version=self._catalog.next_version(name),
            digest=adapter.digest,
            base_digest=self._base.digest,
            created=time.time(),
            size=size,
            rank=_rank(adapter),
            parameters=plan.parameters,
            target_modules=tuple(sorted({module.rpartition(".")[2] for module in wrapped})),
            source=source,
            task=adapter.task,
            labels=adapter.labels,
            invocation=adapter.invocation,
            variant=plan.config.variant,
            unmixable=unmixable(adapter),
        )

    def _commit(self, staged: Path, version: AdapterVersion) -> tuple[AdapterVersion, bool]:
        """Store files and row, in this order; or the files only, if the newest version has this digest."""
        newest = self.versions(version.name)[-1:]
        is_new = not newest or newest[0].digest != version.digest or _tells_more(version, newest[0])
        if is_new and len(self._snapshot) >= self._limits.max_adapters:
            raise AdapterConflict(
                f"{self._limits.max_adapters} adapter versions are live, the most there may be; delete some"
            )
        try:
            self._store.commit(staged, version.digest)
            self._intact[version.digest] = _status(self._store.folder(version.digest) / WEIGHTS_FILE)
            if not is_new:
                return newest[0], False
            self._catalog.add(version)
            self._snapshot.add(version)
            return version, True
        finally:
            self._unused.add(version.digest)
            self._sweep()

    def _matching(self, ref: str) -> tuple[AdapterVersion, ...]:
        try:
            parsed = parse_ref(ref)
        except InvalidName:
            parsed = Ref(None, "")
        found = self.versions(parsed.name) if parsed.tenant is None and parsed.alias is None else ()
        if parsed.version is not None:
            found = tuple(version for version in found if version.version == parsed.version)
        if not found:
            raise AdapterNotFound(f"no adapter {ref[:100]!r}; GET /v1/models lists what there is")
        return found

    def _sweep(self) -> None:
        """Remove files that nothing needs any more. Called while writing."""
        while self._unused:
            digest = self._unused.pop()
            if self._snapshot.is_unused(digest):
                self._intact.pop(digest, None)
                self._store.remove(digest)
                self.on_unused(digest)


def _tells_more(version: AdapterVersion, known: AdapterVersion) -> bool:
    told = version.trained_on_quantization
    return told is not None and told != known.trained_on_quantization


def _rank(adapter: AdapterWeights) -> int:
    """The largest of all records, as they are served."""
    ranks = [adapter.max_rank, *(record.a.shape[1] for record in adapter.experts.values())]
    ranks += [record.a.shape[0] for record in adapter.embeddings.values() if record.a is not None]
    return max(ranks)


def _status(path: Path) -> tuple[int, int, int]:
    """Changes whenever the file is written or replaced."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
