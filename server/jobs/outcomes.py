"""What becomes of what a process made of a job: checkpoints and results are published, failures told."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.blobs.local import WEIGHTS_FILE
from adapters.registry.records import LOCAL
from server.jobs.errors import JobError
from server.jobs.publication import NotPublished, ServerStops, lineage_of
from server.jobs.queue import MAX_ATTEMPTS
from server.jobs.records import UNFINISHED
from server.jobs.settle import settle
from server.jobs.site import Entry, Site
from training.bounds import says_out_of_memory
from training.folder import RunFolder
from training.protocol import Failure

log = logging.getLogger(__name__)
_COLUMNS = (
    "step",
    "train_loss",
    "train_mean_token_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
    "learning_rate",
)


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
            request = settle(job.request, report)
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
            version, is_new = site.publication.result(job, folder, lineage)
        except ServerStops:
            self.released(entry)
            return
        except NotPublished as error:
            self.failed(entry, error.failure)
            return
        if site.jobs.succeed(job.id, version.ref_for(job.tenant), trained_tokens, self._results(entry)):
            self._ended(entry, "succeeded")
        else:
            if is_new:  # it was cancelled meanwhile
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
        if not self._site.jobs.fail(job.id, failure):
            self.released(entry)
            return
        log.warning("job %s failed (%s): %s", job.id, failure.fault, failure.message)
        self._ended(entry, f"failed_{failure.fault}")

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
        """Remove the weights of jobs that are over, and all of jobs that there are no more."""
        for path in self._site.folder.glob("*/"):
            try:
                job = self._site.jobs.get(LOCAL, path.name)
            except JobError:
                shutil.rmtree(path, ignore_errors=True)
                continue
            if job.status not in UNFINISHED:
                self._tidy(path.name)

    def _results(self, entry: Entry) -> list[str]:
        """Ids of the files that a job gives besides its adapter."""
        text = metrics_csv(self._site.run_of(entry.job.id))
        return [] if text is None else [self._site.files.keep_results(entry.job, text).id]

    def _ended(self, entry: Entry, outcome: str) -> None:
        self._site.metrics.training_jobs.labels(outcome).inc()
        self._tidy(entry.job.id)

    def _tidy(self, job_id: str) -> None:
        """What was published has copies of its own."""
        run = self._site.run_of(job_id)
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        (run.path / WEIGHTS_FILE).unlink(missing_ok=True)


def finite(figures: Mapping[str, float | None]) -> dict[str, float]:
    """Those that JSON has a word for."""
    return {name: value for name, value in figures.items() if value is not None and math.isfinite(value)}


def gate_failure(gate: Mapping[str, Any]) -> Failure:
    """The job trained, and what it made is not good enough to answer under its name."""
    return Failure(
        "gate_not_passed",
        f"the result is not published: {gate['reason']}; its checkpoints can still be asked",
        "training",
        "user",
    )


def metrics_csv(run: RunFolder) -> str | None:
    """The figures of each step, as OpenAI's result file has them; None: the run told none."""
    if not run.events.is_file():
        return None
    rows: dict[int, dict[str, Any]] = {}
    with run.events.open() as lines:
        for event in map(json.loads, lines):
            names = _NAMES.get(event["event"])
            if names is not None:
                found = {ours: event[theirs] for theirs, ours in names.items()}
                rows.setdefault(event["step"], {}).update(found)
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for step, row in sorted(rows.items()):
        writer.writerow({"step": step, **finite(row)})
    return text.getvalue() if rows else None


_NAMES = {
    "progress": {
        "loss": "train_loss",
        "token_accuracy": "train_mean_token_accuracy",
        "learning_rate": "learning_rate",
    },
    "evaluated": {"loss": "valid_loss", "token_accuracy": "valid_mean_token_accuracy"},
}
