"""The record of a run: what differs is said by name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.data import Tokens
from training.folder import RunFolder
from training.run.record import check_record, files_digest, keep_record, make_record, rows_digest
from training.spec import LoraSpec, TrainSpec

SPEC = TrainSpec(LoraSpec(rank=4, rank_pattern={"q_proj": 2}, target_modules=("q_proj",)), epochs=2)


def record(spec: TrainSpec) -> dict[str, Any]:
    return make_record(spec, "base", "b" * 64, "t" * 64, "v" * 64, None)


RECORD = record(SPEC)


def kept(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path)
    keep_record(run, RECORD)
    return run


def test_the_same_is_accepted(tmp_path: Path) -> None:
    check_record(kept(tmp_path), RECORD)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            record(replace(SPEC, epochs=3)),
            "epochs: 2, not 3",
        ),
        (
            record(replace(SPEC, lora=LoraSpec(rank=8))),
            "rank: 4, not 8; another target_modules: ['q_proj'], not all-linear; "
            "another rank_pattern: {'q_proj': 2}, not {}",
        ),
        (
            {**RECORD, "base": "new", "base_sha256": "c"},
            "base: base as it was then, not new as it is now",
        ),
        ({**RECORD, "train_sha256": "u"}, f"training data: SHA-256 {'t' * 64}, not u"),
        ({**RECORD, "validation_sha256": "u"}, f"validation data: SHA-256 {'v' * 64}, not u"),
        ({**RECORD, "parent_sha256": "u"}, "adapter to go on from: SHA-256 None, not u"),
    ],
)
def test_what_differs_is_named(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"holds a run with another {said}")):
        check_record(kept(tmp_path), changed)


def test_rows_that_differ_in_a_label_have_another_digest() -> None:
    rows = [Tokens([1, 2], [-100, 2])]
    assert rows_digest(rows) == rows_digest([Tokens([1, 2], [-100, 2])])
    assert rows_digest(rows) != rows_digest([Tokens([1, 2], [1, 2])])


def test_files_count_by_name_and_content(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    first = files_digest(tmp_path)
    (tmp_path / "README.md").write_text("does not count")
    assert files_digest(tmp_path) == first
    (tmp_path / "config.json").write_text("{ }")
    assert files_digest(tmp_path) != first
