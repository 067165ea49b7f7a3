"""A whole `TrainSpec` from facts: a preset's choices, what was asked for, and what fits into memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from training.plan.batch import Batch, solve_batch
from training.plan.facts import BaseFacts, RowFacts
from training.plan.memory import USABLE, Memory, estimate
from training.plan.presets import CHOOSERS, Choice, PresetName, modern_alpha
from training.spec import LoraSpec, TrainSpec, require

MOST_TOKENS = 8192
"""Of one forward pass, where no memory was named: enough to keep a device busy."""
LORA_FIELDS = frozenset(field.name for field in fields(LoraSpec))
SPEC_FIELDS = frozenset(field.name for field in fields(TrainSpec)) - {"lora"}
BATCH_FIELDS = frozenset({"batch_size", "accumulation", "effective_batch", "devices"})
ASKED = "as asked"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A spec with the reason for each choice.

    Attributes:
        tokens: of the longest row as it trains.
        memory: of one device.
        fits: whether nine tenths of the memory that was named hold it; None: none was named.
    """

    preset: PresetName
    spec: TrainSpec
    batch: Batch
    reasons: Mapping[str, str]
    tokens: int
    memory: Memory
    fits: bool | None


def choose(
    base: BaseFacts,
    rows: RowFacts,
    preset: PresetName = "modern",
    *,
    cuda: bool = False,
    gpu_bytes: int | None = None,
    given: Mapping[str, Any] | None = None,
) -> Chosen:
    """Fill in all that is not given.

    Args:
        cuda: whether it trains on a GPU; decides the precision.
        gpu_bytes: its memory: batch, checkpointing and QLoRA are chosen so that the run fits.
        given: fields of `TrainSpec` and `LoraSpec`, `effective_batch` and `devices`, that stay as they are.

    Raises:
        ValueError: a field that there is not, a value that can't be, or batch numbers that contradict.
    """
    asked = dict(given or {})
    unknown = sorted(asked.keys() - LORA_FIELDS - SPEC_FIELDS - BATCH_FIELDS)
    require(not unknown, f"there is no {', '.join(unknown)} to choose")
    choices = CHOOSERS[preset](base, rows, gpu_bytes) | _common(base, rows, cuda, gpu_bytes)
    choices |= {name: Choice(value, ASKED) for name, value in asked.items()}
    if preset == "tutorial" and "rank" in asked and "alpha" not in asked:
        choices["alpha"] = Choice(2.0 * asked["rank"], "twice the rank")
    if preset == "modern" and "alpha" not in asked:
        choices["alpha"] = modern_alpha(choices["method"].value, choices["rank"].value)
    tokens = min(rows.longest, choices["max_length"].value)
    found: Chosen | None = None
    for candidate in _ladder(choices, asked, tokens, gpu_bytes):
        spec, batch = _spec(candidate, asked)
        memory = estimate(base, spec, tokens, cuda=cuda, counted=min(1.0, rows.trained / rows.tokens))
        fits = None if gpu_bytes is None else memory.full <= USABLE * gpu_bytes
        reasons = {name: choice.reason for name, choice in candidate.items()}
        found = Chosen(preset, spec, batch, reasons, tokens, memory, fits)
        if fits is not False:
            break
    assert found is not None
    return found


def _common(base: BaseFacts, rows: RowFacts, cuda: bool, gpu_bytes: int | None) -> dict[str, Choice]:
    """What both presets choose alike."""
    length = max(2, -(-rows.longest // 64) * 64)
    length_reason = f"the longest row has {rows.longest} tokens"
    if base.max_length and length > base.max_length:
        length, length_reason = base.max_length, f"the base reads no more; {length_reason}"
    precision = Choice("bfloat16", "half precision saves memory and is faster on a GPU")
    if not cuda:
        precision = Choice("float32", "on a CPU, exact and not slower")
    return {
        "task": Choice(rows.task, "what the file's rows are for"),
        "objective": Choice(rows.objective, "what the file's rows are for"),
        "max_length": Choice(length, length_reason),
        "precision": precision,
        "optimizer": Choice("adamw", "a rate of its own for each value; the texts' advice, too"),
        "warmup": Choice(0.05, "share of the steps: Adam's first steps, which know little, stay small"),
        "max_grad_norm": Choice(1.0, "the usual limit: no single batch throws the run off"),
        "bias": Choice("none", "the base's biases are good as they are"),
        "method": Choice("lora", "the plain method"),
        "gradient_checkpointing": Choice(
            False, "there is room without" if gpu_bytes else "no memory was named"
        ),
    }


def _ladder(
    choices: dict[str, Choice], asked: Mapping[str, Any], tokens: int, gpu_bytes: int | None
) -> Iterator[dict[str, Choice]]:
    """What to try, the fastest first: fewer rows a pass, then checkpointing, then a base in NF4."""
    methods = [choices["method"]]
    if gpu_bytes is not None and "method" not in asked:
        methods.append(Choice("qlora", "the base fits only in 4 bits"))
    checkpointing = [choices["gradient_checkpointing"]]
    if gpu_bytes is not None and "gradient_checkpointing" not in asked:
        checkpointing.append(
            Choice(True, "activations are computed again instead of kept: a third more work")
        )
    most = None if gpu_bytes is not None else max(1, MOST_TOKENS // tokens)
    for method in methods:
        for saving in checkpointing:
            for batch in _batches(choices, asked, most):
                yield choices | batch | {"method": method, "gradient_checkpointing": saving}


def _batches(
    choices: dict[str, Choice], asked: Mapping[str, Any], most: int | None
) -> Iterator[dict[str, Choice]]:
    """Each way to make the effective batch, most rows at a time first."""
    given = {name: asked.get(name) for name in ("accumulation", "effective_batch", "devices")}
    usual = choices["effective_batch"].value
    effective = given["effective_batch"]
    while True:
        batch = solve_batch(
            asked.get("batch_size"),
            given["accumulation"],
            effective,
            given["devices"],
            usual=usual,
            most_rows=most,
        )
        made = {
            "batch_size": Choice(batch.rows, "rows of one pass"),
            "accumulation": Choice(
                batch.accumulation, f"{batch.rows} x {batch.accumulation} x {batch.devices}"
            ),
            "devices": Choice(batch.devices, "one process trains on one device"),
            "effective_batch": Choice(batch.effective, choices["effective_batch"].reason),
        }
        yield made | {name: Choice(made[name].value, ASKED) for name in BATCH_FIELDS & asked.keys()}
        if batch.rows == 1 or "batch_size" in asked or (given["accumulation"] and effective):
            return
        most = batch.rows - 1


def _spec(choices: Mapping[str, Choice], asked: Mapping[str, Any]) -> tuple[TrainSpec, Batch]:
    values = {name: choice.value for name, choice in choices.items()}
    lora = LoraSpec(**{name: value for name, value in values.items() if name in LORA_FIELDS})
    batch = Batch(values["batch_size"], values["accumulation"], values["devices"])
    spec = TrainSpec(lora, **{name: value for name, value in values.items() if name in SPEC_FIELDS})
    return spec, batch
