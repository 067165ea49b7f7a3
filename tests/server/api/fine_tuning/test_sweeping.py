"""Files whose time is over go while the server runs, and a database that is away ends nothing."""

from __future__ import annotations

import asyncio

import pytest

from adapters.errors import RegistryUnavailable
from server.api.fine_tuning import sweeping as module
from server.api.fine_tuning.sweeping import sweeping
from server.jobs.files import Files
from tests.server.api.stand import Stand


def test_files_are_swept_again_and_again(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[int] = []

    def sweep(files: Files) -> tuple[str, ...]:
        turns.append(len(turns))
        if len(turns) == 2:
            raise RegistryUnavailable("away")
        return ("file-1",)

    monkeypatch.setattr(Files, "sweep", sweep)
    monkeypatch.setattr(module, "SWEEP_SECONDS", 0.0)

    async def run() -> None:
        async with sweeping(stand.training):
            while len(turns) < 4:
                await asyncio.sleep(0.01)

    asyncio.run(run())
    assert len(turns) >= 4


def test_without_training_there_is_nothing_to_sweep() -> None:
    async def run() -> None:
        async with sweeping(None):
            pass

    asyncio.run(run())
