"""`GET /v1/fine_tuning/model_limits`: what may be asked of a job here."""

from __future__ import annotations

from typing import get_args

from fastapi import APIRouter

from server.api.auth import CurrentCaller
from server.api.context import Context
from server.api.fine_tuning.asked import TASKS, longest, methods, most_rank
from server.api.fine_tuning.objects import Object
from server.api.fine_tuning.schemas import MAX_BATCH, MAX_BETA, MAX_EPOCHS, MAX_MULTIPLIER, MAX_STEPS
from server.api.fine_tuning.service import CurrentService
from server.jobs.store import MAX_UNFINISHED
from server.settings import MIB
from training.data.examples import FormatName
from training.spec import Objective, Optimizer, Schedule

router = APIRouter()


@router.get("/v1/fine_tuning/model_limits")
async def get_limits(context: Context, caller: CurrentCaller, service: CurrentService) -> Object:
    """Methods, tasks, sizes and modules; numbers are the most unless they say otherwise."""
    quota = context.registry.tenants.quota(caller.tenant)
    tasks = TASKS[context.base.kind]
    names = sorted({name.rpartition(".")[2] for name in context.base.linears})
    return {
        "object": "fine_tuning.model_limits",
        "model": context.base.name,
        "methods": list(methods(context)),
        "objectives": [name for name in get_args(Objective) if name != "dpo" or "CAUSAL_LM" in tasks],
        "tasks": list(tasks),
        "optimizers": list(get_args(Optimizer)),
        "schedules": list(get_args(Schedule)),
        "target_modules": ["all-linear", "default", *names],
        "rank": most_rank(context, caller),
        "max_length": longest(context),
        "n_epochs": MAX_EPOCHS,
        "steps": MAX_STEPS,
        "batch_size": MAX_BATCH,
        "learning_rate_multiplier": MAX_MULTIPLIER,
        "beta": MAX_BETA,
        "formats": list(get_args(FormatName)),
        "file_bytes": context.settings.max_training_file_mb * MIB,
        "all_file_bytes": quota.max_file_bytes,
        "jobs": min(MAX_UNFINISHED, MAX_UNFINISHED if quota.max_jobs is None else quota.max_jobs),
    }
