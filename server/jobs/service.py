"""What a server has of training: its files and its jobs, in the registry's database."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from adapters.blobs.location import open_objects
from adapters.registry.registry import Registry
from server.jobs.files import Files
from server.jobs.store import Jobs
from server.settings import GIB, Settings

STORE = "training"
"""Below the blob URL: apart from the adapters' blobs, which are named after their digests."""


_NEEDED = ("peft", "accelerate", "trl", "datasets", "matplotlib", "tensorboard")
"""What the `train` extra brings, which the process that trains imports."""


@dataclass(frozen=True, slots=True)
class Service:
    """The training files and jobs of one server."""

    files: Files
    jobs: Jobs


def open_service(settings: Settings, registry: Registry, base_digest: str) -> Service | None:
    """As the settings say; None where `why_not` is not "". What tenants leave behind is minded from now on.

    Raises:
        AdapterError: the blob URL is wrong.
    """
    if why_not(settings):
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


def why_not(settings: Settings) -> str:
    """Why this server does not train; "" where it does."""
    if not settings.training:
        return "it runs with --no-training"
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if not missing:
        return ""
    return f"{', '.join(missing)} not installed there; pip install 'multilora[train]'"
