"""What a job gives besides its adapter: figures, the model card, the curve, the lineage."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from adapters.registry.lineage import LINEAGE_FILE
from training.folder import RunFolder

FIGURES = "step_metrics.csv"
"""OpenAI's name of the first of them."""
_CARD_FILE = "README.md"
_COLUMNS = (
    "step",
    "train_loss",
    "train_mean_token_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
    "learning_rate",
)
_NAMES = {
    "progress": {
        "loss": "train_loss",
        "token_accuracy": "train_mean_token_accuracy",
        "learning_rate": "learning_rate",
    },
    "evaluated": {"loss": "valid_loss", "token_accuracy": "valid_mean_token_accuracy"},
}


def result_files(run: RunFolder, job_id: str, *, published: bool) -> dict[str, bytes]:
    """Their names and contents, the figures first; none if the run took no step.

    Args:
        published: whether there is an adapter for a card and a lineage to tell of.
    """
    figures = metrics_csv(run)
    if figures is None:
        return {}
    found = {FIGURES: figures.encode()}
    paths = {f"{job_id}-curve.png": run.curve}
    if published:
        card, lineage = run.path / _CARD_FILE, run.path / LINEAGE_FILE
        paths = {f"{job_id}-card.md": card, **paths, f"{job_id}-lineage.json": lineage}
    return found | {name: path.read_bytes() for name, path in paths.items() if path.is_file()}


def metrics_csv(run: RunFolder) -> str | None:
    """The figures of each step, as OpenAI's result file has them; None: the run told none."""
    rows: dict[int, dict[str, Any]] = {}
    for event in _events(run):
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


def finite(figures: Mapping[str, float | None]) -> dict[str, float]:
    """Those that JSON has a word for."""
    return {name: value for name, value in figures.items() if value is not None and math.isfinite(value)}


def _events(run: RunFolder) -> Iterator[dict[str, Any]]:
    if not run.events.is_file():
        return
    with run.events.open("rb") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:  # the end of a process that was killed as it wrote
                continue
