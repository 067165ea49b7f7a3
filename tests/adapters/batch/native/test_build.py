"""Native code is compiled once, shared, and done without where it can't be compiled."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.batch.native.build import load_library
from adapters.batch.native.switch import DISABLE


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_library.cache_clear()
    yield
    load_library.cache_clear()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.cpp"
    path.write_text('extern "C" int answer() { return 42; }')
    return path


def _built(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "multilora").iterdir())


def test_compiles_once_for_one_source(tmp_path: Path, source: Path) -> None:
    loaded = load_library(source)
    assert isinstance(loaded, ctypes.CDLL)
    assert loaded.answer() == 42
    (built,) = _built(tmp_path)
    written = built.stat().st_mtime_ns
    load_library.cache_clear()
    assert load_library(source) is not None
    assert _built(tmp_path) == [built]
    assert built.stat().st_mtime_ns == written
    source.write_text('extern "C" int answer() { return 43; }')
    load_library.cache_clear()
    again = load_library(source)
    assert again is not None
    assert again.answer() == 43
    assert len(_built(tmp_path)) == 2


def test_what_does_not_compile_is_done_without(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source.write_text("this is no C++")
    with caplog.at_level(logging.WARNING):
        assert load_library(source) is None
    assert "answer.cpp can't be compiled" in caplog.text
    assert "plain torch" in caplog.text
    assert _built(tmp_path) == []


def test_without_a_compiler(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with caplog.at_level(logging.WARNING):
        assert load_library(source) is None
    assert "no C++ compiler" in caplog.text


def test_can_be_switched_off(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DISABLE, "0")
    assert load_library(source) is None
