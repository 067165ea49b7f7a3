"""Training files: whole or not there, bounded, gone when their time is over, on disk or in a shared store."""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from adapters.blobs.shared import SharedFolder
from adapters.errors import RegistryUnavailable
from adapters.registry.records import LOCAL, Caller, Quota
from server.jobs import files as module
from server.jobs.errors import Conflict, NotThere, OverQuota
from server.jobs.files import Files, is_full
from server.jobs.records import new_id
from server.jobs.schema import FILES
from tests.server.jobs.world import ACME, OTHER, ROW, Site, sites
from training.protocol import Failure


def contents(site: Site) -> set[str]:
    return {path.name for path in (site.folder / "training" / "files").iterdir()}


def age(site: Site, file_id: str) -> None:
    """Have its time be over."""
    with site.database.write() as write:
        write.connection.execute(update(FILES).where(FILES.c.id == file_id).values(expires=time.time() - 1))


def test_a_file_is_kept_as_it_came(site: Site) -> None:
    file = site.file(ACME, ROW, expires_after=3600)
    assert site.files.get(ACME, file.id) == file
    assert (file.filename, file.purpose, file.bytes) == ("data.jsonl", "fine-tune", len(ROW))
    assert file.sha256 == hashlib.sha256(ROW).hexdigest()
    assert file.expires == file.created + 3600
    assert site.files.path(file.id).read_bytes() == ROW
    assert not (site.folder / "incoming").exists()


def test_another_tenants_answer_as_what_never_was(site: Site) -> None:
    file, missing = site.file(ACME), new_id("file")
    for call in (site.files.get, site.files.delete):
        said = []
        for file_id in (file.id, missing):
            with pytest.raises(NotThere) as error:
                call(OTHER, file_id)
            said.append(str(error.value).replace(file_id, "ID"))
        assert said[0] == said[1]
    assert site.files.list(OTHER) == ()
    assert site.files.get(LOCAL, file.id) == file


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "file-" + "g" * 24, "file-0123", "", "file-" + "0" * 24]
)
def test_nothing_else_becomes_a_path(site: Site, name: str) -> None:
    for call in (lambda: site.files.path(name), lambda: site.files.get(LOCAL, name)):
        with pytest.raises(NotThere):
            call()


def test_lists_have_pages(site: Site) -> None:
    files = [site.file(ACME) for _ in range(4)]
    ids = [file.id for file in reversed(files)]
    assert [file.id for file in site.files.list(ACME)] == ids
    assert [file.id for file in site.files.list(ACME, limit=2, after=ids[0])] == ids[1:3]
    assert [file.id for file in site.files.list(ACME, oldest=True, after=ids[2])] == [ids[1], ids[0]]
    assert site.files.list(ACME, purpose="fine-tune-results") == ()
    with pytest.raises(NotThere):
        site.files.list(ACME, after=new_id("file"))


def test_a_file_that_a_job_needs_stays(site: Site) -> None:
    train, validation = site.file(ACME), site.file(ACME)
    job = site.queue(ACME, train, validation_file=validation.id)
    for status in ("queued", "running", "paused"):
        assert site.jobs.get(ACME, job.id).status == status
        for file in (train, validation):
            with pytest.raises(Conflict, match=f"{file.id} is in use by {job.id}") as error:
                site.files.delete(ACME, file.id)
            assert error.value.code == "file_in_use"
        if status == "queued":
            site.jobs.claim(1)
        elif status == "running":
            site.jobs.pause(ACME, job.id)
    site.jobs.cancel(ACME, job.id)
    site.files.delete(ACME, train.id)
    assert contents(site) == {validation.id}


