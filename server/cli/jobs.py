"""`multilora jobs`: fine-tuning jobs on the server."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from server.cli.client import Client, Json, path_of
from server.cli.exits import Exit, Failed
from server.cli.remote import add_remote, connect, show
from server.cli.text import as_time, fields, table
from server.cli.training_files import is_file_id, send
from server.cli.watching import follow

HEADER = ("JOB", "STATUS", "MODEL", "NAME", "RESULT", "CREATED", "FINISHED")
CHECKPOINTS = ("STEP", "MODEL", "TRAIN LOSS", "VALID LOSS", "CREATED")
METHODS = ("lora", "rslora", "dora", "qlora", "adalora", "lora-ga", "pissa", "olora", "eva")
_CHANGES = {
    "cancel": "end a job for good",
    "pause": "stop a job where it is",
    "resume": "have a paused job go on",
}


def add_jobs(parser: argparse.ArgumentParser) -> None:
    verbs: Any = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_create(verbs.add_parser("create", help="have an adapter trained", allow_abbrev=False))
    ls = verbs.add_parser("ls", help="list the jobs, newest first", allow_abbrev=False)
    add_remote(ls, list_jobs)
    for verb, text, run in (
        ("show", "show all that is known of a job", show_job),
        ("watch", "follow a job to its end", watch_job),
        ("checkpoints", "list the checkpoints of a job, which can be asked as models", list_checkpoints),
    ):
        added = verbs.add_parser(verb, help=text, allow_abbrev=False)
        _add_id(added)
        add_remote(added, run)
    for verb, text in _CHANGES.items():
        added = verbs.add_parser(verb, help=text, allow_abbrev=False)
        _add_id(added)
        add_remote(added, _change(verb))


def _add_id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="JOB", type=job_id, help="its id, which jobs ls shows")


def _add_create(parser: argparse.ArgumentParser) -> None:
    parser.description = "Have an adapter trained on the server. Prints the job's id; --watch follows it."
    parser.add_argument(
        "data", metavar="DATA", help="file to train on: a path, which is sent, or a file's id"
    )
    parser.add_argument("--validation", metavar="DATA", help="file to validate on: a path or a file's id")
    parser.add_argument("--name", help="of the adapter (default: ft- and the beginning of the job's id)")
    parser.add_argument("--model", metavar="REF", help="adapter to go on from (default: the base)")
    group = parser.add_argument_group("training")
    group.add_argument("--method", choices=METHODS)
    group.add_argument("--dpo", action="store_true", help="the data are preferences")
    for flag, kind, text in (
        ("rank", int, "of the adapter (default: by the tokens to learn)"),
        ("alpha", float, "of the adapter"),
        ("epochs", int, "passes over the data (default: by its size)"),
        ("batch-size", int, "rows of one step"),
        ("learning-rate", float, ""),
        ("seed", int, "(default: by chance)"),
    ):
        group.add_argument(f"--{flag}", metavar="N", type=kind, help=text or None)
    group.add_argument("--training", metavar="FILE", type=Path, help="JSON with further fields of `training`")
    promote = parser.add_mutually_exclusive_group()
    promote.add_argument("--promote", action="store_true", help="let the name mean the result in any case")
    promote.add_argument("--no-promote", action="store_true", help="leave the name where it is")
    parser.add_argument("--no-gate", action="store_true", help="publish the result whatever it can do")
    parser.add_argument(
        "--metadata", metavar="KEY=VALUE", type=pair, action="append", help="to find it by; repeat for more"
    )
    parser.add_argument("--watch", action="store_true", help="follow it to its end")
    add_remote(parser, create)


def job_id(text: str) -> str:
    """An argument that is a job's id."""
    if re.fullmatch(r"ftjob-[0-9a-f]{24}", text) is None:
        raise argparse.ArgumentTypeError("takes an id such as ftjob-0123456789abcdef01234567")
    return text


