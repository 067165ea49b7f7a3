"""`multilora train plan`: what a run would be, both presets side by side, and why."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from server.cli.exits import Failed
from server.cli.text import as_json, as_size, clean, table
from training.spec import Method

if TYPE_CHECKING:
    from training.plan import Plan
    from training.plan.plan import Option

_GIVEN = {
    "method": "method",
    "rank": "rank",
    "alpha": "alpha",
    "targets": "target_modules",
    "batch_size": "batch_size",
    "accumulation": "accumulation",
    "effective": "effective_batch",
    "devices": "devices",
    "epochs": "epochs",
    "learning_rate": "learning_rate",
    "max_length": "max_length",
}
"""Flags that say a choice, with the field that they say."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags, and what the command does."""
    parser.add_argument("--model", metavar="M", help="the base: folder or hub id (default: the shipped base)")
    parser.add_argument(
        "--data", metavar="FILE", type=Path, required=True, help="JSON lines with the examples"
    )
    parser.add_argument("--gpu", metavar="24GB", help="memory of the GPU that it has to fit")
    parser.add_argument(
        "--preset",
        choices=("modern", "tutorial"),
        default="modern",
        help="whose reasons and memory are shown (modern)",
    )
    parser.add_argument(
        "--method", choices=get_args(Method), help="instead of lora, or qlora where that alone fits"
    )
    parser.add_argument("--rank", metavar="R", type=int, help="of the adapter")
    parser.add_argument("--alpha", type=float, help="its strength is alpha over rank")
    parser.add_argument("--targets", metavar="NAMES", help="all-linear, default, or names with commas")
    parser.add_argument("--batch-size", metavar="B", type=int, help="rows of one pass on one device")
    parser.add_argument("--accumulation", metavar="A", type=int, help="passes of one step")
    parser.add_argument("--effective", metavar="E", type=int, help="rows of one step: B x A x D")
    parser.add_argument("--devices", metavar="D", type=int, help="that train together")
    parser.add_argument("--epochs", type=int, help="passes over the rows")
    parser.add_argument("--learning-rate", type=float, help="the highest of the run")
    parser.add_argument("--max-length", type=int, help="tokens of a row; longer ones are cut")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument(
        "--rate", metavar="TOKENS", type=float, help="tokens a second, as an earlier run had them"
    )
    rate.add_argument("--measure", action="store_true", help="time real steps on this machine")
    parser.add_argument("--json", action="store_true", help="all of it for programs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan. Returns 0; 1 where the preset that was asked for does not fit the GPU."""
    plan = _plan(arguments)
    option = plan.options[arguments.preset]
    if arguments.json:
        print(as_json(plan.to_json()))
    else:
        print("\n\n".join((_facts(plan), _side_by_side(plan), _memory(option), _reasons(option))))
    if option.remedy is None:
        return 0
    assert plan.gpu_bytes is not None
    raise Failed(
        f"{arguments.preset} needs {as_size(option.chosen.memory.full)} and does not fit "
        f"{as_size(plan.gpu_bytes)}, of which a tenth stays free; what would: {option.remedy}"
    )


def _plan(arguments: argparse.Namespace) -> Plan:
    from transformers.utils import logging

    from training.base import MODEL_DIR
    from training.plan import make_plan, parse_memory, read_base, read_rows

    logging.disable_progress_bar()
    base = arguments.model or MODEL_DIR
    given: dict[str, Any] = {
        field: value for flag, field in _GIVEN.items() if (value := getattr(arguments, flag)) is not None
    }
    if "target_modules" in given and given["target_modules"] not in ("all-linear", "default"):
        given["target_modules"] = tuple(given["target_modules"].split(","))
    try:
        gpu = parse_memory(arguments.gpu) if arguments.gpu else None
        rows = read_rows(arguments.data, base)
        return make_plan(
            read_base(base, rows.task, rows.classes),
            rows,
            cuda=gpu is not None,
            gpu_bytes=gpu,
            given=given,
            rate=arguments.rate,
            measured_on=base if arguments.measure else None,
        )
    except OSError as error:
        raise Failed(f"{arguments.data}: {error.strerror}") from None
    except ValueError as error:
        raise Failed(str(error)) from None


def _facts(plan: Plan) -> str:
    base, rows = plan.base, plan.rows
    skipped = f", {rows.skipped:,} without a token to learn" if rows.skipped else ""
    return (
        f"{clean(base.name)}: {base.model_type}, {base.parameters:,} parameters\n"
        f"{rows.rows:,} rows{skipped}; {rows.tokens:,} tokens, {rows.trained:,} of them learned; "
        f"the longest row has {rows.longest:,}\n"
        f"5% of the base, a rule of the texts, is rank {_ranks(plan)}"
    )


def _ranks(plan: Plan) -> str:
    return " or ".join(f"{rank:,} on {layers} layers" for layers, rank in plan.five_percent.items())


def _side_by_side(plan: Plan) -> str:
    columns = [_column(option) for option in plan.options.values()]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    return table(["", *plan.options], rows)


def _column(option: Option) -> dict[str, str]:
    chosen, spec, lora = option.chosen, option.chosen.spec, option.chosen.spec.lora
    targets = lora.target_modules
    memory = chosen.memory
    batch = chosen.batch
    devices = f" x {batch.devices} devices" if batch.devices > 1 else ""
    return {
        "method": lora.method,
        "rank, alpha": f"{lora.rank}, {lora.alpha:g}",
        "targets": targets if isinstance(targets, str) else ",".join(targets),
        "dropout": f"{lora.dropout:g}",
        "learning rate": f"{spec.learning_rate:g}",
        "batch": f"{batch.rows} rows x {batch.accumulation} passes{devices} = {batch.effective}",
        "epochs, steps": f"{spec.epochs}, {option.steps:,}",
        "row length": f"{chosen.tokens:,} of {spec.max_length:,} tokens",
        "precision": spec.precision + (", checkpointing" if spec.gradient_checkpointing else ""),
        "trainable": f"{option.trainable.trainable:,} ({option.trainable.share:.3%})",
        "memory, (1+4m)x": f"{as_size(memory.rule)} (full training: {as_size(memory.full_training)})",
        "memory, in full": as_size(memory.full)
        + {True: ", fits", False: ", does NOT fit", None: ""}[chosen.fits],
        "time": f"{_time(option.duration.seconds)} ({option.duration.source})",
    }


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def _memory(option: Option) -> str:
    memory = option.chosen.memory
    rows = [(part.name, as_size(part.size), part.formula) for part in memory.parts if part.size]
    return f"memory of {option.chosen.preset}\n" + table(["part", "size", "from"], rows)


def _reasons(option: Option) -> str:
    chosen = option.chosen
    values = {**_fields(chosen.spec), **_fields(chosen.spec.lora)}
    values |= {"effective_batch": chosen.batch.effective, "devices": chosen.batch.devices}
    rows = [(name, values[name], reason) for name, reason in chosen.reasons.items()]
    return f"reasons of {chosen.preset}\n" + table(
        ["choice", "value", "why"], [*rows, ("time", option.duration.source, option.duration.said)]
    )


def _fields(spec: Any) -> dict[str, Any]:
    """The fields of a dataclass, as they are."""
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}
