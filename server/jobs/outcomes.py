"""What becomes of what a process made of a job: checkpoints and results are published, failures told."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters.blobs.local import WEIGHTS_FILE
from adapters.registry.records import LOCAL
from server.jobs.errors import JobError
from server.jobs.files import Results
from server.jobs.publication import NotPublished, ServerStops, lineage_of
from server.jobs.queue import MAX_ATTEMPTS
from server.jobs.records import UNFINISHED
from server.jobs.results import finite, result_files
from server.jobs.settle import settle
from server.jobs.site import Entry, Site
from training.bounds import says_out_of_memory
from training.protocol import Failure

log = logging.getLogger(__name__)
KEEP_SECONDS = 30 * 86_400
"""After its end a job's folder goes, with its log, its curves, and a result that could not be published."""
KEEP_METRICS_SECONDS = 90 * 86_400
"""The same of its figures of single steps."""
_BATCHES = 10
"""Transactions of one sweep that remove such figures; what is left waits for the next."""


class Outcomes:
    """For the jobs of one server. Slow: it waits for databases, stores and proofs."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def checked(self, entry: Entry, report: Mapping[str, Any]) -> None:
        """Its data is good: it may train."""
        job = entry.job
        for finding in report["warnings"]:
            first = finding["problems"][0]
            more = f" ({finding['count']} in all)" if finding["count"] > 1 else ""
            text = f"{finding['file']} line {first['line']}: {first['reason']}{more}"
            self._site.jobs.add_event(job.id, "warn", text, data={"kind": finding["kind"]})
        try:
            request = settle(job.request, report, self._site.base)
        except ValueError as error:
            self.failed(entry, Failure("invalid_training", str(error), "training", "user"))
            return
        self._site.jobs.checked(job.id, request)

    def checkpoint(self, entry: Entry, step: int, metrics: Mapping[str, float | None]) -> None:
        """Publish one; where that can't be, its owner is told and training goes on."""
        job, folder = entry.job, self._site.run_of(entry.job.id).checkpoint(step)
        if not folder.is_dir() or entry.is_unwanted:
            return
        try:
            version = self._site.publication.checkpoint(job, folder, lineage_of(job, entry.data))
        except ServerStops:
            return
        except NotPublished as error:
            text = f"The checkpoint at step {step} can't be asked: {error}"
            self._site.jobs.add_event(job.id, "warn", text)
            return
        self._site.jobs.add_checkpoint(job.id, step, version.ref_for(job.tenant), metrics)
        entry.attempts = 0

    def complete(self, entry: Entry, folder: Path, trained_tokens: int) -> None:
        """Publish the result, if its gate lets it pass."""
        job, site, gate = entry.job, self._site, entry.gate
        if entry.is_unwanted:
            self.released(entry)
            return
        if gate is not None:
            scores = {who: finite(found or {}) for who, found in gate["scores"].items()}
            data = {"passed": gate["passed"], "scores": scores, "held_out": gate["held_out"]}
            asked = "" if gate["held_out"] else " (asked what it was trained on: there is no validation file)"
            site.jobs.add_event(job.id, "info", f"Evaluation gate: {gate['reason']}{asked}", data=data)
            if not gate["passed"]:
                self.failed(entry, gate_failure(gate))
                return
        try:
            lineage = lineage_of(job, entry.data, gate["scores"] if gate is not None else None)
            version = site.publication.result(job, folder, lineage)
        except ServerStops:
            self.released(entry)
            return
        except NotPublished as error:
            self.failed(entry, kept_back(error.failure, job.id))
            return
        ref = version.ref_for(job.tenant)
        with self._results(entry, published=True) as results:
            done = site.jobs.succeed(job.id, ref, trained_tokens, results.ids, results.enter)
        if done:
            self._ended(entry, "succeeded")
        else:
            if version.lineage.job == job.id:  # it was cancelled meanwhile, maybe between two tries
                site.publication.take_back(job, version)
            self.released(entry)

    def released(self, entry: Entry) -> None:
        """It is paused or cancelled, or waits for its next turn."""
        self._site.jobs.stopped(entry.job.id, for_others=entry.gives_way)
        if entry.order == "cancel":
            self._ended(entry, "cancelled")

    def failed(self, entry: Entry, failure: Failure) -> None:
        """It ends with this, unless it was cancelled before."""
        job = entry.job
        with self._results(entry, published=False) as results:
            done = self._site.jobs.fail(job.id, failure, results.ids, results.enter)
        if not done:
            self.released(entry)
            return
        log.warning("job %s failed (%s): %s", job.id, failure.fault, failure.message)
        self._ended(entry, f"failed_{failure.fault}", failure)

    def lost(self, entry: Entry, words: str) -> None:
        """Its process died, and these were its last words."""
        if says_out_of_memory(words):
            text = f"the training ran out of memory: lower batch_size or max_length ({words})"
            self.failed(entry, Failure("out_of_memory", text, "training", "user"))
        elif entry.attempts >= MAX_ATTEMPTS:
            text = f"the process that trained it ended {entry.attempts} times; its last words: {words}"
            self.failed(entry, Failure("worker_lost", text))
        else:
            self._site.jobs.lost(entry.job.id, f"The process that trained it ended: {words}.")

    def sweep(self) -> None:
        """Remove what nobody needs any more of jobs that are over, and all of jobs that there are no more."""
        now = time.time()
        for path in self._site.folder.glob("*/"):
            try:
                job = self._site.jobs.get(LOCAL, path.name)
            except JobError:
                shutil.rmtree(path, ignore_errors=True)
                continue
            if job.status in UNFINISHED:
                continue
            if job.finished is not None and job.finished < now - KEEP_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
            else:
                self._tidy(job.id, job.error)
        for _ in range(_BATCHES):
            if not self._site.jobs.forget_metrics(now - KEEP_METRICS_SECONDS):
                break

    @contextmanager
    def _results(self, entry: Entry, *, published: bool) -> Iterator[Results]:
        """What a job gives besides its adapter; it is there only if the end of the job is written with it."""
        job, results = entry.job, Results()
        with ExitStack() as held:
            try:
                contents = result_files(self._site.run_of(job.id), job.id, published=published)
                results = held.enter_context(self._site.files.results(job, contents))
            except OSError as error:  # a full disk must not cost an adapter, nor hide why there is none
                text = f"The job's result files could not be stored: {error.strerror}"
                self._site.jobs.add_event(job.id, "warn", text)
            yield results

    def _ended(self, entry: Entry, outcome: str, failure: Failure | None = None) -> None:
        self._site.metrics.training_jobs.labels(outcome).inc()
        self._tidy(entry.job.id, failure)

    def _tidy(self, job_id: str, failure: Failure | None) -> None:
        """What was published has copies of its own; what could not be, by our fault, can be by hand."""
        run = self._site.run_of(job_id)
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        if failure is None or failure.fault == "user":
            (run.path / WEIGHTS_FILE).unlink(missing_ok=True)


def gate_failure(gate: Mapping[str, Any]) -> Failure:
    """The job trained, and what it made is not good enough to answer under its name."""
    return Failure(
        "gate_not_passed",
        f"the result is not published: {gate['reason']}; its checkpoints can still be asked",
        "training",
        "user",
    )


def kept_back(failure: Failure, job_id: str) -> Failure:
    """A result that is not published, by no fault of its user's, is there for the operator to publish."""
    if failure.fault == "user":
        return failure
    where = f"the trained adapter stays for its operator in training/jobs/{job_id} of the data directory"
    return replace(failure, message=f"{failure.message}; {where}")