def pair(text: str) -> tuple[str, str]:
    """An argument such as `team=search`."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def create(arguments: argparse.Namespace) -> int:
    """Send what has to be sent, and begin."""
    training = _training(arguments)
    with connect(arguments) as client:
        model = arguments.model or client.get(path_of("fine_tuning", "model_limits"))["model"]
        body: Json = {"model": model, "training_file": _file(client, arguments.data)}
        if arguments.validation is not None:
            body["validation_file"] = _file(client, arguments.validation)
        if arguments.name is not None:
            body["suffix"] = arguments.name
        if arguments.dpo:
            body["method"] = {"type": "dpo"}
        if arguments.metadata:
            body["metadata"] = dict(arguments.metadata)
        if arguments.promote or arguments.no_promote:
            body["promote"] = "yes" if arguments.promote else "no"
        if arguments.no_gate:
            body["gate"] = {"on": False}
        if training:
            body["training"] = training
        job = client.post(path_of("fine_tuning", "jobs"), body)
        if not arguments.watch:
            show(arguments, job, lambda: str(job["id"]))
            return 0
        print(json.dumps(job) if arguments.json else job["id"], flush=True)
        return follow(client, arguments, job["id"])


def _training(arguments: argparse.Namespace) -> Json:
    """What flags and the file say; flags win."""
    found: Any = {}
    if arguments.training is not None:
        try:
            found = json.loads(arguments.training.read_bytes())
        except (OSError, ValueError) as error:
            raise Failed(f"{arguments.training}: {getattr(error, 'strerror', None) or error}") from None
        if not isinstance(found, dict) or not isinstance(found.setdefault("lora", {}), dict):
            raise Failed(f"{arguments.training}: takes a JSON object, and one as its field lora")
    lora = dict(found.pop("lora", {}))
    for name in ("method", "rank", "alpha"):
        if (value := getattr(arguments, name)) is not None:
            lora[name] = value
    for name in ("epochs", "batch_size", "learning_rate", "seed"):
        if (value := getattr(arguments, name)) is not None:
            found[name] = value
    return {**found, "lora": lora} if lora else dict(found)


def _file(client: Client, data: str) -> str:
    """The id of a file, which is sent if it is a path."""
    return data if is_file_id(data) else str(send(client, Path(data))["id"])


def list_jobs(arguments: argparse.Namespace) -> int:
    """Print the jobs."""
    with connect(arguments) as client:
        found = client.pages(path_of("fine_tuning", "jobs"))
    rows = (
        (
            job["id"],
            job["status"],
            job["model"],
            job["name"],
            job["fine_tuned_model"],
            as_time(job["created_at"]),
            as_time(job["finished_at"]),
        )
        for job in found
    )
    show(arguments, {"object": "list", "data": found}, lambda: table(HEADER, rows))
    return 0


def show_job(arguments: argparse.Namespace) -> int:
    """Print one job."""
    with connect(arguments) as client:
        job = client.get(path_of("fine_tuning", "jobs", arguments.id))
        results = [] if arguments.json else [_named(client, file) for file in job["result_files"]]
    show(arguments, job, lambda: as_text(job, results))
    return 0


def _named(client: Client, file: str) -> str:
    """The file's id and name; the name is left out where the file is gone, or the key lacks the scope."""
    try:
        return f"{file}  {client.get(path_of('files', file))['filename']}"
    except Failed as error:
        if error.code not in (Exit.NOT_FOUND, Exit.NOT_ALLOWED):
            raise
        return file


def as_text(job: Json, results: Sequence[str]) -> str:
    """A line for each thing that is known, and for each of its result files."""
    training, error = job["training"], job["error"] or {}
    lora = training["lora"]
    asked = ", ".join(f"{name} {value}" for name, value in job["hyperparameters"].items())
    return fields(
        [
            ("job", job["id"]),
            ("status", job["status"]),
            ("error", error.get("message")),
            ("fault", error.get("fault")),
            ("model", job["model"]),
            ("name", job["name"]),
            ("result", job["fine_tuned_model"]),
            ("training file", job["training_file"]),
            ("validation file", job["validation_file"]),
            *zip(("result files", *[""] * len(results)), results, strict=False),
            ("method", f"{lora['method']}, rank {lora['rank']}, alpha {lora['alpha']:g}"),
            ("objective", f"{job['method']['type']}, {training['task']}"),
            ("hyperparameters", asked),
            ("learning rate", f"{training['learning_rate']:g}"),
            ("seed", job["seed"]),
            ("trained tokens", job["trained_tokens"]),
            ("created", as_time(job["created_at"])),
            ("done probably", job["estimated_finish"] and as_time(job["estimated_finish"])),
            ("finished", job["finished_at"] and as_time(job["finished_at"])),
            ("metadata", ", ".join(f"{key}={value}" for key, value in (job["metadata"] or {}).items())),
        ]
    )


def watch_job(arguments: argparse.Namespace) -> int:
    """Print what it tells until it is over."""
    with connect(arguments) as client:
        return follow(client, arguments, arguments.id)


def list_checkpoints(arguments: argparse.Namespace) -> int:
    """Print the checkpoints, newest first."""
    with connect(arguments) as client:
        found = client.pages(path_of("fine_tuning", "jobs", arguments.id, "checkpoints"))
    rows = (
        (
            checkpoint["step_number"],
            checkpoint["fine_tuned_model_checkpoint"],
            _loss(checkpoint["metrics"]["train_loss"]),
            _loss(checkpoint["metrics"]["valid_loss"]),
            as_time(checkpoint["created_at"]),
        )
        for checkpoint in found
    )
    show(arguments, {"object": "list", "data": found}, lambda: table(CHECKPOINTS, rows))
    return 0


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _change(verb: str) -> Callable[[argparse.Namespace], int]:
    def change(arguments: argparse.Namespace) -> int:
        with connect(arguments) as client:
            job = client.post(path_of("fine_tuning", "jobs", arguments.id, verb))
        show(arguments, job, lambda: f"{job['id']} is {job['status']}")
        return 0

    return change


VERBS = {"jobs": add_jobs}
