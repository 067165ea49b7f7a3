"""A run that was stopped, or killed, and gone on with ends with the same bytes as one that was not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.run.stand import ROWS, SPEC, after, data, in_parts, make_base, same_files
from training.folder import STATE, RunFolder
from training.run import RunResult, train
from training.spec import LoraSpec, TrainSpec

DATA = data(validation=4)
SPECS = {
    "adamw": SPEC,
    "sgd": replace(SPEC, optimizer="sgd", learning_rate=0.5, schedule="linear"),
    "bfloat16": replace(SPEC, precision="bfloat16", schedule="constant"),
    "checkpointing": replace(SPEC, gradient_checkpointing=True),
    "dora, bias": replace(SPEC, lora=LoraSpec("dora", rank=2, dropout=0.2, bias="all")),
}


@pytest.fixture(scope="module", autouse=True)
def _no_picture() -> Iterator[None]:
    """It takes longer than these runs, and has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.run.course.draw", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), bias=True)


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return train(SPEC, base, DATA, tmp_path_factory.mktemp("run") / "whole")


def test_stopped_after_each_step(base: Path, whole: RunResult, tmp_path: Path) -> None:
    """Three steps are an epoch, and its last has one forward pass in place of two."""
    assert (ROWS, SPEC.batch_size, SPEC.accumulation, SPEC.steps) == (10, 2, 2, 7)
    parts = in_parts(base, tmp_path / "parts", SPEC, DATA, [1] * 6)
    assert parts.losses == whole.losses
    assert (parts.steps, parts.trained_tokens) == (whole.steps, whole.trained_tokens)
    assert parts.evaluation == whole.evaluation
    assert same_files(parts.folder, whole.folder)


@pytest.mark.parametrize("name", [name for name in SPECS if name != "adamw"])
def test_stopped_within_an_epoch_and_at_its_end(name: str, base: Path, tmp_path: Path) -> None:
    spec = SPECS[name]
    one = train(spec, base, data(), tmp_path / "one")
    two = in_parts(base, tmp_path / "two", spec, data(), [2, 1])
    assert two.losses == one.losses
    assert len(set(one.losses)) == 7
    assert same_files(one.folder, two.folder)


def test_a_run_without_dropout_is_another(base: Path, whole: RunResult, tmp_path: Path) -> None:
    """What is compared here can differ: dropout draws at each step."""
    dry = train(replace(SPEC, lora=replace(SPEC.lora, dropout=0.0)), base, DATA, tmp_path / "dry")
    assert dry.losses != whole.losses


_KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.training.run.stand import SPEC, data, make_base
from training.run import train, checkpoint, trainer

counts = {"pass": 9, "checkpoint": 2}

def count_down(what):
    counts[what] -= 1
    if counts[what] == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def killed_in_a_pass():  # the second of the fifth step
    compute = trainer.Supervised.compute_loss
    def killing(self, *args, **options):
        count_down("pass")
        return compute(self, *args, **options)
    trainer.Supervised.compute_loss = killing

def killed_in_a_checkpoint():  # the second is written, and does not have its name yet
    settle = checkpoint._settle
    def killing(folder):
        settle(folder)
        count_down("checkpoint")
    checkpoint._settle = killing

for kill in (killed_in_a_pass, killed_in_a_checkpoint):
    if not os.fork():
        kill()
        train(SPEC, sys.argv[1], data(validation=4), Path(sys.argv[2]) / kill.__name__)
        os._exit(0)
    assert os.wait()[1] == signal.SIGKILL
"""


def test_killed(base: Path, whole: RunResult, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, base, tmp_path], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    for where in ("killed_in_a_pass", "killed_in_a_checkpoint"):
        run = RunFolder(tmp_path / where)
        assert run.steps() == [3]
        result = train(SPEC, base, DATA, run.path, resume=True)
        assert result.losses == whole.losses
        assert same_files(result.folder, whole.folder)


def test_all_of_a_checkpoint_is_safetensors_and_json(whole: RunResult) -> None:
    newest = RunFolder(whole.folder).latest()
    assert newest is not None
    assert sorted(path.name for path in newest.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        STATE,
    ]
    assert sorted(path.name for path in (newest / STATE).iterdir()) == [
        "optimizer.safetensors",
        "random.safetensors",
        "state.json",
        "trainable.safetensors",
    ]
    files = (path for path in whole.folder.rglob("*") if path.is_file() and path.parent.name != "tensorboard")
    kinds = {path.suffix for path in files}
    assert kinds == {"", ".json", ".jsonl", ".md", ".safetensors"}  # without a name's end: the lock


def test_a_result_is_given_once_more_and_not_written_over(base: Path, whole: RunResult) -> None:
    before = (whole.folder / "adapter_model.safetensors").read_bytes()
    again = train(SPEC, base, DATA, whole.folder, resume=True)
    assert (again.complete, again.reason, again.losses) == (True, "done", whole.losses)
    assert (whole.folder / "adapter_model.safetensors").read_bytes() == before
    with pytest.raises(ValueError, match="has a finished adapter: choose another folder"):
        train(SPEC, base, DATA, whole.folder)


def test_an_unfinished_run_is_not_begun_anew(base: Path, tmp_path: Path) -> None:
    train(SPEC, base, DATA, tmp_path / "run", stop=after(1))
    with pytest.raises(ValueError, match="has an unfinished run: resume it, or choose another folder"):
        train(SPEC, base, DATA, tmp_path / "run")


@pytest.mark.parametrize(
    ("spec", "seed", "said"),
    [
        (replace(SPEC, learning_rate=1e-3), 0, "another learning_rate: 0.02, not 0.001"),
        (SPEC, 5, "another training data: SHA-256 [0-9a-f]{64}, not [0-9a-f]{64}; another validation data"),
    ],
)
def test_something_else_is_refused(
    spec: TrainSpec, seed: int, said: str, base: Path, whole: RunResult
) -> None:
    with pytest.raises(ValueError, match=said):
        train(spec, base, data(validation=4, seed=seed), whole.folder, resume=True)


def test_another_base_is_refused(whole: RunResult, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other")
    with pytest.raises(ValueError, match=r"another base: .* as it was then, not .*other as it is now"):
        train(SPEC, other, DATA, whole.folder, resume=True)


def test_nothing_to_go_on_with_is_a_beginning(base: Path, whole: RunResult, tmp_path: Path) -> None:
    """A server asks for a resume of what was killed before its first checkpoint."""
    assert same_files(train(SPEC, base, DATA, tmp_path / "run", resume=True).folder, whole.folder)
