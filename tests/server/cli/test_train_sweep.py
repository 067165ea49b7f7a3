"""`multilora train sweep` on a tiny base: one table, whole folders, and an end that can be gone on from."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from server.cli.exits import Exit, Failed
from server.cli.train import sweep
from server.cli.train.sweep import sweep_specs
from server.cli.train.tally import Tally
from tests.server.cli.conftest import Ran, Run
from tests.training.joint.stand import data, make_base
from training.data import TextExample
from training.events import Event, Progress
from training.run import course


@pytest.fixture(scope="module", autouse=True)
def undrawn() -> Iterator[None]:
    """Curves have their own tests, and take longer to draw than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(course, "draw", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two files."""
    folder = tmp_path_factory.mktemp("sweep")
    make_base(folder / "base")
    found = data(0, rows=12, validation=3)
    for name, rows in (("train", found.train), ("validation", found.validation)):
        texts = [row for row in rows if isinstance(row, TextExample)]
        lines = [json.dumps({"prompt": row.prompt, "completion": row.completion}) for row in texts]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def command(multilora: Run, place: Path, output: Path, *words: object) -> Ran:
    files = ["--data", place / "train.jsonl", "--validation", place / "validation.jsonl"]
    common = ["--model", place / "base", "--output", output, "--batch-size", 4, "--threads", 1]
    return multilora("train", "sweep", *files, *common, *words)


def test_all_combinations_in_one_table(multilora: Run, place: Path, tmp_path: Path) -> None:
    swept = ["--rank", "2,4", "--alpha", "8", "--learning-rate", "1e-3,1e-2", "--steps", 5]
    ran = command(multilora, place, tmp_path / "out", *swept)
    assert ran.code == 0, ran.err
    header, *rows = ran.out.splitlines()[:5]
    assert header.split()[:4] == ["rank", "alpha", "rate", "parameters"]
    assert [row.removeprefix("*").split()[:3] for row in rows] == [
        [rank, "8", rate] for rank in ("2", "4") for rate in ("0.001", "0.01")
    ]
    kept = json.loads((tmp_path / "out" / "sweep.json").read_text())
    best = kept["best"]
    (starred,) = [row for row in rows if row.startswith("*")]
    values = next(each for each in kept["trials"] if each["name"] == best)
    assert starred.split()[1:4] == [f"{values['rank']}", "8", f"{values['learning_rate']:g}"]
    assert values["validation_loss"] == min(each["validation_loss"] for each in kept["trials"])
    assert f"take {best}" in ran.out
    for each in kept["trials"]:
        tensors = load_file(Path(each["folder"]) / "adapter_model.safetensors")
        assert sum(tensor.numel() for tensor in tensors.values()) == each["parameters"]
        config = json.loads((tmp_path / "out" / each["name"] / "adapter_config.json").read_text())
        assert config["r"] == each["rank"]

    again = command(multilora, place, tmp_path / "out", *swept, "--resume", "--json")
    assert again.code == 0, again.err
    for now, before in zip(again.json["trials"], kept["trials"], strict=True):
        assert (now["name"], now["training_loss"]) == (before["name"], before["training_loss"])


def test_one_that_diverges_is_told_beside_the_others(multilora: Run, place: Path, tmp_path: Path) -> None:
    wild = ["--learning-rate", "1e-3,1e22", "--optimizer", "sgd", "--schedule", "constant", "--steps", 12]
    ran = command(multilora, place, tmp_path / "out", *wild)
    assert ran.code == 0
    assert "r8-a32-lr1e+22: the loss is" in ran.out
    assert "take r8-a32-lr0.001" in ran.out


def test_where_nothing_comes_of_any_the_command_fails(multilora: Run, place: Path, tmp_path: Path) -> None:
    wild = ["--learning-rate", "1e22", "--optimizer", "sgd", "--schedule", "constant", "--steps", 12]
    ran = command(multilora, place, tmp_path / "out", *wild)
    assert ran.code == Exit.FAILED
    assert "no combination could be trained" in ran.err
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["best"] is None


def test_ctrl_c_saves_all_and_resume_goes_on(
    multilora: Run, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pressed(Tally):
        def __call__(self, run: str, event: Event) -> None:
            super().__call__(run, event)
            if isinstance(event, Progress) and event.step == 3 and run.startswith("r2"):
                signal.raise_signal(signal.SIGINT)

    swept = ["--rank", "2,4", "--learning-rate", "1e-3", "--steps", 8]
    whole = command(multilora, place, tmp_path / "whole", *swept, "--json")
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "Tally", Pressed)
        ran = command(multilora, place, tmp_path / "out", *swept)
    assert ran.code == Exit.INTERRUPTED
    assert "--resume" in ran.err
    resumed = command(multilora, place, tmp_path / "out", *swept, "--resume", "--json")
    assert resumed.code == 0, resumed.err
    for now, before in zip(resumed.json["trials"], whole.json["trials"], strict=True):
        assert now["training_loss"] == pytest.approx(before["training_loss"], rel=1e-6)
        assert now["steps"] == before["steps"] == 8


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--rank", "2,x"], Exit.USAGE, "invalid ints with commas between value: '2,x'"),
        (["--rank", "0"], Exit.USAGE, "rank must be at least 1"),
        (["--method", "dora"], Exit.USAGE, "dora trains alone"),
        (["--validation", "nowhere.jsonl"], Exit.FAILED, "nowhere.jsonl: No such file"),
        (["--target-modules", "nothing_proj,other"], Exit.FAILED, "has no such linear layer"),
    ],
)
def test_what_is_wrong_is_one_line(
    multilora: Run, place: Path, tmp_path: Path, words: list[str], code: Exit, said: str
) -> None:
    ran = command(multilora, place, tmp_path / "out", "--steps", 2, *words)
    assert ran.code == code
    assert said in ran.err
    assert "Traceback" not in ran.err


def test_specs_differ_in_what_was_swept_alone() -> None:
    fields = {"batch_size": [4, 8], "steps": 3, "seed": [1], "lora": {"rank": [2], "dropout": [0.0, 0.1]}}
    named = sweep_specs(fields)
    assert list(named) == [
        f"r2-a16-dropout{dropout:g}-lr0.0002-b{batch}" for dropout in (0.0, 0.1) for batch in (4, 8)
    ]
    values, spec = named["r2-a16-dropout0.1-lr0.0002-b8"]
    assert values == {"rank": 2, "alpha": 16.0, "dropout": 0.1, "learning_rate": 2e-4, "batch_size": 8}
    assert (spec.steps, spec.seed, spec.batch_size, spec.lora.dropout) == (3, 1, 8, 0.1)
    with pytest.raises(Failed, match="dropout must be"):
        sweep_specs({"lora": {"dropout": [0.1, 2.0]}})