def test_what_is_over_goes_unless_a_job_needs_it(site: Site) -> None:
    kept, needed, over = site.file(ACME), site.file(ACME), site.file(ACME)
    job = site.create(ACME, needed)
    age(site, needed.id)
    age(site, over.id)
    with pytest.raises(NotThere):
        site.files.get(ACME, over.id)
    assert {file.id for file in site.files.list(ACME)} == {kept.id, needed.id}
    assert site.files.sweep() == (over.id,)
    assert contents(site) == {kept.id, needed.id}
    site.jobs.cancel(ACME, job.id)
    assert site.files.sweep() == (needed.id,)
    assert site.files.sweep() == ()
    assert contents(site) == {kept.id}


def test_what_a_crash_left_is_removed(site: Site) -> None:
    file = site.file(ACME)
    folder = site.folder / "training" / "files"
    (folder / new_id("file")).write_bytes(b"its row was never written")
    (folder / "x.part").write_bytes(b"half")
    again = Files(site.database, "here", site.folder)
    again.sweep()
    assert contents(site) == {file.id}


def test_a_tenant_has_so_many_bytes(site: Site) -> None:
    site.tenant().put("acme", Quota(max_file_bytes=100))
    file = site.file(ACME, b"x" * 60)
    for call in (lambda: site.file(ACME, b"x" * 41), lambda: site.files.check_room(ACME, 41)):
        with pytest.raises(OverQuota, match=r"'acme' has 60 bytes .* with 41 more .* the 100"):
            call()
    assert contents(site) == {file.id}
    site.file(OTHER, b"x" * 200)
    site.files.check_room(ACME, 40)
    site.files.delete(ACME, file.id)
    site.file(ACME, b"x" * 100)


def test_all_tenants_together_have_so_many_bytes(migrated_url: str, tmp_path: Path) -> None:
    with sites(migrated_url, tmp_path, "here", max_bytes=100) as (site,):
        site.file(ACME, b"x" * 60)
        with pytest.raises(OverQuota, match=r"this server has 60 bytes"):
            site.file(OTHER, b"x" * 41)
        job = site.queue(OTHER, site.file(OTHER, b"x" * 40))
        site.jobs.claim(1)
        with site.files.results(job, {"a.csv": b"step\n1\n"}) as results:
            assert site.jobs.succeed(job.id, "shop@1", 1, results.ids, results.enter)
        (file_id,) = results.ids
        assert site.files.get(OTHER, file_id).bytes == 7, "what a job measured is never lost"
        with pytest.raises(OverQuota, match=r"this server has 107 bytes"):
            site.files.check_room(OTHER, 1)


RESULTS = {"step_metrics.csv": b"step\n1\n", "card.md": b"# Card\n", "curve.png": b"\x89PNG"}


@pytest.mark.parametrize("end", ["succeed", "fail"])
def test_results_come_with_the_end_of_their_job(site: Site, end: str) -> None:
    job = site.queue(ACME)
    site.jobs.claim(1)
    with site.files.results(job, RESULTS) as results:
        if end == "succeed":
            assert site.jobs.succeed(job.id, "shop@1", 1, results.ids, results.enter)
        else:
            assert site.jobs.fail(job.id, Failure("diverged", "x"), results.ids, results.enter)
    ids = site.jobs.get(ACME, job.id).result_files
    files = [site.files.get(ACME, file_id) for file_id in ids]
    assert {file.filename: site.files.path(file.id).read_bytes() for file in files} == RESULTS
    assert [file.filename for file in files] == list(RESULTS)
    assert {(file.purpose, file.tenant, file.expires) for file in files} == {
        ("fine-tune-results", "acme", None)
    }
    site.files.sweep()
    assert contents(site) == {job.request.training_file, *ids}


