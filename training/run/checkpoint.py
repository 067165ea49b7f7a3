"""Checkpoints: each appears whole by a rename, and the newest two can be gone on from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from training.folder import STATE, RunFolder

KEPT_STATES = 2
"""Checkpoints whose state is kept; of older ones only the adapter's own files."""
CONFIG = "adapter_config.json"


def write_checkpoint(
    run: RunFolder, step: int, adapter: Callable[[Path], None], state: Callable[[Path], None]
) -> Path:
    """Write the checkpoint of `step` and remove what older ones no longer need; returns its folder.

    Args:
        adapter: writes a PEFT folder; state: writes what a resume needs, to a folder that it makes.
    """
    target = run.checkpoint(step)
    half = target.with_name(f".{target.name}.part")
    for leftover in (half, target):  # of a run that was killed here
        shutil.rmtree(leftover, ignore_errors=True)
    half.mkdir(parents=True)
    adapter(half)
    state(half / STATE)
    _settle(half)
    os.rename(half, target)
    _sync(run.checkpoints)
    for old in run.steps()[:-KEPT_STATES]:
        shutil.rmtree(run.checkpoint(old) / STATE, ignore_errors=True)
    return target


def publish(run: RunFolder, step: int, beside: Callable[[Path], None]) -> None:
    """Make the adapter of a checkpoint the result. Its config comes last: where it is, the result is whole.

    Args:
        beside: writes more files into the folder, such as a model card.
    """
    source = run.checkpoint(step)
    files = sorted(path for path in source.iterdir() if path.is_file() and path.name != CONFIG)
    for file in files:
        _copy(file, run.path / file.name)
    beside(run.path)
    _copy(source / CONFIG, run.path / CONFIG)
    _sync(run.path)


def _copy(source: Path, target: Path) -> None:
    half = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, half)
    _sync(half)
    os.replace(half, target)


def _settle(folder: Path) -> None:
    """Wait until all of it is on disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
