"""From the fields of a request to a complete `JobRequest`: every bound, and what contradicts itself."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any, get_args

from adapters.base import BaseKind
from adapters.errors import AdapterNotFound, InvalidName
from adapters.registry.names import check_new_name
from adapters.registry.records import AdapterVersion, Caller
from server.api.context import ServerContext
from server.api.errors import APIError, model_not_found
from server.api.fine_tuning.rates import usual_precision, usual_rate
from server.api.fine_tuning.schemas import (
    MAX_BATCH,
    MAX_BETA,
    MAX_EPOCHS,
    MAX_MULTIPLIER,
    MAX_STEPS,
    SEED,
    JobFields,
)
from server.api.schemas import invalid
from server.jobs.records import JobRequest, is_job_id
from server.jobs.settle import AUTO
from training.plan.presets import modern_alpha
from training.spec import LoraSpec, Method, Objective, TaskName, TrainSpec, spec_from_json

TASKS: Mapping[BaseKind, tuple[TaskName, ...]] = {
    "decoder": ("CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS"),
    "encoder": ("SEQ_CLS", "TOKEN_CLS"),
    "encoder-decoder": ("SEQ_2_SEQ_LM",),
}
"""What an adapter of a base can be trained for here; the first is meant where nothing is said."""
MAX_ITEMS, MAX_CHARS = 1000, 32_768
"""Of each list of modules: a page has as many of them as it has jobs."""
_MODULE = re.compile(r"[A-Za-z0-9_.-]{1,200}")
_TWICE = (
    ("n_epochs", "epochs"),
    ("n_epochs", "steps"),
    ("batch_size", "batch_size"),
    ("learning_rate_multiplier", "learning_rate"),
    ("beta", "beta"),
)
"""OpenAI's hyperparameters, and fields of `training` that say the same."""


def as_request(context: ServerContext, caller: Caller, fields: JobFields, job_id: str) -> JobRequest:
    """What was asked, with all that is left out.

    Raises:
        APIError: a 404 for a model that the caller can't see, else a 400; both name the field.
    """
    parent = _parent(context, caller, fields.model)
    method, hyperparameters = _method(fields)
    spec = _spec(context, caller, fields, method, hyperparameters, parent)
    given = fields.training or {}
    shape = given.get("lora", {})
    rank_is_ours = parent is None and "rank" not in shape
    for theirs, ours in _TWICE:
        if ours in given and theirs in hyperparameters and ours != "steps":
            hyperparameters[theirs] = getattr(spec, ours)
    if "learning_rate" in given:
        hyperparameters["learning_rate_multiplier"] = spec.learning_rate / usual_rate(
            context.settings, spec.task
        )
    return JobRequest(
        model=fields.model,
        name=_name(context, fields.suffix, job_id),
        training_file=fields.training_file,
        spec=spec,
        validation_file=fields.validation_file,
        parent=None if parent is None else f"{parent.tenant}/{parent.name}@{parent.version}",
        parent_digest=None if parent is None else parent.digest,
        suffix=fields.suffix,
        method=method,
        hyperparameters=hyperparameters,
        promote=fields.promote,
        gate=fields.gate.on,
        gate_minimum=fields.gate.minimum,
        metadata=fields.metadata,
        most_rank=most_rank(context, caller) if rank_is_ours else None,
        alpha_follows=rank_is_ours and "alpha" not in shape,
    )


def methods(context: ServerContext) -> tuple[Method, ...]:
    """Of adapters that can be trained here: a base that is quantised is trained on as it is."""
    return get_args(Method) if context.base.quantization is None else ("qlora",)


def longest(context: ServerContext) -> int:
    """Tokens of a row, at most: what is longer could not be asked either."""
    return context.engine.max_model_len


def most_rank(context: ServerContext, caller: Caller) -> int:
    """Of an adapter that may be published afterwards."""
    quota = context.registry.tenants.quota(caller.tenant).max_rank
    most = context.settings.max_adapter_rank
    return most if quota is None else min(most, quota)


def _parent(context: ServerContext, caller: Caller, model: str) -> AdapterVersion | None:
    if model == context.base.name:
        return None
    try:  # as its tenant, even for operators: so the job will look again when it runs
        return context.registry.resolve(model, Caller(caller.tenant))
    except AdapterNotFound:
        raise model_not_found(model) from None


def _name(context: ServerContext, suffix: str | None, job_id: str) -> str:
    if not suffix:
        return f"ft-{job_id.removeprefix('ftjob-')[:12]}"
    try:
        check_new_name(suffix, context.base.name)
    except InvalidName as error:
        raise APIError(400, f"suffix: {error}", param="suffix", code="invalid_name") from None
    if is_job_id(suffix):
        raise APIError(400, "suffix: names like this are those of jobs", param="suffix", code="invalid_name")
    return suffix


def _method(fields: JobFields) -> tuple[Objective, dict[str, Any]]:
    """The method, and its hyperparameters where one is given anywhere."""
    method, old = fields.method, fields.hyperparameters
    kind: Objective = "dpo" if method is not None and method.type == "dpo" else "supervised"
    if method is not None:
        other = "supervised" if kind == "dpo" else "dpo"
        if getattr(method, other) is not None:
            raise invalid(f"method.{other}", f"method.type is {kind}")
    part = None if method is None else getattr(method, kind)
    new = None if part is None else part.hyperparameters
    if new is not None and old is not None:
        raise invalid("hyperparameters", f"give either this or method.{kind}.hyperparameters")
    found = new or old
    given = {} if found is None else found.given()
    names = ("n_epochs", "batch_size", "learning_rate_multiplier", *(("beta",) if kind == "dpo" else ()))
    return kind, {name: given.get(name, AUTO) for name in names}