def test_results_of_a_job_that_does_not_end_with_them_are_gone(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = site.queue(ACME)
    site.jobs.claim(1)
    with monkeypatch.context() as patched:
        patched.setattr(module, "plain", lambda _: None)  # a row that the database refuses, the last of all
        with pytest.raises(IntegrityError), site.files.results(job, RESULTS) as results:
            site.jobs.succeed(job.id, "shop@1", 1, results.ids, results.enter)
    assert site.jobs.get(ACME, job.id).status == "running"
    site.jobs.cancel(ACME, job.id)
    with site.files.results(job, RESULTS) as results:
        assert len(contents(site)) == 1 + len(RESULTS)
        site.files.sweep()
        assert len(contents(site)) == 1 + len(RESULTS), "what is coming is no orphan"
        assert not site.jobs.succeed(job.id, "shop@1", 1, results.ids, results.enter)
    assert contents(site) == {job.request.training_file}
    assert site.files.list(ACME, purpose="fine-tune-results") == ()
    assert site.jobs.get(ACME, job.id).result_files == ()


def test_results_that_a_disk_has_no_room_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    job, count = site.queue(ACME), 0

    def full(_: Path) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "sync", full)
    with pytest.raises(OSError, match="No space") as error, site.files.results(job, RESULTS):
        raise AssertionError("they are not all there")
    assert is_full(error.value)
    assert contents(site) == {job.request.training_file}


def test_files_of_one_moment_come_page_by_page_too(site: Site) -> None:
    job = site.queue(ACME)
    with site.files.results(job, RESULTS) as results, site.database.write() as write:
        results.enter(write)
    for oldest in (False, True):
        whole = [file.id for file in site.files.list(ACME, oldest=oldest)]
        assert set(whole) == {job.request.training_file, *results.ids}
        found: list[str] = []
        while page := site.files.list(ACME, limit=1, after=found[-1] if found else None, oldest=oldest):
            found += [file.id for file in page]
        assert found == whole


def test_of_a_file_that_can_not_be_stored_nothing_stays(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_tenant(*_: Any) -> None:
        raise RegistryUnavailable("away")

    monkeypatch.setattr(module, "quota_of", no_tenant)
    with pytest.raises(RegistryUnavailable):
        site.file(ACME)
    assert contents(site) == set()


def test_without_a_store_a_content_is_on_one_server(pair: tuple[Site, ...]) -> None:
    here, there = pair
    file = here.file(ACME)
    assert there.files.get(ACME, file.id) == file
    with pytest.raises(NotThere, match="on the disk of another server"):
        there.files.path(file.id)
    there.files.sweep()
    assert contents(here) == {file.id}
    there.files.delete(ACME, file.id)
    here.files.sweep()
    assert contents(here) == set()


@pytest.fixture
def shared(migrated_url: str, tmp_path: Path) -> Iterator[tuple[tuple[Site, ...], SharedFolder]]:
    store = SharedFolder(tmp_path / "store")
    with sites(migrated_url, tmp_path, "here", "there", store=store) as found:
        yield found, store


def test_with_a_store_every_server_has_it(shared: tuple[tuple[Site, ...], SharedFolder]) -> None:
    (here, there), store = shared
    file = here.file(ACME, ROW * 3)
    assert file.replica == ""
    assert there.files.path(file.id).read_bytes() == ROW * 3
    here.queue(ACME, file)
    assert len(there.jobs.claim(1)) == 1, "each of them can train with it"
    other = there.file(Caller("other"), ROW)
    there.files.delete(Caller("other"), other.id)
    assert list(store.list("")) == [file.id]
    assert contents(there) == {file.id}


def test_a_damaged_copy_is_not_taken(
    shared: tuple[tuple[Site, ...], SharedFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here, there), store = shared
    file = here.file(ACME)
    store.put(file.id, b"x" * len(ROW))
    with pytest.raises(RegistryUnavailable, match="another content"):
        there.files.path(file.id)
    assert contents(there) == set()
    store.delete(file.id)
    with pytest.raises(NotThere, match="is gone"):
        there.files.path(file.id)
    store.put(new_id("file"), b"its row was never written")
    here.files.sweep()
    assert len(store.list("")) == 1, "its row may come yet"
    monkeypatch.setattr(module, "SETTLED_SECONDS", -1.0)
    here.files.sweep()
    assert len(store.list("")) == 0
