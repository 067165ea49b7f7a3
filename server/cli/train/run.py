"""`multilora train run`: train an adapter on this machine; Ctrl-C saves, and `--resume` goes on exactly."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from server.cli.exits import Exit, Failed
from server.cli.threads import set_threads
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
    add_spec_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, and say what came of it. Returns 0, or 130 where Ctrl-C stopped it."""
    kept = _kept(arguments.output) if arguments.resume else {}
    places = {**kept.get("places", {}), **_places(arguments)}
    spec = make_spec(given_fields(arguments), kept.get("spec"))
    if "data" not in places:
        raise Failed("say what to train on: --data FILE", Exit.USAGE)
    set_threads(arguments.threads)
    bar = Bar()
    try:
        with _quiet(), _Interrupts(bar) as interrupts:
            result = _train(spec, places, arguments, bar, interrupts)
    finally:
        bar.close()
    if result.complete:
        print(_summary(result))
        return Exit.DONE
    again = f"multilora train run --output {shlex.quote(str(arguments.output))} --resume"
    print(f"stopped and saved after step {result.steps}; to go on: {again}", file=sys.stderr)
    return Exit.INTERRUPTED


class _Interrupts:
    """Ctrl-C ends the run after its step. Before the first step, and the second time, it ends the command."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self.running = self.asked = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.asked or not self.running:
            raise KeyboardInterrupt
        self.asked = True
        self._bar.say("stopping after this step, and saving; again to stop at once")


def _train(
    spec: TrainSpec,
    places: Mapping[str, str],
    arguments: argparse.Namespace,
    bar: Bar,
    interrupts: _Interrupts,
) -> RunResult:
    from training.base import MODEL_DIR
    from training.events import Event, Started
    from training.run import TrainingError, train

    def report(event: Event) -> None:
        if isinstance(event, Started):
            interrupts.running = True
            _keep(arguments.output, places)
        bar(event)

    try:
        return train(
            spec,
            places.get("model", str(MODEL_DIR)),
            _read(places),
            arguments.output,
            report=report,
            stop=lambda: interrupts.asked,
            resume=arguments.resume,
            parent=Path(places["parent"]) if "parent" in places else None,
        )
    except OSError as error:
        raise Failed(f"{error.filename or arguments.output}: {error.strerror or error}") from None
    except (ValueError, TrainingError) as error:
        raise Failed(str(error)) from None


def _read(places: Mapping[str, str]) -> TrainingData:
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Libraries say nothing: not how they load, nor what will be deprecated."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