def _spec(
    context: ServerContext,
    caller: Caller,
    fields: JobFields,
    method: Objective,
    hyperparameters: Mapping[str, Any],
    parent: AdapterVersion | None,
) -> TrainSpec:
    found = dict(fields.training or {})
    _check_twice(found, hyperparameters, fields)
    tasks = TASKS[context.base.kind]
    if parent is not None and parent.task in tasks:
        tasks = (parent.task,)
    found.setdefault("task", tasks[0])
    if found.setdefault("objective", method) != method:
        raise invalid("training.objective", f"method.type says {method}")
    found.setdefault("max_length", longest(context))
    if isinstance(lora := found.get("lora", {}), dict):
        found["lora"] = _lora(lora, methods(context)[0], most_rank(context, caller), parent)
    found.setdefault("precision", usual_precision(context.settings))
    found.setdefault("seed", secrets.randbelow(SEED) if fields.seed is None else fields.seed)
    numbers = {name: value for name, value in hyperparameters.items() if value != AUTO}
    if "n_epochs" in numbers:
        found["epochs"] = numbers["n_epochs"]
    if "batch_size" in numbers:
        found["batch_size"] = numbers["batch_size"]
    if "beta" in numbers:
        found["beta"] = numbers["beta"]
    if "learning_rate" not in found:
        times = numbers.get("learning_rate_multiplier", 1.0)
        found["learning_rate"] = usual_rate(context.settings, tasks[0]) * times
    try:
        spec = spec_from_json(found)
    except ValueError as error:
        raise invalid("training", str(error)) from None
    _check_bounds(context, caller, spec, tasks)
    return spec


def _lora(
    given: Mapping[str, Any], method: Method, most: int, parent: AdapterVersion | None
) -> dict[str, Any]:
    """With what is left out; the rank may still grow when the data is known."""
    found = {"method": method, **given}
    if parent is None:
        found.setdefault("rank", min(LoraSpec.rank, most))
        if found["rank"] in range(1, most + 1):  # others are refused later
            found.setdefault("alpha", modern_alpha(str(found["method"]), found["rank"]).value)
    return found


def _check_twice(found: Mapping[str, Any], hyperparameters: Mapping[str, Any], fields: JobFields) -> None:
    for theirs, ours in _TWICE:
        if ours in found and hyperparameters.get(theirs, AUTO) != AUTO:
            raise invalid(f"training.{ours}", f"the hyperparameter {theirs} says it too; give one of them")
    if "seed" in found and fields.seed is not None:
        raise invalid("training.seed", "the field seed says it too; give one of them")


def _check_bounds(
    context: ServerContext, caller: Caller, spec: TrainSpec, tasks: tuple[TaskName, ...]
) -> None:
    lora, most = spec.lora, most_rank(context, caller)
    if lora.method not in methods(context):
        raise invalid(
            "training.lora.method",
            f"this base is quantised ({context.base.quantization}): take qlora instead of {lora.method}, "
            "or leave the method out",
        )
    if spec.task not in tasks:
        raise invalid("training.task", f"{context.base.name} can be trained for {', '.join(tasks)}")
    if spec.device != "auto":
        raise invalid("training.device", "the operator of this server says where it trains")
    for name, value, limit in (
        ("max_length", spec.max_length, longest(context)),
        ("learning_rate", spec.learning_rate, MAX_MULTIPLIER * usual_rate(context.settings, spec.task)),
        ("beta", spec.beta, MAX_BETA),
        ("epochs", spec.epochs, MAX_EPOCHS),
        ("steps", spec.steps or 0, MAX_STEPS),
        ("batch_size", spec.effective_batch, MAX_BATCH),
        ("evaluate_every", spec.evaluate_every or 0, MAX_STEPS),
        ("save_every", spec.save_every or 0, MAX_STEPS),
        ("patience", spec.patience or 0, MAX_STEPS),
        ("lora.rank", max(lora.rank, *lora.rank_pattern.values(), 0), most),
        ("lora.layers", max(len(lora.layers), *lora.layers, 0), MAX_ITEMS),
    ):
        if value > limit:
            what = "batch_size times accumulation is" if name == "batch_size" else "is"
            raise invalid(f"training.{name}", f"{what} {value}; the most is {limit}")
    if not 0 <= spec.seed < SEED:
        raise invalid("training.seed", f"must be from 0 to below {SEED}")
    targets = lora.target_modules
    for name, modules in (
        ("target_modules", (targets,) if isinstance(targets, str) else targets),
        ("modules_to_save", lora.modules_to_save),
        ("rank_pattern", tuple(lora.rank_pattern)),
        ("alpha_pattern", tuple(lora.alpha_pattern)),
    ):
        _check_modules(f"training.lora.{name}", modules)


def _check_modules(param: str, modules: tuple[str, ...]) -> None:
    """Names alone: a pattern from a stranger can take for ever."""
    if len(modules) > MAX_ITEMS or sum(map(len, modules)) > MAX_CHARS:
        raise invalid(param, f"at most {MAX_ITEMS}, of {MAX_CHARS} characters together")
    for module in modules:
        if not _MODULE.fullmatch(module):
            raise invalid(param, f"{module[:100]!r} is not a module's name, all-linear or default")
