"""The official client trains on a real server: a file, events, checkpoints to ask, an adapter that works."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from server.cli.main import main
from server.spawn import serving
from training.base import MODEL_DIR
from training.evaluate import answers
from training.tasks import Example, make_examples

TASKS = ("shout", "spell", "greeter")
"""They train together, as three jobs; the first one is followed."""
HELD_OUT = {task: make_examples(task, 32, split="held-out") for task in TASKS}
TRAINING = {
    "lora": {"rank": 4, "alpha": 8, "target_modules": "all-linear"},
    "steps": 60,
    "batch_size": 8,
    "learning_rate": 1e-2,
}
SECONDS = 200


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("training")
    arguments = ["--data-dir", str(folder / "data"), "--dtype", "float32"]
    arguments += ["--training-threads", "1", "--training-nice", "5"]
    with serving(arguments, folder / "server.log", environment={"OMP_NUM_THREADS": "1"}) as url:
        yield url


def upload(client: OpenAI, rows: list[Example]) -> str:
    text = "".join(json.dumps(row.as_row()) + "\n" for row in rows)
    return client.files.create(file=("rows.jsonl", text.encode()), purpose="fine-tune").id


def ask(client: OpenAI, model: str, task: str) -> list[str]:
    """Greedy answers to what was never trained."""
    prompts = [case.prompt for case in HELD_OUT[task]]
    found: list[str] = []
    for start in range(0, len(prompts), 16):  # as many prompts as one request may have
        part = prompts[start : start + 16]
        done = client.completions.create(model=model, prompt=part, max_tokens=48, temperature=0)
        found += [choice.text for choice in sorted(done.choices, key=lambda choice: choice.index)]
    return found


def share(found: list[str], task: str) -> float:
    """Of those that are exactly right."""
    cases = HELD_OUT[task]
    return sum(text == case.completion for text, case in zip(found, cases, strict=True)) / len(cases)


def create(client: OpenAI, task: str, **training: int) -> FineTuningJob:
    rows = make_examples(task, 600)
    return client.fine_tuning.jobs.create(
        model="base",
        training_file=upload(client, rows[:500]),
        validation_file=upload(client, rows[500:520]),
        suffix=task,
        seed=1,
        extra_body={"training": {**TRAINING, **training}},
    )


def follow(client: OpenAI, job_id: str, told: dict[str, FineTuningJobEvent]) -> FineTuningJob:
    """The job as it is now; `told` gets its new events."""
    events = client.fine_tuning.jobs.list_events(job_id, limit=100).data
    told.update((event.id, event) for event in reversed(events) if event.id not in told)
    return client.fine_tuning.jobs.retrieve(job_id)


def test_from_files_to_live_adapters(url: str, tmp_path: Path) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    for task in TASKS:
        assert share(ask(client, "base", task), task) <= 0.1

    job = create(client, TASKS[0], evaluate_every=15)
    others = [create(client, task, evaluate_every=60) for task in TASKS[1:]]
    told: dict[str, FineTuningJobEvent] = {}
    asked = False
    deadline = time.monotonic() + SECONDS
    while job.status not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() < deadline, told
        job = follow(client, job.id, told)
        ready = client.fine_tuning.jobs.checkpoints.list(job.id).data
        if ready and not asked:
            done = client.completions.create(
                model=ready[-1].fine_tuned_model_checkpoint,
                prompt=HELD_OUT[TASKS[0]][0].prompt,
                temperature=0,
            )
            assert done.model == ready[-1].fine_tuned_model_checkpoint == f"{job.id}@1"
            asked = client.fine_tuning.jobs.retrieve(job.id).status == "running"
        time.sleep(0.1)
    follow(client, job.id, told)
    assert job.status == "succeeded", [event.message for event in told.values()]
    assert asked, "no checkpoint answered while the job ran"

    assert job.fine_tuned_model == "shout@1"
    assert job.trained_tokens
    figures = [event.data for event in told.values() if event.type == "metrics"]
    assert any("full_valid_loss" in data for data in figures if isinstance(data, dict))
    assert any(event.message.startswith("Evaluation gate: ") for event in told.values())
    checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert [checkpoint.step_number for checkpoint in checkpoints] == [60, 45, 30, 15]
    assert checkpoints[0].metrics.full_valid_loss is not None
    results = client.files.content(job.result_files[0]).text.splitlines()
    assert results[0].startswith("step,train_loss")
    assert len(results) == 1 + 60
    names = [client.files.retrieve(file_id).filename for file_id in job.result_files]
    assert names[1:] == [f"{job.id}-{name}" for name in ("card.md", "curve.png", "lineage.json")]
    card, curve, lineage = (client.files.content(file_id) for file_id in job.result_files[1:])
    assert "exact_match" in card.text
    assert curve.read()[:8] == b"\x89PNG\r\n\x1a\n"
    assert curve.response.headers["content-type"] == "image/png"
    assert lineage.json()["job"] == job.id

    for other in others:
        while follow(client, other.id, {}).status not in ("succeeded", "failed", "cancelled"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    for task in TASKS:
        served = ask(client, f"{task}@1", task)
        assert share(served, task) >= 0.9
        assert served == in_plain_peft(url, f"{task}@1", task, tmp_path / task)
    lineage = json.loads((tmp_path / TASKS[0] / "lineage.json").read_text())
    assert lineage["job"] == job.id
    assert lineage["scores"]["exact_match"] >= 0.9 > lineage["scores"]["base.exact_match"]


def in_plain_peft(url: str, ref: str, task: str, folder: Path) -> list[str]:
    """What PEFT and transformers alone say with the files that the server hands out."""
    assert main(["pull", ref, str(folder), "--server", url]) == 0
    base = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR, padding_side="left")
    return answers(model, tokenizer, [case.prompt for case in HELD_OUT[task]])
