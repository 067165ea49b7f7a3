"""Servers on one database of training files and jobs, and what their tenants ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import update

from adapters.registry.database import Database
from adapters.registry.records import Caller
from adapters.registry.tenants import Tenants
from server.jobs.files import Files
from server.jobs.records import Job, JobRequest, TrainingFile
from server.jobs.schema import FILES
from server.jobs.store import Jobs
from training.spec import TrainSpec

BASE = "ba5e" * 16
ACME, OTHER = Caller("acme", "key-acme"), Caller("other", "key-other")
ROW = b'{"prompt": "a", "completion": "b"}\n'


class Site:
    """One server: its own connections and its own disk."""

    def __init__(self, url: str, folder: Path, replica: str, base: str = BASE, **options: Any) -> None:
        self.database = Database(url)
        self.folder = folder / replica
        self.folder.mkdir(exist_ok=True)
        self.files = Files(self.database, replica, self.folder, **options)
        self.jobs = Jobs(self.database, replica, base)

    def tenant(self, *names: str) -> Tenants:
        tenants = Tenants(self.database, lambda: None)
        tenants.closing.append(self.jobs.forget)
        for name in names:
            tenants.put(name)
        return tenants

    def file(self, caller: Caller, content: bytes = ROW, **options: Any) -> TrainingFile:
        path = self.folder / "incoming"
        path.write_bytes(content)
        return self.files.add(caller, path, "data.jsonl", **options)

    def shared_file(self, caller: Caller) -> TrainingFile:
        """One as in the store that servers share: each of them can train with it."""
        file = self.file(caller)
        with self.database.write() as write:
            write.connection.execute(update(FILES).where(FILES.c.id == file.id).values(replica=""))
        return replace(file, replica="")

    def create(self, caller: Caller, file: TrainingFile | None = None, **fields: Any) -> Job:
        """A job on a file of its own unless one is given."""
        file = file or self.file(caller)
        return self.jobs.create(caller, request(file, **fields))

    def queue(self, caller: Caller, file: TrainingFile | None = None, **fields: Any) -> Job:
        """A job whose data was found good."""
        job = self.create(caller, file, **fields)
        claimed = self.jobs.claim_check()
        assert claimed is not None
        assert claimed.id == job.id
        assert self.jobs.checked(job.id, job.request)
        return self.jobs.get(caller, job.id)


def request(file: TrainingFile, **fields: Any) -> JobRequest:
    return JobRequest(
        **{"model": "base", "name": "shop", "training_file": file.id, "spec": TrainSpec(), **fields}
    )


@contextmanager
def sites(url: str, folder: Path, *replicas: str, **options: Any) -> Iterator[tuple[Site, ...]]:
    """Servers for the block, with the tenants of `ACME` and `OTHER`."""
    with ExitStack() as opened:
        found = tuple(Site(url, folder, replica, **options) for replica in replicas)
        for site in found:
            opened.callback(site.database.close)
        found[0].tenant("acme", "other")
        yield found
