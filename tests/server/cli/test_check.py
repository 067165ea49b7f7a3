"""`multilora check`: a real base and its adapters, the table, the numbers and the exit code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from server.cli.main import main
from server.engine import loading
from server.proof.process import OracleRows, PeftProcess, Unavailable
from server.proof.served import served_rows
from server.proof.subject import Subject
from tests.kit import full_logits
from tests.server.proof.stand import Stand, Words
from tests.tiny import peft_model


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Stand:
    return Stand("llama", tmp_path_factory.mktemp("check"))


@pytest.fixture(autouse=True)
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny base has no tokenizer."""
    monkeypatch.setattr(loading, "load_tokenizer", lambda folder: Words())


def check(stand: Stand, folder: Path, *more: str) -> int:
    return main(["check", str(folder), "--model", str(stand.base), *more])


def test_the_table_says_what_is_applied_and_the_difference(
    stand: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stand.adapter("dora", use_dora=True, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    assert check(stand, folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folder} on {stand.base} in float32"
    assert lines[1].startswith("dora, CAUSAL_LM, ")
    rows = [line.split("  ") for line in lines[3:-2]]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells[0] == ["what", "module", "count", "rank", "scale", "beside A and B"]
    assert ["linear", "q_proj", "3", "4", "2", "magnitude"] in cells
    assert lines[-1].startswith("proved: at most ")


def test_a_difference_is_shown_with_exit_code_1(
    stand: Stand, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*given: Any) -> Any:
        base, adapted = served_rows(*given)
        return base, adapted + 1.0

    def oracle(
        self: object, adapter: Path, subject: Subject, prompts: Sequence[Sequence[int]], positions: int
    ) -> OracleRows:
        models = (stand.stock, peft_model(stand.stock, adapter))
        found = [tuple(full_logits(model, prompt)[-positions:] for prompt in prompts) for model in models]
        return OracleRows(*found)

    monkeypatch.setattr("server.proof.prover.served_rows", wrong)
    monkeypatch.setattr(PeftProcess, "rows", oracle)
    assert check(stand, stand.adapter("plain"), "--json") == 1
    proof = json.loads(capsys.readouterr().out)["proof"]
    assert proof["status"] == "refused"
    assert "differ by 1 from PEFT's" in proof["reason"]


def test_without_peft_it_can_not_say_and_fails(
    stand: Stand, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> None:
        raise Unavailable("PEFT is not installed")

    monkeypatch.setattr(PeftProcess, "rows", fail)
    assert check(stand, stand.adapter("plain")) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "unavailable: PEFT is not installed"


def test_what_is_no_adapter_is_one_line(
    stand: Stand, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert check(stand, tmp_path) == 1
    assert capsys.readouterr().err == f"multilora: {tmp_path} holds no adapter_config.json\n"
