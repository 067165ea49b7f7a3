"""Versions that are checked after their upload was acknowledged.

    uploaded -> checking -> ready, or refused with the reason

    data_dir/pending/<tenant>@<name>@<version>/     adapter_config.json, adapter_model.safetensors, job.json

The files are on disk before the row is written, so that the same server can go on after a crash.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE, sync
from adapters.checkpoint.labels import LABELS_FILE
from adapters.errors import AdapterError, AdapterNotFound, ProofUnavailable, RegistryUnavailable
from adapters.registry.database import Database
from adapters.registry.keeping import Keeper
from adapters.registry.publisher import Publisher, Upload, clean, tells_more
from adapters.registry.records import LIVE, AdapterVersion, Caller, State
from adapters.registry.rows import find_version, put_version, versions_of
from adapters.registry.sync import Sync

log = logging.getLogger(__name__)
JOB_FILE = "job.json"
LOST = "the server stopped while the adapter was being checked, and its files are gone; publish it again"


class Pending:
    """Those of one server."""

    def __init__(
        self,
        folder: Path,
        replica: str,
        database: Database,
        keeper: Keeper,
        publisher: Publisher,
        sync: Sync,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._replica, self._database, self._keeper = folder, replica, database, keeper
        self._publisher, self._sync = publisher, sync

    def begin(self, upload: Upload, caller: Caller) -> AdapterVersion:
        """Take the files and give them a number; see `Registry.begin`."""
        adapter = self._publisher.check_name(upload.name, caller)
        with self._publisher.stage(upload) as staged:
            job = {"promote": upload.promote, "digest": upload.digest, "caller": asdict(caller)}
            (staged / JOB_FILE).write_text(json.dumps(job))
            sync(staged / JOB_FILE)
            size = (staged / WEIGHTS_FILE).stat().st_size
            asked = self._publisher.new(upload, adapter, time.time(), size)
            asked = replace(asked, state="uploaded", replica=self._replica)
            with self._database.write() as write:
                live = versions_of(write.connection, adapter, asked.base_digest)
                if live and live[-1].digest == upload.digest and not tells_more(asked, live[-1]):
                    return live[-1]
                version = self._publisher.number(write, asked)
                put_version(write, version, is_new=True)
                said: dict[str, object] = {"size": version.size, "source": version.source}
                write.audit(caller, "upload", version.ref, None, said, version.tenant)
                os.rename(staged, self._place(version))
                sync(self._folder)
        self._sync.catch_up()
        return version

    def finish(self, version: AdapterVersion) -> AdapterVersion:
        """Check what `begin` took; the version, `ready`, or `refused` with the reason.

        Raises:
            AdapterNotFound: it was deleted meanwhile.
            RegistryUnavailable: the database or the store is away; finish it again later.
        """
        if version.state in LIVE:
            return version  # its content was there already
        folder = self._place(version)
        if not (folder / JOB_FILE).is_file():
            return self._refuse(version, LOST, Caller(version.tenant))
        job = json.loads((folder / JOB_FILE).read_text())
        caller = Caller(**job["caller"])
        self._set(version, "checking")
        try:
            done = self._check(version, folder, job, caller)
        except AdapterNotFound:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        except AdapterError as error:
            if isinstance(error, ProofUnavailable | RegistryUnavailable):
                raise
            done = self._refuse(version, str(error), caller)
        shutil.rmtree(folder, ignore_errors=True)
        return done

    def recover(self, unfinished: tuple[AdapterVersion, ...]) -> None:
        """At start: refuse those of this server whose files are gone, and remove files of no version."""
        for version in unfinished:
            if not (self._place(version) / JOB_FILE).is_file():
                self._refuse(version, LOST, Caller(version.tenant, "start"))
        names = {self._place(version).name for version in unfinished}
        for folder in self._folder.iterdir():
            if folder.name not in names:
                shutil.rmtree(folder, ignore_errors=True)

    def _check(
        self, version: AdapterVersion, folder: Path, job: dict[str, Any], caller: Caller
    ) -> AdapterVersion:
        labels = folder / LABELS_FILE
        upload = Upload(
            version.full_name,
            (folder / CONFIG_FILE).read_bytes(),
            folder / WEIGHTS_FILE,
            version.source,
            labels.read_bytes() if labels.is_file() else None,
            version.trained_on_quantization,
            version.lineage,
            job["promote"],
            job["digest"],
        )
        with self._publisher.stage(upload) as staged:
            found = self._publisher.check(staged, upload, (version.tenant, version.name))
            done = replace(found, version=version.version, created=version.created)
            self._publisher.claim(found.digest)
            with self._keeper.stored(staged, found.digest):
                with self._database.write() as write:
                    self._publisher.check_claim(write.connection, found.digest)
                    known = find_version(write.connection, (version.tenant, version.name), version.version)
                    if known is None or known.state != "checking":
                        raise AdapterNotFound(f"no adapter {version.ref!r}; it was deleted meanwhile")
                    self._publisher.ready(write, done, upload.promote, caller)
                self._sync.catch_up()
        self._publisher.warn(done)
        return done

    def _refuse(self, version: AdapterVersion, reason: str, caller: Caller) -> AdapterVersion:
        refused = self._set(version, "refused", clean(reason), caller)
        log.warning("adapter %s is refused: %s", version.ref, reason)
        return refused

    def _set(
        self, version: AdapterVersion, state: State, reason: str = "", caller: Caller | None = None
    ) -> AdapterVersion:
        with self._database.write() as write:
            known = find_version(write.connection, (version.tenant, version.name), version.version)
            if known is None or known.state not in ("uploaded", "checking"):
                raise AdapterNotFound(f"no adapter {version.ref!r} that waits to be checked")
            changed = replace(known, state=state, reason=reason)
            put_version(write, changed, is_new=False)
            if caller is not None:
                said: dict[str, object] = {"reason": reason}
                write.audit(caller, "refuse", version.ref, None, said, version.tenant)
        self._sync.catch_up()
        return changed

    def _place(self, version: AdapterVersion) -> Path:
        # A tenant's name has no '@', nor has an adapter's.
        return self._folder / f"{version.tenant}@{version.name}@{version.version}"
