"""What all tests share."""

from __future__ import annotations

import pytest
import torch

from tests.gpu import DEVICE  # before all that imports triton
from tests.kit import Families

pytest_plugins = ["tests.postgres"]


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
