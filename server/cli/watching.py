"""Follows a fine-tuning job on the server to its end."""

from __future__ import annotations

import argparse
import json
import sys
import time
from types import TracebackType
from typing import Any, Self

from server.cli.client import PAGE, Client, Json, path_of
from server.cli.exits import Exit, Failed
from server.cli.text import as_time, clean

POLL_SECONDS = 1.0
OVER = ("succeeded", "failed", "cancelled")


class Steps:
    """How far a job is: a bar on a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def shows(self, event: Json) -> bool:
        """Whether this is a step, which the bar shows now."""
        data = event["data"] or {}
        step, total = data.get("step"), data.get("total_steps")
        if not sys.stderr.isatty() or not isinstance(step, int) or not isinstance(total, int):
            return False
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(desc="training", unit="step", leave=False)
        self._bar.total, self._bar.n = total, step
        loss, seconds = data.get("train_loss"), data.get("seconds_left")
        shown = [f"loss {loss:.4g}"] if isinstance(loss, int | float) else []
        shown += [f"{seconds:.0f} s left"] if isinstance(seconds, int | float) else []
        self._bar.set_postfix_str(", ".join(shown))
        return True

    def clear(self) -> None:
        """Make room for a line."""
        if self._bar is not None:
            self._bar.clear()


def follow(client: Client, arguments: argparse.Namespace, job_id: str) -> int:
    """Print what the job tells until it is over; with `--json` an object a line.

    Raises:
        Failed: it has failed, or was cancelled.
    """
    last: str | None = None
    with Steps() as steps:
        while True:
            job = client.get(path_of("fine_tuning", "jobs", job_id))
            last = _events(client, arguments, job_id, last, steps)
            if job["status"] in OVER:
                break
            time.sleep(POLL_SECONDS)
    if job["status"] == "succeeded":
        return Exit.DONE
    why = (job["error"] or {}).get("message") or "the server gives no reason"
    raise Failed(f"{job_id} was cancelled" if job["status"] == "cancelled" else f"{job_id} failed: {why}")


def _events(
    client: Client, arguments: argparse.Namespace, job_id: str, last: str | None, steps: Steps
) -> str | None:
    """Print those after `last`; the id of the newest."""
    while True:
        path = path_of("fine_tuning", "jobs", job_id, "events")
        page = client.get(path, order="asc", after=last, limit=PAGE)
        for event in page["data"]:
            if arguments.json:
                print(json.dumps(event), flush=True)
            elif not steps.shows(event):
                steps.clear()
                print(as_line(event), flush=True)
            last = event["id"]
        if not page["has_more"]:
            return last


def as_line(event: Json) -> str:
    """`2026-11-21 09:30:16Z  warn  the loss is flat`."""
    level = "" if event["level"] == "info" else f"{event['level']}: "
    return f"{as_time(event['created_at'])}  {level}{clean(event['message'])}"
