"""`multilora jobs`: asked for, listed, and ended by their users."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapters.registry.records import LOCAL
from server.cli.exits import Exit
from server.jobs.records import Job
from tests.server.cli.conftest import Run
from tests.server.cli.live import Live
from tests.server.cli.scripted import Scripted
from training.protocol import Failure

ROWS = b'{"prompt": "a", "completion": "b"}\n'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_bytes(ROWS)
    return path


def job_of(live: Live, job_id: str) -> Job:
    assert live.training is not None
    return live.training.jobs.get(LOCAL, job_id)


def test_all_that_can_be_asked_for(ask: Run, live: Live, data: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.json"
    more.write_text(json.dumps({"max_length": 64, "epochs": 9, "lora": {"dropout": 0.1, "rank": 2}}))
    ended = ask(
        *("jobs", "create", data, "--validation", data, "--name", "shop", "--method", "dora", "--rank", 4),
        *(
            "--alpha",
            8,
            "--epochs",
            2,
            "--batch-size",
            2,
            "--learning-rate",
            0.001,
            "--seed",
            7,
            "--training",
            more,
        ),
        *("--promote", "--no-gate", "--metadata", "team=search", "--metadata", "empty="),
    )
    assert ended.code == 0, ended.err
    request = job_of(live, ended.out.strip()).request
    spec = request.spec
    assert (request.model, request.name, request.promote, request.gate) == ("tiny", "shop", "yes", False)
    assert request.metadata == {"team": "search", "empty": ""}
    assert request.validation_file is not None
    assert (spec.epochs, spec.batch_size, spec.learning_rate, spec.seed, spec.max_length) == (
        2,
        2,
        0.001,
        7,
        64,
    )
    assert (spec.lora.method, spec.lora.rank, spec.lora.alpha, spec.lora.dropout) == ("dora", 4, 8, 0.1)


def test_a_job_is_listed_shown_paused_resumed_and_cancelled(ask: Run, data: Path) -> None:
    file = ask("files", "put", data).out.strip()
    job = ask("jobs", "create", file, "--dpo").out.strip()
    row = next(line.split() for line in ask("jobs", "ls").out.splitlines() if line.startswith(job))
    assert row[:4] == [job, "validating_files", "tiny", f"ft-{job.removeprefix('ftjob-')[:12]}"]
    shown = ask("jobs", "show", job).out
    assert "dpo, CAUSAL_LM" in shown
    assert "lora, rank 8, alpha 32" in shown
    assert ask("jobs", "show", job, "--json").json["training_file"] == file
    assert ask("files", "rm", file).code == Exit.CONFLICT
    assert ask("jobs", "pause", job).out == f"{job} is paused\n"
    assert ask("jobs", "resume", job).out == f"{job} is validating_files\n"
    assert ask("jobs", "cancel", job).out == f"{job} is cancelled\n"
    refused = ask("jobs", "resume", job)
    assert (refused.code, refused.err.count("\n")) == (Exit.CONFLICT, 1)


def test_result_files_are_shown_with_their_names(ask: Run, live: Live, data: Path, tmp_path: Path) -> None:
    job_id = ask("jobs", "create", data).out.strip()
    assert live.training is not None
    jobs, files = live.training.jobs, live.training.files
    while (checking := jobs.claim_check()) is not None:
        jobs.checked(checking.id, checking.request)
    jobs.claim(1000)
    contents = {"step_metrics.csv": b"step\n1\n", f"{job_id}-curve.png": b"\x89PNG\r\n\x00"}
    with files.results(job_of(live, job_id), contents) as results:
        jobs.fail(job_id, Failure("diverged", "the loss is nan", fault="user"), results.ids, results.enter)
    first, curve = results.ids
    shown = ask("jobs", "show", job_id).out.splitlines()
    at = next(number for number, line in enumerate(shown) if line.startswith("result files"))
    assert shown[at].split()[2:] == [first, "step_metrics.csv"]
    assert shown[at + 1].split() == [curve, f"{job_id}-curve.png"]
    assert ask("files", "get", curve, "--output", tmp_path / "curve.png").code == 0
    assert (tmp_path / "curve.png").read_bytes() == contents[f"{job_id}-curve.png"]

    assert ask("files", "rm", first).code == 0
    lines = ask("jobs", "show", job_id).out.splitlines()
    assert lines[at].split()[2:] == [first]
    user = ask("jobs", "show", job_id, "--key", live.key("use"))
    assert (user.code, user.out.splitlines()[at + 1].split()) == (0, [curve])


def test_checkpoints(ask: Run, live: Live, data: Path) -> None:
    job = ask("jobs", "create", data).out.strip()
    assert live.training is not None
    jobs = live.training.jobs
    while (checking := jobs.claim_check()) is not None:
        jobs.checked(checking.id, checking.request)
    assert job in [claimed.id for claimed in jobs.claim(1000)]
    jobs.add_checkpoint(job, 10, f"{job}@1", {"train_loss": 0.5})
    line = ask("jobs", "checkpoints", job).out.splitlines()[1].split()
    assert line[:4] == ["10", f"{job}@1", "0.5000", "-"]
    jobs.succeed(job, "shop@1")


@pytest.mark.parametrize(
    "words",
    [
        ("show", "ftjob-1"),
        ("cancel", "../x"),
        ("create",),
        ("create", "x", "--rank", "many"),
        ("create", "x", "--metadata", "team"),
        ("create", "x", "--promote", "--no-promote"),
    ],
)
def test_wrong_command_lines_send_nothing(run: Run, server: Scripted, words: tuple[str, ...]) -> None:
    assert run("jobs", *words).code == Exit.USAGE
    assert server.asked == []


@pytest.mark.parametrize("content", ["[]", "{", '{"lora": 1}'])
def test_a_training_file_that_is_none(run: Run, server: Scripted, tmp_path: Path, content: str) -> None:
    path = tmp_path / "training.json"
    path.write_text(content)
    ended = run("jobs", "create", "x", "--training", path)
    assert (ended.code, ended.err.count("\n")) == (Exit.FAILED, 1)
    assert server.asked == []


def test_what_the_server_refuses_is_one_line(ask: Run, data: Path) -> None:
    ended = ask("jobs", "create", data, "--name", "Shop")
    assert (ended.code, ended.err.count("\n")) == (Exit.FAILED, 1)
    assert "use 'shop'" in ended.err
