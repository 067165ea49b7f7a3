"""Where a run keeps what: one layout for the command line, the server's worker and tests.

FOLDER/adapter_config.json, adapter_model.safetensors   the result, when it is done: a PEFT folder
FOLDER/README.md, lineage.json                          its card, and where it comes from
FOLDER/run/spec.json                                    what was asked; never changes
FOLDER/run/events.jsonl                                 all that the run told, a line each
FOLDER/run/curve.png, tensorboard/
FOLDER/run/checkpoints/step-00000100/                   a PEFT folder, with `state/` for a resume
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_STEP = re.compile(r"step-(\d{8})")
STATE = "state"
"""Of a checkpoint: what a resume needs."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def spec(self) -> Path:
        return self.run / "spec.json"

    @property
    def events(self) -> Path:
        return self.run / "events.jsonl"

    @property
    def curve(self) -> Path:
        return self.run / "curve.png"

    @property
    def tensorboard(self) -> Path:
        return self.run / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.run / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """Of so many optimizer steps. It appears by a rename, when it is whole."""
        return self.checkpoints / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Of the whole checkpoints that there are, ascending."""
        if not self.checkpoints.is_dir():
            return []
        found = (_STEP.fullmatch(path.name) for path in self.checkpoints.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def latest(self) -> Path | None:
        """The checkpoint that a resume goes on from: the newest that has its state."""
        found = (self.checkpoint(step) for step in reversed(self.steps()))
        return next((path for path in found if (path / STATE).is_dir()), None)
