"""What a job leaves to us, decided once its data is known."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from server.jobs.records import JobRequest
from training.data.advice import auto_epochs
from training.plan.auto import MOST_TOKENS
from training.plan.batch import solve_batch
from training.plan.facts import BaseFacts, RowFacts, read_base
from training.plan.presets import modern, modern_alpha, small_batch
from training.spec import LoraSpec, TaskName, TrainSpec, require

log = logging.getLogger(__name__)

AUTO = "auto"
MOST_STEPS, MOST_CHECKPOINTS = 1_000_000, 200
"""Of one job: others wait meanwhile, and each checkpoint is a version of an adapter."""


@lru_cache(maxsize=16)
def facts_of(base: str, task: TaskName) -> BaseFacts | None:
    """The shape of a base, a folder or a hub id, for plans; None: nothing is known of it."""
    try:
        return read_base(base, task)
    except (ValueError, OSError, KeyError, AttributeError) as error:
        log.warning("what suits %s is not known: %s", base, error)
        return None


def settle(request: JobRequest, report: Mapping[str, Any], base: str) -> JobRequest:
    """`request` with a number in place of each `auto`, and the rank that its rows want if none was asked.

    Args:
        report: what `DataReport.to_json` says of its data.
        base: a folder or a hub id.

    Raises:
        ValueError: the rows are for the other method, or the run would be endless.
    """
    if report["objective"] != request.method:
        raise ValueError(
            f"{report['format']} rows are for the method {report['objective']}, and the job's is "
            f'{request.method}: create it with "method": {{"type": "{report["objective"]}"}}, or other rows'
        )
    spec, rows = request.spec, int(report["statistics"]["examples"])
    if request.hyperparameters.get("n_epochs") == AUTO and spec.steps is None:
        spec = replace(spec, epochs=auto_epochs(rows))
    if request.hyperparameters.get("batch_size") == AUTO:
        tokens = max(1, min(int(report["statistics"]["tokens"]["max"]), spec.max_length))
        rows_of_a_step = int(small_batch(RowFacts(rows, tokens=0, longest=tokens, trained=0)).value)
        batch = solve_batch(
            accumulation=spec.accumulation if spec.accumulation > 1 else None,
            usual=rows_of_a_step,
            most_rows=max(1, MOST_TOKENS // tokens),
        )
        spec = replace(spec, batch_size=batch.rows, accumulation=batch.accumulation)
    spec = replace(spec, lora=_shape(request, report, base))
    _check_length(spec, rows)
    found = {
        "n_epochs": spec.epochs,
        "batch_size": spec.effective_batch,
        "learning_rate_multiplier": 1.0,
        "beta": spec.beta,
    }
    settled = {
        name: found[name] if value == AUTO else value for name, value in request.hyperparameters.items()
    }
    return replace(request, spec=spec, hyperparameters=settled)


def _shape(request: JobRequest, report: Mapping[str, Any], base: str) -> LoraSpec:
    """As `multilora train run` would choose it, within what the job may have."""
    spec, statistics = request.spec, report["statistics"]
    facts = None if request.most_rank is None else facts_of(base, spec.task)
    if request.most_rank is None or facts is None:
        return spec.lora
    rows = RowFacts(
        rows=int(statistics["examples"]),
        tokens=int(statistics["tokens"]["total"]),
        longest=int(statistics["tokens"]["max"]),
        trained=int(statistics["trained_tokens"]["total"]),
    )
    rank = min(request.most_rank, modern(facts, rows, None)["rank"].value)
    alpha = modern_alpha(spec.lora.method, rank).value if request.alpha_follows else spec.lora.alpha
    return replace(spec.lora, rank=rank, alpha=alpha)


def _check_length(spec: TrainSpec, rows: int) -> None:
    steps = spec.total_steps(rows)
    require(
        steps <= MOST_STEPS,
        f"{spec.epochs} epochs of {rows} rows are {steps} steps; the most is {MOST_STEPS}: raise batch_size",
    )
    every = spec.save_every or spec.evaluate_every or steps
    if spec.patience is not None:  # each evaluation that is the best so far is saved too
        every = min(every, spec.evaluate_every or every)
    count = steps // max(1, every)
    require(
        count <= MOST_CHECKPOINTS,
        f"{steps} steps with a checkpoint every {every} make {count} of them, and the most is "
        f"{MOST_CHECKPOINTS}: raise save_every or evaluate_every",
    )
