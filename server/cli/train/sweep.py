"""`multilora train sweep`: train all combinations of some settings together, and say which to take."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from server.cli.exits import Exit, Failed
from server.cli.text import as_json, table
from server.cli.threads import set_threads
from server.cli.train.interrupts import Interrupts, quiet
from server.cli.train.preset import add_preset_flag, preset_fields
from server.cli.train.run import read_data
from server.cli.train.spec_flags import add_spec_flags, given_fields, make_spec
from server.cli.train.tally import Tally
from training.joint.sweep import Trial, advise, best_of, combinations, name_of
from training.spec import TrainSpec, spec_to_json

_LORA = ("rank", "alpha", "dropout")
SWEPT = (*_LORA, "learning_rate", "batch_size", "warmup", "weight_decay", "seed")
"""Fields that may have several values."""
_ALWAYS = ("rank", "alpha", "learning_rate")
"""Those that are in each name and in each row."""
_FILE = "sweep.json"
Named = dict[str, tuple[dict[str, Any], TrainSpec]]
"""By name: the values that a combination differs in, and its spec."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags, and what the command does."""
    parser.add_argument(
        "--data", metavar="FILE", type=Path, required=True, help="JSON lines with the examples"
    )
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="folder for all adapters")
    parser.add_argument("--model", metavar="M", help="folder or hub id of the base (the shipped one)")
    parser.add_argument(
        "--validation", metavar="FILE", type=Path, help="examples to compare by, never trained"
    )
    parser.add_argument("--resume", action="store_true", help="go on with what is unfinished in --output")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads on the CPU (its cores)")
    parser.add_argument("--json", action="store_true", help="print the table for programs")
    add_preset_flag(parser)
    add_spec_flags(parser, several=SWEPT)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train all, and print a table. Returns 0, 1 if nothing came of any, 130 where Ctrl-C stopped it."""
    fields = given_fields(arguments)
    count = len(sweep_specs(fields))  # wrong values are told before files are read
    set_threads(arguments.threads)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    started = time.monotonic()
    tally = Tally(count)
    try:
        with quiet(), Interrupts(tally.say) as interrupts:
            specs = sweep_specs(fields, _chosen(arguments, fields, tally))
            trials = _train(specs, arguments, tally, interrupts)
    finally:
        tally.close()
    found = to_json(trials, time.monotonic() - started)
    (arguments.output / _FILE).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(as_json(found) if arguments.json else as_text(trials, found["seconds"]))
    if interrupts.asked:
        print("stopped and saved; the same command with --resume goes on", file=sys.stderr)
        return Exit.INTERRUPTED
    if best_of(trials) is None:
        raise Failed("no combination could be trained")
    return Exit.DONE


def _chosen(arguments: argparse.Namespace, fields: Mapping[str, Any], tally: Tally) -> dict[str, Any]:
    """What the preset says of all that was not given."""
    single = {name: value for name, value in fields.items() if name not in SWEPT}
    lora = {name: value for name, value in fields["lora"].items() if name not in SWEPT}
    try:
        return preset_fields(arguments, {**single, "lora": lora}, _places(arguments), tally.say)
    except OSError as error:
        raise Failed(f"{error.filename}: {error.strerror or error}") from None
    except ValueError as error:
        raise Failed(str(error)) from None


def _places(arguments: argparse.Namespace) -> dict[str, str]:
    found = {name: getattr(arguments, name) for name in ("data", "validation", "model")}
    return {name: str(value) for name, value in found.items() if value is not None}


def sweep_specs(fields: Mapping[str, Any], beneath: Mapping[str, Any] | None = None) -> Named:
    """A spec for each combination.

    Args:
        fields: that were given, those of `SWEPT` as lists.
        beneath: all others.

    Raises:
        Failed: a value is wrong, or a combination can't train together with others.
    """
    from training.joint import can_join

    lora, defaults = fields["lora"], beneath or spec_to_json(TrainSpec())
    swept = {}
    for name in SWEPT:
        values = lora.get(name) if name in _LORA else fields.get(name)
        if values is None and name in _ALWAYS:
            values = [(defaults["lora"] if name in _LORA else defaults)[name]]
        if values is not None:
            swept[name] = values
    named: Named = {}
    for values in combinations(swept):
        own = {name: value for name, value in values.items() if name in _LORA}
        rest = {name: value for name, value in values.items() if name not in _LORA}
        spec = make_spec({**fields, **rest, "lora": {**lora, **own}}, beneath)
        reason = can_join(spec)
        if reason is not None:
            raise Failed(f"a sweep trains all together: {reason}", Exit.USAGE)
        differs = {name: value for name, value in values.items() if name in _ALWAYS or len(swept[name]) > 1}
        named[name_of(differs)] = differs, spec
    return named


def _train(specs: Named, arguments: argparse.Namespace, tally: Tally, interrupts: Interrupts) -> list[Trial]:
    from training.base import MODEL_DIR
    from training.joint import JointJob, train_together

    try:
        data = read_data(_places(arguments))
        arguments.output.mkdir(parents=True, exist_ok=True)
        jobs = [
            JointJob(
                name,
                _looked_at_once(spec, len(data.train)),
                data,
                arguments.output / name,
                resume=arguments.resume,
            )
            for name, (_, spec) in specs.items()
        ]
        interrupts.running = True
        results = train_together(
            arguments.model or MODEL_DIR, jobs, tally, lambda: specs if interrupts.asked else ()
        )
    except OSError as error:
        raise Failed(f"{error.filename or arguments.output}: {error.strerror or error}") from None
    except ValueError as error:
        raise Failed(str(error)) from None
    return [_trial(name, specs[name][0], result) for name, result in results.items()]


def _looked_at_once(spec: TrainSpec, rows: int) -> TrainSpec:
    """Evaluated at its end, unless something else was asked for: answers take longer than steps."""
    if spec.evaluate_every is not None or spec.patience is not None:
        return spec
    return replace(spec, evaluate_every=spec.total_steps(rows))


def _trial(name: str, values: Mapping[str, Any], result: Any) -> Trial:
    if isinstance(result, Exception):
        return Trial(name, values, error=f"{result}".partition("\n")[0])
    return Trial(name, values, result)


def to_json(trials: Sequence[Trial], seconds: float) -> dict[str, Any]:
    """All that the table says, for programs."""
    best = best_of(trials)
    return {
        "trials": [_entry(trial) for trial in trials],
        "best": best and best.name,
        "advice": advise(trials),
        "seconds": seconds,
    }


def _entry(trial: Trial) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": trial.name, **trial.values, "error": trial.error}
    result = trial.result
    if result is None:
        return entry
    evaluation = result.evaluation
    return {
        **entry,
        "folder": str(result.folder),
        "complete": result.complete,
        "parameters": result.trainable_parameters,
        "steps": result.steps,
        "training_loss": result.loss,
        "validation_loss": evaluation and evaluation.loss,
        "metric": evaluation and evaluation.metric,
        "score": evaluation and evaluation.score,
        "seconds": result.seconds,
    }


def as_text(trials: Sequence[Trial], seconds: float) -> str:
    """The table, best first marked with a star, then the advice."""
    best = best_of(trials)
    fields = [field for field in trials[0].values if field != "learning_rate"]
    entries = [_entry(trial) for trial in trials]
    metric = next((entry["metric"] for entry in entries if entry.get("metric")), "metric")
    header = ["", *fields, "rate", "parameters", "training loss", "validation loss", metric, "seconds"]
    rows = [
        [
            "*" if best is not None and entry["name"] == best.name else " ",
            *(f"{entry[field]:g}" for field in fields),
            f"{entry['learning_rate']:g}",
            f"{entry['parameters']:,}" if "parameters" in entry else None,
            _figure(entry.get("training_loss")),
            _figure(entry.get("validation_loss")),
            _figure(entry.get("score")),
            _figure(entry.get("seconds"), "{:.0f}"),
        ]
        for entry in entries
    ]
    failed = [f"{trial.name}: {trial.error}" for trial in trials if trial.error is not None]
    total = f"{len(trials)} trained together in {seconds:.0f} s"
    return "\n".join([table(header, rows), "", total, *failed, *advise(trials)])


def _figure(value: float | None, form: str = "{:.4f}") -> str | None:
    return None if value is None else form.format(value)
