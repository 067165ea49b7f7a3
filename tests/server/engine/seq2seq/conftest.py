"""Families made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from tests.server.engine.seq2seq.stand import Seq2SeqFamily

MakeFamily = Callable[[str], Seq2SeqFamily]


@pytest.fixture(scope="session")
def seq2seq(tmp_path_factory: pytest.TempPathFactory) -> MakeFamily:
    folder = tmp_path_factory.mktemp("seq2seq")
    return cache(lambda name: Seq2SeqFamily(name, folder))
