"""The process that trains for a server: what it says of good jobs, bad ones, and those that are stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.base import MODEL_DIR
from training.protocol import Failure, GateWork, JobWork, Work, work_from_json, work_to_json
from training.run import TrainingError
from training.spec import LoraSpec, TrainSpec
from training.tasks import make_examples
from training.worker import Worker, alone, failure

ROOT = Path(__file__).parents[2]
SPEC = TrainSpec(LoraSpec(rank=1), steps=4, batch_size=2, save_every=2, learning_rate=1e-2)
Message = dict[str, Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = make_examples("shout", 12)
    path.write_text("".join(json.dumps(row.as_row()) + "\n" for row in rows))
    return path


def run(jobs: list[JobWork], asked: set[str] | None = None, *, check: bool = False) -> list[Message]:
    """What a worker says, in this process."""
    said: list[Message] = []
    work = Work(str(MODEL_DIR), 1, tuple(jobs), check=check)
    Worker(work, lambda job, message: said.append({"job": job, **message}), asked or set()).run()
    return json.loads(json.dumps(said))  # type: ignore[no-any-return]


def kinds(said: list[Message], job: str = "a") -> list[str]:
    return [message["event"] for message in said if message["job"] == job]


def test_work_as_json() -> None:
    job = JobWork(
        "a", Path("f"), Path("t"), SPEC, Path("v"), Path("p"), True, GateWork(None, 0.5), (("n", "s"),)
    )
    work = Work("base", 2, (job, JobWork("b", Path("g"), Path("t"), SPEC)), 1000, 5, True)
    assert work_from_json(json.loads(json.dumps(work_to_json(work)))) == work


def test_a_job_is_trained_stopped_and_gone_on_with(data: Path, tmp_path: Path) -> None:
    job = JobWork("a", tmp_path / "run", data, SPEC, data=(("rows.jsonl", "0" * 64),))
    stopped = run([job], {"a"})
    assert kinds(stopped) == ["started", "progress", "saved", "finished", "stopped"]

    said = run([replace(job, resume=True)])
    assert said[0]["resumed_from"] == 1
    assert kinds(said)[-2:] == ["finished", "complete"]
    assert said[-1]["metrics"]["steps"] == 4
    assert said[-1]["metrics"]["trained_tokens"] > 0
    assert Path(said[-1]["folder"], "adapter_model.safetensors").is_file()

    again = run([replace(job, resume=True)])  # its server was killed before it heard of the end
    assert kinds(again)[-1] == "complete"
    assert again[-1]["metrics"]["steps"] == 4


def test_several_train_together_and_one_fails_alone(data: Path, tmp_path: Path) -> None:
    good = JobWork("a", tmp_path / "a", data, SPEC)
    wild = JobWork("b", tmp_path / "b", data, replace(SPEC, learning_rate=1e30, optimizer="sgd", steps=8))
    empty = JobWork("c", tmp_path / "c", tmp_path / "nowhere", SPEC)
    said = run([good, wild, empty])
    assert kinds(said)[-1] == "complete"
    error = next(
        message["error"] for message in said if message["event"] == "failed" and message["job"] == "b"
    )
    assert (error["code"], error["fault"]) == ("diverged", "user")
    (error,) = (message["error"] for message in said if message["job"] == "c")
    assert error["fault"] == "server"


def test_the_gate_is_asked_and_a_result_that_is_no_better_does_not_pass(data: Path, tmp_path: Path) -> None:
    spec = replace(SPEC, steps=1, learning_rate=1e-9)
    poor = run([JobWork("a", tmp_path / "poor", data, spec, gate=GateWork())])
    assert kinds(poor)[-2:] == ["gate", "complete"]
    gate = poor[-2]
    assert (gate["passed"], gate["held_out"]) == (False, False)
    assert gate["reason"]
    assert set(gate["scores"]) == {"base", "adapter"}

    better = JobWork(
        "a", tmp_path / "better", data, replace(SPEC, steps=12), data, gate=GateWork(tmp_path / "poor")
    )
    gate = run([better])[-2]
    assert (gate["passed"], gate["held_out"]) == (True, True)
    assert gate["scores"]["adapter"]["validation_loss"] < gate["scores"]["current"]["validation_loss"]


def test_data_is_checked(data: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\nno json\n')
    said = run([JobWork("a", tmp_path, data, SPEC), JobWork("b", tmp_path, data, SPEC, bad)], check=True)
    assert kinds(said) == ["checked"]
    assert said[0]["report"]["statistics"]["examples"] == 12
    (error,) = (message["error"] for message in said if message["job"] == "b")
    assert (error["code"], error["param"], error["fault"]) == (
        "invalid_validation_file",
        "validation_file",
        "user",
    )
    assert [line.partition(": ")[0] for line in error["details"]] == ["bad.jsonl line 2", "bad.jsonl line 3"]
    assert not (tmp_path / "run").exists()


def test_what_is_told_of_data_is_small_whatever_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    labels = ("a" * 100_000, "b" * 100_000, "b" * 100_000)
    path.write_text("".join(json.dumps({"text": "x", "label": label}) + "\n" for label in labels))
    job = JobWork("a", tmp_path, path, TrainSpec(task="SEQ_CLS"))
    (said,) = run([job], check=True)
    assert said["event"] == "checked"
    assert "rare_label" in {finding["kind"] for finding in said["report"]["warnings"]}
    assert len(json.dumps(said)) < 10_000


@pytest.mark.parametrize(
    ("error", "code", "fault"),
    [
        (MemoryError(), "out_of_memory", "user"),
        (TrainingError("diverged", "the loss is nan"), "diverged", "user"),
        (ValueError("target modules x are not in this base"), "invalid_training", "user"),
        (KeyError("layers"), "server_error", "server"),
        (OSError(28, "No space left on device"), "server_error", "server"),
    ],
)
def test_whose_fault_it_is(error: Exception, code: str, fault: str) -> None:
    found = failure(error, 2**30)
    assert (found.code, found.fault) == (code, fault)
    assert found.message
    assert Failure.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_one_process_at_a_time_has_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.worker._LOCK_SECONDS", 0.1)
    with alone(tmp_path), pytest.raises(TimeoutError, match="another process trains"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


def test_the_process_ends_when_its_server_is_gone(data: Path, tmp_path: Path) -> None:
    spec = replace(SPEC, steps=100_000, save_every=10**6)
    work = Work(str(MODEL_DIR), 1, (JobWork("a", tmp_path / "run", data, spec),), 2**31, nice=0)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "training.worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(work_to_json(work)).encode() + b"\n")
        process.stdin.flush()
        first = process.stdout.readline()
        assert json.loads(first)["event"] == "started", (tmp_path / "log").read_text()
        assert json.loads(process.stdout.readline())["event"] == "progress"
        process.stdin.close()
        assert process.wait(10) == 1
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
