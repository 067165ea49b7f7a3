"""`multilora train run`: train an adapter on this machine; Ctrl-C saves, and `--resume` goes on exactly."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.cli.exits import Exit, Failed
from server.cli.threads import set_threads
from server.cli.train.interrupts import Interrupts, quiet
from server.cli.train.preset import add_preset_flag, preset_fields
from server.cli.train.progress import Bar
from server.cli.train.spec_flags import add_spec_flags, given_fields, make_spec
from training.folder import RunFolder
from training.spec import TrainSpec

if TYPE_CHECKING:
    from training.run import RunResult, TrainingData

_COMMAND = "command.json"
"""What the command was asked, beside the run's own record: for `--resume` without it all."""
_FILES = ("data", "validation", "parent")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags, and what the command does."""
    parser.add_argument("--data", metavar="FILE", type=Path, help="JSON lines with the examples")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="folder for the adapter")
    parser.add_argument("--model", metavar="M", help="folder or hub id of the base (the shipped one)")
    parser.add_argument(
        "--validation", metavar="FILE", type=Path, help="examples to evaluate on, never trained"
    )
    parser.add_argument("--parent", metavar="DIR", type=Path, help="a PEFT folder to go on from")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --output; what is not given is as it was"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads on the CPU (its cores)")
    add_preset_flag(parser)
    add_spec_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, and say what came of it. Returns 0, or 130 where Ctrl-C stopped it."""
    kept = _kept(arguments.output) if arguments.resume else {}
    places = {**kept.get("places", {}), **_places(arguments)}
    make_spec(given_fields(arguments), kept.get("spec"))  # wrong values are told before files are read
    if "data" not in places:
        raise Failed("say what to train on: --data FILE", Exit.USAGE)
    set_threads(arguments.threads)
    bar = Bar()
    try:
        with quiet(), Interrupts(bar.say) as interrupts, _reasons(arguments.output, bar):
            data = read_data(places)
            fields = given_fields(arguments)
            beneath = kept.get("spec") or preset_fields(arguments, fields, places, bar.say)
            spec = make_spec(fields, beneath)
            result = _train(spec, data, places, arguments, bar, interrupts)
    finally:
        bar.close()
    if result.complete:
        print(_summary(result))
        return Exit.DONE
    again = f"multilora train run --output {shlex.quote(str(arguments.output))} --resume"
    print(f"stopped and saved after step {result.steps}; to go on: {again}", file=sys.stderr)
    return Exit.INTERRUPTED


def _train(
    spec: TrainSpec,
    data: TrainingData,
    places: Mapping[str, str],
    arguments: argparse.Namespace,
    bar: Bar,
    interrupts: Interrupts,
) -> RunResult:
    from training.base import MODEL_DIR
    from training.events import Event, Started
    from training.run import train

    def report(event: Event) -> None:
        if isinstance(event, Started):
            interrupts.running = True
            _keep(arguments.output, places)
        bar(event)

    return train(
        spec,
        places.get("model", str(MODEL_DIR)),
        data,
        arguments.output,
        report=report,
        stop=lambda: interrupts.asked,
        resume=arguments.resume,
        parent=Path(places["parent"]) if "parent" in places else None,
    )


@contextmanager
def _reasons(output: Path, bar: Bar) -> Iterator[None]:
    """What ends a run is one line; before it, of a file, each bad line with its reason."""
    from training.run import TrainingError

    try:
        yield
    except OSError as error:
        raise Failed(
            str(error) if error.strerror is None else f"{error.filename or output}: {error.strerror}"
        ) from None
    except (ValueError, TrainingError) as error:
        first, *lines = str(error).split("\n")
        for line in lines:  # of a file: each bad line with its reason
            bar.say(line)
        raise Failed(first) from None


def read_data(places: Mapping[str, str]) -> TrainingData:
    """The files of `data` and, if it is there, `validation`.

    Raises:
        OSError: one can't be read.
        ValueError: one has bad lines.
    """
    from training.data import read_jsonl
    from training.run import TrainingData

    files = [Path(places[name]) for name in ("data", "validation") if name in places]
    rows = [read_jsonl(file) for file in files]
    digests = tuple((file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files)
    return TrainingData(rows[0], rows[1] if len(rows) > 1 else (), digests)


def _places(arguments: argparse.Namespace) -> dict[str, str]:
    """What was given of files and folders, as it is found from anywhere."""
    found = {name: str(Path(value).resolve()) for name in _FILES if (value := getattr(arguments, name))}
    if arguments.model:
        folder = Path(arguments.model)
        found["model"] = str(folder.resolve()) if folder.is_dir() else arguments.model
    return found


def _keep(output: Path, places: Mapping[str, str]) -> None:
    (RunFolder(output).run / _COMMAND).write_text(json.dumps(places, indent=2) + "\n", encoding="utf-8")


def _kept(output: Path) -> dict[str, Any]:
    """What the run in this folder was asked."""
    run = RunFolder(output)
    if not run.spec.is_file():
        raise Failed(f"{output} has no run to go on with: leave --resume out", Exit.NOT_FOUND)
    command = run.run / _COMMAND
    places = json.loads(command.read_text(encoding="utf-8")) if command.is_file() else {}
    return {"spec": json.loads(run.spec.read_text(encoding="utf-8"))["spec"], "places": places}


def _summary(result: RunResult) -> str:
    parts = [f"loss {result.loss:.3f} after {result.steps} steps in {result.seconds:.0f} s"]
    evaluation = result.evaluation
    if evaluation is not None:
        score = "" if evaluation.score is None else f", {evaluation.metric} {evaluation.score:.2f}"
        parts.append(f"validation loss {evaluation.loss:.3f}{score}")
    if result.best_step is not None:
        parts.append(f"the adapter of step {result.best_step}, with the best validation loss")
    return f"{result.folder}: {'; '.join(parts)}"
