"""What is `auto` becomes a number when the data is known; what is a number stays."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from server.jobs.records import JobRequest
from server.jobs.settle import settle as settle_on
from training.base import MODEL_DIR
from training.data.check import check_file
from training.plan import choose, read_base, read_rows
from training.spec import LoraSpec, TrainSpec
from training.worker import in_brief

AUTO = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}


def asked(spec: TrainSpec | None = None, **hyperparameters: Any) -> JobRequest:
    given = {**AUTO, **hyperparameters}
    return JobRequest("base", "shop", "file-1", spec or TrainSpec(), hyperparameters=given)


def report(
    examples: int, longest: int = 20, objective: str = "supervised", trained: int = 100
) -> dict[str, Any]:
    statistics = {
        "examples": examples,
        "tokens": {"max": longest, "total": longest * examples},
        "trained_tokens": {"total": trained},
    }
    return {"format": "rows", "objective": objective, "statistics": statistics}


def settle(request: JobRequest, found: dict[str, Any]) -> JobRequest:
    return settle_on(request, found, "no such base")


@pytest.mark.parametrize(
    ("examples", "epochs", "batch"),
    [(1, 25, 1), (20, 5, 1), (34, 3, 1), (100, 3, 2), (1000, 3, 16), (8333, 3, 16), (12_500, 2, 16)],
)
def test_auto_follows_the_data(examples: int, epochs: int, batch: int) -> None:
    settled = settle(asked(), report(examples))
    assert (settled.spec.epochs, settled.spec.batch_size) == (epochs, batch)
    assert settled.hyperparameters == {
        "n_epochs": epochs,
        "batch_size": batch,
        "learning_rate_multiplier": 1.0,
    }


def test_numbers_stay() -> None:
    spec = TrainSpec(epochs=7, batch_size=4, learning_rate=1e-3)
    given = {"n_epochs": 7, "batch_size": 4, "learning_rate_multiplier": 5.0}
    assert settle(asked(spec, **given), report(2)) == asked(spec, **given)


def test_a_step_has_as_many_rows_whatever_is_accumulated() -> None:
    settled = settle(asked(TrainSpec(accumulation=4)), report(1000))
    assert (settled.spec.batch_size, settled.spec.effective_batch) == (4, 16)
    assert settled.hyperparameters["batch_size"] == 16


@pytest.mark.parametrize(
    ("longest", "most", "rows", "passes"),
    [(512, 4096, 16, 1), (2000, 4096, 4, 4), (10**6, 4096, 2, 8), (10**6, 10**5, 1, 16)],
)
def test_long_rows_go_in_more_passes(longest: int, most: int, rows: int, passes: int) -> None:
    settled = settle(asked(TrainSpec(max_length=most)), report(1000, longest)).spec
    assert (settled.batch_size, settled.accumulation) == (rows, passes)


def test_steps_decide_instead_of_epochs() -> None:
    settled = settle(asked(TrainSpec(steps=5)), report(2))
    assert (settled.spec.steps, settled.spec.epochs) == (5, TrainSpec().epochs)


def test_rows_for_the_other_method_are_told_before_the_job_waits() -> None:
    with pytest.raises(ValueError, match=r'for the method dpo.*"type": "dpo"'):
        settle(asked(), report(100, objective="dpo"))
    with pytest.raises(ValueError, match="for the method supervised, and the job's is dpo"):
        settle(replace(asked(), method="dpo"), report(100))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (TrainSpec(epochs=100, batch_size=1), "100 epochs of 10001 rows are 1000100 steps"),
        (TrainSpec(steps=201, save_every=1), "201 steps with a checkpoint every 1 make 201 of them"),
        (TrainSpec(steps=402, evaluate_every=2), "every 2 make 201 of them"),
        (TrainSpec(steps=402, evaluate_every=2, save_every=400, patience=3), "every 2 make 201 of them"),
    ],
)
def test_what_would_never_end_or_fill_the_disk_is_refused(spec: TrainSpec, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settle(asked(spec, n_epochs=1, batch_size=1), report(10_001))


def test_many_evaluations_are_no_checkpoints() -> None:
    settle(asked(TrainSpec(steps=402, evaluate_every=2, save_every=400)), report(10))


@pytest.mark.parametrize(
    ("trained", "most", "rank"),
    [(100, 256, 8), (71_680, 256, 8), (71_681, 256, 16), (10**9, 256, 128), (10**9, 24, 24), (100, 4, 4)],
)
def test_a_rank_that_was_not_asked_is_that_of_the_plan(trained: int, most: int, rank: int) -> None:
    request = replace(asked(), most_rank=most, alpha_follows=True)
    settled = settle_on(request, report(1000, trained=trained), str(MODEL_DIR)).spec.lora
    assert settled == replace(LoraSpec(), rank=rank, alpha=32.0)


def test_a_job_and_a_run_of_the_command_line_have_the_same_rank(tmp_path: Path) -> None:
    """The check's counts beside those of `read_rows`, which the other begins with."""
    path = tmp_path / "rows.jsonl"
    rows = ({"prompt": "p" * n, "completion": "c" * 100} for n in range(1, 801))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = choose(read_base(MODEL_DIR), read_rows(path, MODEL_DIR)).spec.lora
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    found = check_file(path, tokenizer=tokenizer, task="CAUSAL_LM", max_length=1024)
    request = replace(asked(TrainSpec(max_length=1024)), most_rank=256, alpha_follows=True)
    assert settle_on(request, in_brief(found), str(MODEL_DIR)).spec.lora == chosen
    assert chosen.rank == 16


def test_alpha_goes_with_the_rank_unless_it_was_asked() -> None:
    request = replace(asked(TrainSpec(LoraSpec("rslora", alpha=5.0))), most_rank=256)
    many = report(1000, trained=10**9)
    assert settle_on(request, many, str(MODEL_DIR)).spec.lora.alpha == 5.0
    follows = settle_on(replace(request, alpha_follows=True), many, str(MODEL_DIR)).spec.lora
    assert (follows.rank, follows.alpha) == (128, round(32 / 128**0.5, 2))


def test_a_rank_that_was_asked_stays_and_so_does_that_of_an_unknown_base() -> None:
    many = report(1000, trained=10**9)
    assert settle_on(asked(), many, str(MODEL_DIR)).spec.lora == LoraSpec()
    assert settle(replace(asked(), most_rank=256, alpha_follows=True), many).spec.lora == LoraSpec()
