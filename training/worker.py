"""The process in which a server trains: `python -m training.worker`. See `protocol.py` for what it says.

It knows nothing of the server but the two pipes. It dies with it: the newest checkpoint is what a resume has.
What is heavy is imported once the process stands back and its threads are set.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.bounds import bound_memory, is_out_of_memory, stand_back
from training.events import Event, Report, event_to_json
from training.protocol import Failure, JobWork, Work, work_from_json

if TYPE_CHECKING:
    from training.data.report import DataReport

_PIECE = 64 * 1024
_LOCK = "worker.lock"
_LOCK_SECONDS = 60.0
_MOST_CHARS = 2000
"""Of the message of an error; a data file has all its lines in `details`."""
_MOST_DETAILS = 1000

Send = Callable[[str, dict[str, Any]], None]
"""Tells something of the job with this id."""


class Stops:
    """Which jobs are to end early. A thread reads them, and ends the process when the server is gone."""

    def __init__(self, lines: Iterator[bytes], gone: Callable[[], None]) -> None:
        self.asked: set[str] = set()
        self._lines, self._gone = lines, gone
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._lines:
            self.asked.add(json.loads(line)["stop"])
        self._gone()


class Worker:
    """Does the work of one process and tells of it."""

    def __init__(self, work: Work, send: Send, asked: set[str]) -> None:
        self._work, self._send, self._asked = work, send, asked

    def run(self) -> None:
        """Train all jobs. What goes wrong with one is told, and does not touch the others."""
        if self._work.memory_bytes is not None:
            try:
                bound_memory(self._work.memory_bytes)
            except MemoryError as error:
                for job in self._work.jobs:
                    self._fail(job, error)
                return
        with ExitStack() as held:
            ready: list[tuple[JobWork, Any]] = []
            for job in self._work.jobs:
                with self._told(job):
                    if self._work.check:
                        self._check(job)
                        continue
                    held.enter_context(alone(job.folder))
                    ready.append((job, self._data(job)))
            if len(ready) == 1:
                self._train(*ready[0])
            elif ready:
                self._train_together(ready)

    def _check(self, job: JobWork) -> None:
        """Tell whether its data is good, all faults at once."""
        from transformers import AutoTokenizer

        from training.data.check import check_file

        report = check_file(
            job.train,
            validation=job.validation,
            tokenizer=AutoTokenizer.from_pretrained(self._work.base),
            task=job.spec.task,
            max_length=job.spec.max_length,
        )
        if not report.ok:
            raise BadData(report, job)
        self._send(job.id, {"event": "checked", "report": in_brief(report)})

    def _data(self, job: JobWork) -> Any:
        """Its examples."""
        from training.data import read_jsonl
        from training.run import TrainingData

        train = read_jsonl(job.train)
        validation = () if job.validation is None else read_jsonl(job.validation)
        return TrainingData(train, validation, job.data)

    def _train(self, job: JobWork, data: Any) -> None:
        from training.run import train

        with self._told(job):
            result = train(
                job.spec,
                self._work.base,
                data,
                job.folder,
                report=self._report(job),
                stop=lambda: job.id in self._asked,
                resume=job.resume,
                parent=job.parent,
            )
            self._finish(job, data, result)

    def _train_together(self, ready: Sequence[tuple[JobWork, Any]]) -> None:
        from training.joint import JointJob, train_together

        jobs = [JointJob(job.id, job.spec, data, job.folder, job.resume, job.parent) for job, data in ready]
        reports = {job.id: self._report(job) for job, _ in ready}
        done = train_together(
            self._work.base, jobs, lambda job, event: reports[job](event), lambda: {*self._asked}
        )
        for job, data in ready:
            with self._told(job):
                result = done[job.id]
                if isinstance(result, Exception):
                    raise result
                self._finish(job, data, result)

    def _finish(self, job: JobWork, data: Any, result: Any) -> None:
        if not result.complete:
            self._send(job.id, {"event": "stopped"})
            return
        if job.gate is not None:
            self._gate(job, data)
        metrics = {
            "loss": result.loss,
            "steps": result.steps,
            "seconds": result.seconds,
            "trained_tokens": result.trained_tokens,
        }
        self._send(job.id, {"event": "complete", "folder": str(result.folder), "metrics": metrics})

    def _gate(self, job: JobWork, data: Any) -> None:
        from training.gate import ASKED, gate

        assert job.gate is not None
        rows = data.validation or data.train[:ASKED]
        found = gate(self._work.base, job.folder, job.gate.current, rows, job.spec, job.gate.minimum)
        self._send(job.id, {"event": "gate", "held_out": bool(data.validation), **asdict(found)})

    def _report(self, job: JobWork) -> Report:
        def report(event: Event) -> None:
            self._send(job.id, event_to_json(event))

        return report

    @contextmanager
    def _told(self, job: JobWork) -> Iterator[None]:
        """What is raised within ends this job."""
        try:
            yield
        except Exception as error:
            self._fail(job, error)

    def _fail(self, job: JobWork, error: Exception) -> None:
        found = failure(error, self._work.memory_bytes)
        if found.fault == "server":
            traceback.print_exception(error)
        self._send(job.id, {"event": "failed", "error": found.to_json()})


class BadData(Exception):
    """Data that can't be trained on.

    Attributes:
        param: the field of the request that names the file with the first fault.
        lines: one for each fault.
    """

    def __init__(self, report: DataReport, job: JobWork) -> None:
        super().__init__(report.summary())
        files = {finding.file for finding in report.errors}
        self.param = "training_file" if job.train.name in files else "validation_file"
        self.lines = [
            f"{finding.file} line {problem.line}: {problem.reason}"
            for finding in report.errors
            for problem in finding.problems
        ]


def in_brief(report: DataReport) -> dict[str, Any]:
    """Its JSON object without what can be as large as the file: labels, and reasons that quote rows."""
    found = report.to_json()
    for statistics in (found["statistics"], found["validation"] or {}):
        statistics.pop("labels", None)
    for finding in (*found["errors"], *found["warnings"]):
        for problem in finding["problems"]:
            problem["reason"] = problem["reason"][:_MOST_CHARS]
    return found


def failure(error: Exception, memory_bytes: int | None = None) -> Failure:
    """What to tell of an error: a `ValueError` or `TrainingError` is the user's to mend, another is ours."""
    from training.run import TrainingError

    text = str(error).strip()
    lines = text.splitlines() or [type(error).__name__]
    if is_out_of_memory(error):
        room = (
            "there is" if memory_bytes is None else f"the {memory_bytes / 1024**3:.1f} GiB that it may take"
        )
        advice = "lower batch_size and raise accumulation, lower max_length, or set gradient_checkpointing"
        return Failure(
            "out_of_memory", f"the training needs more memory than {room}: {advice}", "training", "user"
        )
    if isinstance(error, TrainingError):
        return Failure(error.code, text[:_MOST_CHARS], "training", "user")
    if isinstance(error, BadData):
        details = tuple(line[:_MOST_CHARS] for line in error.lines[:_MOST_DETAILS])
        return Failure(f"invalid_{error.param}", text[:_MOST_CHARS], error.param, "user", details)
    if isinstance(error, ValueError):
        return Failure("invalid_training", text[:_MOST_CHARS], "training", "user")
    return Failure("server_error", f"{type(error).__name__}: {lines[0][:_MOST_CHARS]}")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder of a run. A process whose server was killed may still be about to end.

    Raises:
        TimeoutError: another process trains there and does not end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another process trains in {folder.name}") from None
                time.sleep(0.05)
        yield


def read_lines(handle: int) -> Iterator[bytes]:
    """The lines of a pipe until its end."""
    rest = b""
    while piece := os.read(handle, _PIECE):
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


def _load_libraries(work: Work) -> None:
    """All that is large, before memory is bounded by what there is by then."""
    if work.check:
        importlib.import_module("transformers.models.auto.tokenization_auto")
        return
    importlib.import_module("training.run")
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(work.threads)


def main() -> None:
    """Do the work that standard input names, and end with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the server gets them too, and says what is to be done
    source, target = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # what libraries print must not come between the messages
    lines = read_lines(source)
    work = work_from_json(json.loads(next(lines)))
    stand_back(work.nice)
    stops = Stops(lines, gone=lambda: os._exit(1))
    warnings.simplefilter("ignore")
    _load_libraries(work)

    def send(job: str, message: dict[str, Any]) -> None:
        data = memoryview(json.dumps({"job": job, **message}).encode() + b"\n")
        while data:
            data = data[os.write(target, data) :]

    Worker(work, send, stops.asked).run()
    sys.stderr.flush()
    os._exit(0)  # all was said; libraries take seconds to end properly


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()
