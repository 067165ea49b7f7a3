"""What all tests share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from adapters.batch.native.build import load_library
from tests.gpu import DEVICE  # before all that imports triton
from tests.kit import Families

pytest_plugins = ["tests.postgres", "tests.databases"]

ROOT = Path(__file__).parents[1]
LONGEST = (
    "bench/test_main.py",
    "promises/test_training_survives.py",
    "promises/test_what_was_said_survives.py",
    "end_to_end/test_fine_tuning.py",
    "server/proof/test_process.py",
    "server/engine/cuda/test_kernels.py",
    "promises/test_any_sequence.py",
    "adapters/registry/test_registry.py",
    "test_demo.py",
    "end_to_end/test_process.py",
    "promises/test_parity.py",
    "promises/test_mutated_files.py",
    "promises/test_openapi.py",
    "promises/test_bounds_come_before_memory.py",
    "promises/test_registry_machine.py",
    "promises/test_replicas.py",
    "end_to_end/test_lifecycle.py",
    "training/run/test_resume.py",
    "training/joint/test_together.py",
    "training/test_worker.py",
)
"""Files that take longest: they go first, so that two processes that share all files end together."""


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile the native code once, before there are processes that would each do it."""
    if not hasattr(session.config, "workerinput"):
        sources = [path for room in ("adapters", "server") for path in (ROOT / room).rglob("*.cpp")]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(load_library, sources))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    assert all(path.is_file() for path in places), "LONGEST names a file that is gone"
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What a test draws by chance, its fixtures' included, does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tests run on small shared machines; more threads make tiny products slower."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The GPU; where there is none, the CPU with Triton's interpreter."""
    return DEVICE


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Families:
    """Tiny bases and their adapters, each made once."""
    return Families(tmp_path_factory.mktemp("families"))
