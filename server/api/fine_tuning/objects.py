"""Files, jobs, events and checkpoints as OpenAI's API shows them, and what ours adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.jobs.records import Checkpoint, Job, JobEvent, TrainingFile
from training.spec import spec_to_json

Object = dict[str, Any]
METRICS = (
    "step",
    "train_loss",
    "train_mean_token_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
    "full_valid_loss",
    "full_valid_mean_token_accuracy",
)
"""OpenAI's, of a checkpoint; null where they were not measured."""


def file_object(file: TrainingFile) -> Object:
    """Ours: `sha256`."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created),
        "expires_at": _seconds(file.expires),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
        "sha256": file.sha256,
    }


def job_object(job: Job) -> Object:
    """Ours: `name`, `training`, `promote`, `gate`, and in `error` whose `fault` it is, with `details`."""
    request = job.request
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.created),
        "finished_at": _seconds(job.finished),
        "estimated_finish": _seconds(job.estimated_finish),
        "model": request.model,
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": job.tenant,
        "status": job.status,
        "training_file": request.training_file,
        "validation_file": request.validation_file,
        "result_files": list(job.result_files),
        "trained_tokens": job.trained_tokens,
        "hyperparameters": dict(request.hyperparameters),
        "method": _method(job),
        "seed": request.spec.seed,
        "integrations": [],
        "metadata": request.metadata,
        "suffix": request.suffix,
        "error": _error(job),
        "name": request.name,
        "training": spec_to_json(request.spec),
        "promote": request.promote,
        "gate": {"on": request.gate, "minimum": request.gate_minimum},
    }


def event_object(event: JobEvent) -> Object:
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": int(event.created),
        "level": event.level,
        "type": event.type,
        "message": event.message,
        "data": None if event.data is None else dict(event.data),
    }


def checkpoint_object(checkpoint: Checkpoint) -> Object:
    """What else was measured comes after OpenAI's metrics."""
    return {
        "id": checkpoint.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(checkpoint.created),
        "fine_tuning_job_id": checkpoint.job,
        "fine_tuned_model_checkpoint": checkpoint.model,
        "step_number": checkpoint.step,
        "metrics": {**dict.fromkeys(METRICS), "step": checkpoint.step, **checkpoint.metrics},
    }


def paged(objects: Sequence[Object], limit: int) -> Object:
    """The first `limit` of `objects`, of which there is one more if there are more."""
    page = list(objects[:limit])
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(objects) > limit,
    }


def _method(job: Job) -> Object:
    method = job.request.method
    return {"type": method, method: {"hyperparameters": dict(job.request.hyperparameters)}}


def _error(job: Job) -> Object | None:
    if job.error is None:
        return None
    found = job.error.to_json()
    return {**found, "details": list(found["details"])}


def _seconds(time: float | None) -> int | None:
    return None if time is None else int(time)
