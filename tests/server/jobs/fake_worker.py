"""Stands for `training.worker`: plays what the training file says, without training and without torch.

The file has a JSON array of actions: `["say", event]`, `["save", step]` (once),
`["done", step]`, `["fail", error]`, `["stop"]` (wait until told to),
`["stop", path, step]` (once; it saves so many steps, and makes the path), `["die", signal]`,
`["die", signal, path]` (once: it makes the path), `["words", text]`, `["sleep", seconds]`, `["touch", path]`,
`["write", path in the job's folder, text]`.
It copies the adapter that `ADAPTER` names, each time with another alpha.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any


def make_adapter(folder: Path, alpha: float) -> None:
    """As PEFT would save it."""
    shutil.copytree(os.environ["ADAPTER"], folder, dirs_exist_ok=True)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": alpha}))


def say(job: dict[str, Any], **message: Any) -> None:
    print(json.dumps({"job": job["id"], **message}), flush=True)


def act(job: dict[str, Any], action: str, *arguments: Any) -> bool:
    """One action; false where nothing comes after it."""
    folder = Path(job["folder"])
    if action == "say":
        say(job, **arguments[0])
    elif action == "save":
        checkpoint = folder / f"run/checkpoints/step-{arguments[0]:08d}"
        if not checkpoint.is_dir():
            make_adapter(checkpoint, 1.0 + arguments[0])
            say(job, event="saved", step=arguments[0], folder=str(checkpoint))
    elif action == "done":
        make_adapter(folder, 1.0 + arguments[0])
        say(job, event="complete", folder=str(folder), metrics={"trained_tokens": 7})
    elif action == "fail":
        say(job, event="failed", error=arguments[0])
    elif action == "stop":
        if arguments and Path(arguments[0]).exists():
            return True
        assert json.loads(sys.stdin.readline()) == {"stop": job["id"]}
        if arguments:
            mark, step = arguments
            checkpoint = folder / f"run/checkpoints/step-{step:08d}"
            make_adapter(checkpoint, 1.0 + step)
            say(job, event="saved", step=step, folder=str(checkpoint), planned=False)
            Path(mark).touch()
        say(job, event="stopped")
        return False
    elif action == "die":
        number, *marks = arguments
        if not any(map(os.path.exists, marks)):
            for mark in marks:
                Path(mark).touch()
            os.kill(os.getpid(), getattr(signal, number))
    elif action == "write":
        path = folder / arguments[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(arguments[1])
    elif action == "words":
        print(arguments[0], file=sys.stderr, flush=True)
    elif action == "sleep":
        time.sleep(arguments[0])
    else:
        assert action == "touch"
        Path(arguments[0]).write_text(json.dumps({"work": WORK, "environment": dict(os.environ)}))
    return True


WORK: dict[str, Any] = json.loads(sys.stdin.readline())
for each in WORK["jobs"]:
    actions = json.loads(Path(each["train"]).read_text())
    if WORK["check"]:
        if actions == "bad":
            error = {"code": "invalid_training_file", "message": "line 1: bad", "fault": "user"}
            say(each, event="failed", error=error)
        elif actions == "kill":
            print("words of a tenant", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            found = {"format": "text", "objective": each["spec"]["objective"]}
            say(each, event="checked", report={**found, "warnings": [], "statistics": {"examples": 8}})
        continue
    for found in actions:
        if not act(each, *found):
            break
