"""The lineage file: what it says, the registry reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapters.errors import InvalidAdapter
from adapters.registry.lineage import LINEAGE_FILE, lineage_beside, parse_lineage, quantization_beside
from adapters.registry.records import DataFile
from tests.training.report.synthetic import evaluated, healthy, run
from training.events import Evaluated, Finished
from training.report.curves import Curves
from training.report.lineage import write_lineage
from training.report.origin import Origin
from training.spec import LoraSpec, TrainSpec

SHA = "0f" * 32


def test_the_registry_reads_all_of_it(tmp_path: Path) -> None:
    curves = Curves(run(healthy, healthy, steps=20))
    files = (("train.jsonl", SHA), ("held-out.jsonl", SHA))
    origin = Origin(TrainSpec(), "base", files, parent="tone@3", parent_digest="9f" * 32, job="ftjob-1")
    write_lineage(tmp_path, origin, curves)
    found = parse_lineage(lineage_beside(tmp_path))
    assert (found.parent, found.parent_digest, found.job) == ("tone@3", "9f" * 32, "ftjob-1")
    assert found.data == (DataFile("train.jsonl", SHA), DataFile("held-out.jsonl", SHA))
    last = curves.evaluated[-1]
    assert dict(found.scores) == {
        "validation_loss": last.loss,
        "exact_match": last.score,
        "token_accuracy": last.token_accuracy,
        "other": 0.25,
        "training_loss": healthy(1.0),
    }
    assert quantization_beside(tmp_path) == "none"


def test_a_quantised_base_is_told(tmp_path: Path) -> None:
    write_lineage(tmp_path, Origin(TrainSpec(LoraSpec(method="qlora")), "base"), Curves())
    assert json.loads((tmp_path / LINEAGE_FILE).read_text()) == {"quantization": "nf4"}


def test_the_scores_are_those_of_the_weights_that_were_kept(tmp_path: Path) -> None:
    """Early stopping keeps the weights of the best step, not of the last."""
    curves = Curves([evaluated(10, 1.0), evaluated(20, 0.5), evaluated(30, 2.0)])
    write_lineage(tmp_path, Origin(TrainSpec(), "base", step=20), curves)
    assert dict(parse_lineage(lineage_beside(tmp_path)).scores)["validation_loss"] == 0.5


def test_only_numbers_are_scores(tmp_path: Path) -> None:
    curves = Curves([Evaluated(1, float("inf"), None, "f1", None), Finished(1, "done", 1.0, float("nan"), 1)])
    write_lineage(tmp_path, Origin(TrainSpec(), "base"), curves)
    assert parse_lineage(lineage_beside(tmp_path)).scores == ()


def test_what_the_registry_would_refuse_is_refused_now(tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapter, match="64 hex digits"):
        write_lineage(tmp_path, Origin(TrainSpec(), "base", (("a.jsonl", "beef"),)), Curves())
    assert not (tmp_path / LINEAGE_FILE).exists()
