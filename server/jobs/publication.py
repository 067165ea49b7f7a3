"""What jobs made becomes versions of adapters: each checkpoint at once, and the result after its gate."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from adapters.errors import (
    AdapterError,
    AdapterNotFound,
    AdapterTooLarge,
    InvalidName,
    ProofUnavailable,
    QuotaExceeded,
    RegistryUnavailable,
    TenantNotFound,
)
from adapters.registry.lineage import LINEAGE_FILE, lineage_beside
from adapters.registry.records import AdapterVersion, Caller, Promote
from adapters.registry.registry import Registry
from server.jobs.files import is_full
from server.jobs.records import Job
from training.protocol import Failure

log = logging.getLogger(__name__)
RETRY_SECONDS = 5.0
"""Until a publication that could not be made now is tried again."""
_TRIES = 120
_OF_USERS = (QuotaExceeded, AdapterTooLarge, InvalidName, TenantNotFound)
Work = Callable[[], tuple[AdapterVersion, bool]]
Publish = Callable[[Work], tuple[AdapterVersion, bool]]
"""Does a publication where the server does them: one at a time, counted, and loaded at once."""


class NotPublished(Exception):
    """It can't become a version, and why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class ServerStops(Exception):
    """It could not be published before the server ends; when it is back, try again."""


class Publication:
    """For the jobs of one server."""

    def __init__(self, registry: Registry, publish: Publish, stopping: threading.Event) -> None:
        """
        Args:
            stopping: set when the server ends.
        """
        self._registry, self._publish, self._stopping = registry, publish, stopping

    def checkpoint(self, job: Job, folder: Path, lineage: Mapping[str, Any]) -> AdapterVersion:
        """The next version of the adapter that is named as the job; its bare name means the newest.

        Raises:
            NotPublished: with the reason; a full disk is one at once.
            ServerStops: not now.
        """
        return self._version(job, job.checkpoint_name, folder, lineage, "auto", waits=False)

    def result(self, job: Job, folder: Path, lineage: Mapping[str, Any]) -> AdapterVersion:
        """The next version of the job's name, promoted as its request says.

        Raises:
            NotPublished: with the reason; a full disk is waited for.
            ServerStops: not now.
        """
        return self._version(job, job.target, folder, lineage, job.request.promote, waits=True)

    def take_back(self, job: Job, version: AdapterVersion) -> None:
        """Delete a version that nobody wants any more."""
        with suppress(AdapterNotFound):
            self._registry.delete(version.ref, caller=caller_of(job), force=True)

    def current(self, job: Job) -> AdapterVersion | None:
        """What the job's name means now; None if there is none of this name."""
        try:
            return self._registry.resolve(job.target, caller_of(job))
        except AdapterNotFound:
            return None

    def check_parent(self, job: Job) -> None:
        """Whether what the job goes on from is still there, and still shared with its tenant.

        Raises:
            AdapterNotFound: it is not.
        """
        if job.request.parent is not None:
            self._registry.resolve(job.request.parent, caller_of(job))

    @contextmanager
    def held(self, digest: str | None) -> Iterator[Path | None]:
        """The folder of a version for the time of a `with`, whatever is deleted meanwhile."""
        if digest is None:
            yield None
            return
        self._registry.hold(digest)
        try:
            yield self._registry.folder(digest)
        finally:
            self._registry.release(digest)

    def _version(
        self,
        job: Job,
        name: str,
        folder: Path,
        lineage: Mapping[str, Any],
        promote: Promote,
        *,
        waits: bool,
    ) -> AdapterVersion:
        told = {**lineage_beside(folder), **lineage}

        def work() -> tuple[AdapterVersion, bool]:
            return self._registry.publish_folder(
                name, folder, f"training job {job.id}", caller=caller_of(job), promote=promote
            )

        for left in reversed(range(_TRIES)):
            try:
                _write_lineage(folder, told)
                return self._publish(work)[0]
            except (ProofUnavailable, RegistryUnavailable, OSError) as error:
                failure = _failure(error)
                log.warning("%s of job %s can't be published now: %s", name, job.id, error)
                if isinstance(error, OSError) and not waits:
                    raise NotPublished(failure) from error
                if self._stopping.wait(RETRY_SECONDS):
                    raise ServerStops from error
                if not left:
                    raise NotPublished(failure) from error
            except AdapterError as error:
                users = isinstance(error, _OF_USERS)
                code = "quota_exceeded" if isinstance(error, QuotaExceeded) else "not_published"
                raise NotPublished(Failure(code, str(error), fault="user" if users else "server")) from error
        raise AssertionError("the last try returns or raises")


def _failure(error: AdapterError | OSError) -> Failure:
    """Of what may pass.

    Raises:
        OSError: it is no full disk.
    """
    if not isinstance(error, OSError):
        return Failure("not_published", str(error))
    if not is_full(error):
        raise error
    return Failure("server_error", "the server's disk has no space left for this adapter")


def _write_lineage(folder: Path, told: Mapping[str, Any]) -> None:
    """Whole or not at all: a disk that is full now must not spoil what was told before."""
    part = folder / f"{LINEAGE_FILE}.part"
    part.write_text(json.dumps(told, indent=2) + "\n")
    part.replace(folder / LINEAGE_FILE)


def caller_of(job: Job) -> Caller:
    """In whose name the job acts."""
    return Caller(job.tenant, job.actor)


def lineage_of(
    job: Job,
    data: tuple[tuple[str, str], ...],
    scores: Mapping[str, Mapping[str, float | None] | None] | None = None,
) -> dict[str, Any]:
    """As `lineage.json` has it.

    Args:
        data: name and SHA-256 of each file.
        scores: of the gate: what has them, their names, and values.
    """
    found: dict[str, Any] = {
        "job": job.id,
        "data": [{"name": name, "sha256": sha256} for name, sha256 in data],
    }
    if job.request.parent is not None:
        found |= {"parent": job.request.parent, "parent_digest": job.request.parent_digest}
    if scores:
        found["scores"] = {
            name if who == "adapter" else f"{who}.{name}": value
            for who, those in scores.items()
            for name, value in (those or {}).items()
            if value is not None and math.isfinite(value)
        }
    return found
