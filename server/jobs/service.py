"""What a server has of training: its files and its jobs, in the registry's database."""

from __future__ import annotations

from dataclasses import dataclass

from adapters.blobs.location import open_objects
from adapters.registry.registry import Registry
from server.jobs.files import Files
from server.jobs.store import Jobs
from server.settings import GIB, Settings

STORE = "training"
"""Below the blob URL: apart from the adapters' blobs, which are named after their digests."""


@dataclass(frozen=True, slots=True)
class Service:
    """The training files and jobs of one server."""

    files: Files
    jobs: Jobs


def open_service(settings: Settings, registry: Registry, base_digest: str) -> Service | None:
    """As the settings say; None where training is off. What tenants leave behind is minded from now on.

    Raises:
        AdapterError: the blob URL is wrong.
    """
    if not settings.training:
        return None
    store = None
    if settings.blob_url is not None:
        store = open_objects(f"{settings.blob_url.rstrip('/')}/{STORE}", settings.data_dir)
    files = Files(
        registry.database,
        registry.replica,
        settings.data_dir,
        store,
        int(settings.max_training_files_gb * GIB),
    )
    jobs = Jobs(registry.database, registry.replica, base_digest)
    registry.tenants.closing.append(jobs.forget)
    return Service(files, jobs)
