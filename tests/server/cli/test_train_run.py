"""`multilora train run`: its flags are the spec, Ctrl-C saves, `--resume` goes on, errors are one line."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from server.cli.main import build_parser
from server.cli.train.interrupts import Interrupts
from server.cli.train.spec_flags import given_fields, make_spec
from tests.server.cli.conftest import Ran, Run
from tests.training.run.stand import after, examples, make_base, same_files
from training.data import LabelledText, TextExample
from training.folder import RunFolder
from training.plan import choose, read_base, read_rows
from training.spec import LoraSpec, TrainSpec, spec_to_json

FLAGS = (
    "--steps",
    4,
    "--batch-size",
    2,
    "--rank",
    2,
    "--alpha",
    4,
    "--dropout",
    0.1,
    "--learning-rate",
    0.01,
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture has tests of its own; and threads are for the whole process."""
    monkeypatch.setattr("training.run.course.draw", lambda *_, **__: None)
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and files of examples."""
    folder = tmp_path_factory.mktemp("place")
    make_base(folder / "base")
    make_base(folder / "encoder", "SEQ_CLS")
    for name, count, seed in (("train", 10, 0), ("held", 3, 1), ("other", 10, 2)):
        write(folder / f"{name}.jsonl", examples(count, seed=seed))
    write(folder / "labels.jsonl", examples(9, "SEQ_CLS"))
    return folder


def write(path: Path, rows: list[Any]) -> None:
    objects = (
        {"text": row.text, "label": row.label}
        if isinstance(row, LabelledText)
        else {"prompt": row.prompt, "completion": row.completion}
        for row in rows
        if isinstance(row, LabelledText | TextExample)
    )
    path.write_text("\n".join(map(json.dumps, objects)), encoding="utf-8")


def trained(multilora: Run, place: Path, output: Path, *more: object) -> Ran:
    given = ("--data", place / "train.jsonl", "--model", place / "base", "--output", output)
    return multilora("train", "run", *given, *FLAGS, *more)


@pytest.fixture
def whole(multilora: Run, place: Path, tmp_path: Path) -> Path:
    assert trained(multilora, place, tmp_path / "whole").code == 0
    return tmp_path / "whole"


def test_it_trains_and_says_what_came_of_it(multilora: Run, place: Path, tmp_path: Path) -> None:
    ran = trained(multilora, place, tmp_path / "new", "--validation", place / "held.jsonl", "--patience", 9)
    assert ran.code == 0, ran.err
    assert ran.out.startswith(f"{tmp_path / 'new'}: loss ")
    assert " after 4 steps in " in ran.out
    assert "validation loss " in ran.out
    assert "the adapter of step " in ran.out
    assert "\n10 rows, 3 to validate, 4 steps; " in ran.err
    assert "step 4: validation loss " in ran.err
    assert "exact_match 0.00" in ran.err
    lineage = json.loads((tmp_path / "new" / "lineage.json").read_text())
    assert [file["name"] for file in lineage["data"]] == ["train.jsonl", "held.jsonl"]


def parsed(*words: str) -> dict[str, Any]:
    arguments = build_parser(["train"]).parse_args(["train", "run", "--output", "x", *words])
    return given_fields(arguments)


def test_every_field_of_the_spec_is_a_flag() -> None:
    shown = vars(build_parser(["train"]).parse_args(["train", "run", "--output", "x"]))
    names = {field.name for kind in (TrainSpec, LoraSpec) for field in fields(kind)} - {"lora"}
    assert names <= shown.keys()
    assert make_spec(parsed()) == TrainSpec()


def test_flags_reach_the_spec() -> None:
    words = "--method dora --rank 4 --target-modules q_proj,v_proj --layers 0,2 --rank-pattern q_proj=8"
    words += " --alpha-pattern q_proj=1.5 --modules-to-save lm_head --gradient-checkpointing --warmup 0.5"
    spec = make_spec(parsed(*words.split(), "--seed", "7"))
    lora = LoraSpec(
        "dora",
        4,
        target_modules=("q_proj", "v_proj"),
        layers=(0, 2),
        rank_pattern={"q_proj": 8},
        alpha_pattern={"q_proj": 1.5},
        modules_to_save=("lm_head",),
    )
    assert spec == TrainSpec(lora, gradient_checkpointing=True, warmup=0.5, seed=7)
    for one, text in (("all-linear", "all-linear"), ("default", "default"), (r".*\.0\..*", r".*\.0\..*")):
        assert make_spec(parsed("--target-modules", text)).lora.target_modules == one
    assert make_spec(parsed("--target-modules", "q_proj")).lora.target_modules == ("q_proj",)


def test_what_is_not_given_is_the_presets_choice(multilora: Run, place: Path, tmp_path: Path) -> None:
    words = ("--data", place / "train.jsonl", "--model", place / "base", "--steps", 2, "--rank", 2)
    for preset in ("modern", "tutorial"):
        ran = multilora("train", "run", *words, "--output", tmp_path / preset, "--preset", preset)
        assert ran.code == 0, ran.err
        assert ran.err.startswith(f"{preset}: lora of rank 2, ")
        told = json.loads(RunFolder(tmp_path / preset).spec.read_text())["spec"]
        base = str(place / "base")
        rows = read_rows(place / "train.jsonl", base)
        asked = {"rank": 2, "steps": 2}
        planned = choose(
            read_base(base), rows, "modern" if preset == "modern" else "tutorial", given=asked
        ).spec
        assert told == json.loads(json.dumps(spec_to_json(planned)))
    assert planned.lora.target_modules == "default"


def test_a_parent_keeps_its_own_shape(multilora: Run, place: Path, tmp_path: Path) -> None:
    assert trained(multilora, place, tmp_path / "first").code == 0
    words = ("--data", place / "train.jsonl", "--model", place / "base", "--steps", 1)
    again = ("--parent", tmp_path / "first", "--output", tmp_path / "second")
    ran = multilora("train", "run", *words, *again)
    assert ran.code == 0, ran.err
    assert ran.err.startswith("modern: learning rate ")
    assert json.loads((tmp_path / "second" / "adapter_config.json").read_text())["r"] == 2


def test_what_is_not_given_is_as_it_was() -> None:
    before = TrainSpec(LoraSpec(rank=2, dropout=0.3), epochs=9)
    assert make_spec(parsed("--rank", "3"), spec_to_json(before)) == TrainSpec(
        LoraSpec(rank=3, dropout=0.3), epochs=9
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--rank", "0"], 2, "rank must be at least 1, not 0"),
        (["--rank", "x"], 2, "invalid int value: 'x'"),
        (["--rank-pattern", "q_proj"], 2, "invalid NAME=VALUE value: 'q_proj'"),
        (["--patience", "2"], 1, "patience needs validation data"),
        (["--data", "none.jsonl"], 1, "none.jsonl: No such file"),
        (["--model", "no/such/base"], 1, "no/such/base"),
        (["--target-modules", "c_attn"], 1, "target_modules c_attn: llama has no such linear layer"),
        (["--resume"], 5, "has no run to go on with: leave --resume out"),
        (["--parent", "."], 1, "is no adapter to go on from: it has no adapter_config.json"),
    ],
)
def test_what_is_wrong_is_one_line(
    words: list[str], code: int, said: str, multilora: Run, place: Path, tmp_path: Path
) -> None:
    ran = trained(multilora, place, tmp_path / "new", *words)
    assert ran.code == code, ran.err
    assert said in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err


def test_bad_lines_are_all_named(multilora: Run, place: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": "a", "completion": "b"}\n{')
    ran = trained(multilora, place, tmp_path / "new", "--data", tmp_path / "bad.jsonl")
    assert ran.code == 1
    assert [line.split(":")[0].strip() for line in ran.err.splitlines()] == ["line 1", "line 3", "multilora"]
    assert ran.err.endswith("multilora: bad.jsonl: 2 bad lines\n")


def test_data_has_to_be_named(multilora: Run) -> None:
    ran = multilora("train", "run", "--output", "x")
    assert (ran.code, ran.err) == (2, "multilora: say what to train on: --data FILE\n")


def test_labelled_rows_tell_the_task(multilora: Run, place: Path, tmp_path: Path) -> None:
    labels = ("--data", place / "labels.jsonl", "--model", place / "encoder", "--output", tmp_path / "new")
    ran = multilora("train", "run", *labels, *FLAGS)
    assert ran.code == 0, ran.err
    assert json.loads((tmp_path / "new" / "labels.json").read_text()) == ["LOC", "O", "PER"]


def test_a_run_is_gone_on_with_from_its_folder_alone(
    multilora: Run, place: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = after(2)
    with monkeypatch.context() as patch:
        patch.setattr(Interrupts, "asked", property(lambda _: stop(), set_asked), raising=False)
        stopped = trained(multilora, place, tmp_path / "parts")
    again = f"multilora train run --output {tmp_path / 'parts'} --resume"
    assert stopped.code == 130
    assert stopped.err.splitlines()[-1] == f"stopped and saved after step 2; to go on: {again}"
    assert multilora(*again.split()[1:], "--learning-rate", 1).err.endswith(
        "holds a run with another learning_rate: 0.01, not 1.0\n"
    )
    other = multilora(*again.split()[1:], "--data", place / "other.jsonl")
    assert "holds a run with another training data: SHA-256 " in other.err
    ran = multilora(*again.split()[1:])
    assert ran.code == 0, ran.err
    assert "4 steps, going on after step 2" in ran.err
    assert same_files(tmp_path / "parts", whole)
    assert trained(multilora, place, whole).err.endswith(
        f"multilora: {whole} has a finished adapter: choose another folder\n"
    )


def set_asked(interrupts: object, value: bool) -> None:
    """Nothing is kept."""


def test_ctrl_c_on_a_terminal(place: Path, tmp_path: Path) -> None:
    """The bar is there; one Ctrl-C saves, and the command ends with 130 and how to go on."""
    output = tmp_path / "parts"
    words = ["--data", place / "train.jsonl", "--model", place / "base", "--output", output, *FLAGS]
    words += ["--steps", 500]
    command = [sys.executable, "-m", "server.cli.main", "train", "run", *map(str, words)]
    terminal, other = pty.openpty()
    with subprocess.Popen(command, stdin=other, stdout=other, stderr=other, start_new_session=True) as child:
        os.close(other)
        said = ""
        for text in reading(terminal):
            said += text
            if "loss=" in said and "stopping" not in said:
                child.send_signal(signal.SIGINT)
                time.sleep(0.2)
        assert child.wait(60) == 130, said
    assert "loss=" in said
    assert "stopping after this step, and saving" in said
    step = int(said.partition("stopped and saved after step ")[2].partition(";")[0])
    assert f"to go on: multilora train run --output {output} --resume" in " ".join(said.split())
    assert RunFolder(output).steps()[-1] == step


def reading(terminal: int) -> Iterator[str]:
    """What comes, until the other side is closed."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            text = os.read(terminal, 4096)
        except OSError:  # Linux says so when nobody has the other side open
            break
        if not text:
            break
        yield text.decode(errors="replace")
    os.close(terminal)
