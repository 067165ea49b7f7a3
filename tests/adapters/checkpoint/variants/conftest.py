"""Tiny bases, made once: linear layers without biases, Conv1D with, and linear layers with."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tiny import make_model


@pytest.fixture(scope="session")
def llama() -> Any:
    return make_model("llama")


@pytest.fixture(scope="session")
def gpt2() -> Any:
    return make_model("gpt2")


@pytest.fixture(scope="session")
def opt() -> Any:
    return make_model("opt")
