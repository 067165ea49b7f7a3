"""A real server with the parity proof on: numbers for good adapters, none without PEFT's process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.spawn import serving
from training.base import ADAPTERS_DIR


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("parity")
    arguments = ["--data-dir", str(folder / "data"), "--dtype", "float32"]
    environment = {"OMP_NUM_THREADS": "1", "MULTILORA_PARITY": "on"}
    with serving(arguments, folder / "server.log", environment=environment) as url:
        yield url


def publish(url: str, name: str, folder: str) -> dict[str, Any]:
    files = {
        "config": (ADAPTERS_DIR / folder / "adapter_config.json").read_bytes(),
        "weights": (ADAPTERS_DIR / folder / "adapter_model.safetensors").read_bytes(),
    }
    answer = httpx.post(f"{url}/v1/adapters", data={"name": name}, files=files, timeout=120)
    assert answer.status_code in (200, 201), answer.text
    published: dict[str, Any] = answer.json()
    return published


def workers() -> list[int]:
    """Processes that run PEFT for a server of ours."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"server.proof.worker" in (entry / "cmdline").read_bytes():
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if (
                    int((Path("/proc") / parent / "stat").read_text().rpartition(")")[2].split()[1])
                    == os.getpid()
                ):
                    found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the process in /proc")
def test_published_adapters_have_their_numbers(url: str) -> None:
    assert workers() == []  # nothing is started before there is something to prove
    first = publish(url, "shout", "shout")
    assert first["proof"]["status"] == "proved"
    assert 0 <= first["proof"]["max_logit_difference"] < 1e-3
    assert first["proof"]["kl_from_base"] > 0
    assert httpx.get(f"{url}/v1/adapters/shout@1").json()["proof"] == first["proof"]

    worker = workers()
    assert len(worker) == 1
    second = publish(url, "spell", "spell")
    assert second["proof"]["status"] == "proved"
    assert workers() == worker  # the base is read once
    assert publish(url, "shout", "shout")["proof"] == first["proof"]  # the same version as before
