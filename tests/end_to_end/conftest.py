"""A real server process on the shipped base, and the official client for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import OpenAI

from server.spawn import serving
from training.base import ADAPTERS_DIR


@dataclass(frozen=True)
class Live:
    """A running server: its URL, its client, and the folder it may load adapters from."""

    url: str
    client: OpenAI
    adapter_dir: Path


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """`multilora serve` with two adapters, small limits, and no knowledge of the others."""
    folder = tmp_path_factory.mktemp("live")
    arguments = ["--data-dir", str(folder / "data"), "--adapter-dir", str(ADAPTERS_DIR)]
    arguments += ["--max-adapter-mb", "1", "--max-body-mb", "1", "--max-adapter-rank", "16"]
    for name in ("shout", "backwards"):
        arguments += ["--adapter", f"{name}={ADAPTERS_DIR / name}"]
    with serving(arguments, folder / "server.log", environment={"OMP_NUM_THREADS": "1"}) as url:
        yield Live(url, OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0), ADAPTERS_DIR)
