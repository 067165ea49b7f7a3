"""One base and one process with PEFT for all tests of the proof."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.proof.process import PeftProcess
from tests.server.proof.stand import Stand


@pytest.fixture(scope="session")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Stand:
    return Stand("llama", tmp_path_factory.mktemp("proof"))


@pytest.fixture(scope="session")
def process(stand: Stand) -> Iterator[PeftProcess]:
    process = PeftProcess(stand.base, "float32")
    yield process
    process.close()
