"""How long a tenant waits from a file of examples to an adapter that answers, and how well it does."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import TYPE_CHECKING

from bench.rounds import Figures, Rounds, run_rounds
from bench.setting import Bench
from training.tasks import Example, make_examples

if TYPE_CHECKING:
    from openai import OpenAI

TASKS = ("json", "mirror", "spell")
"""Answers that the shipped base does not give."""
_ROWS, _VALIDATION, _HELD_OUT = 1200, 32, 96
_PROMPTS = 16  # as many as one request may have
_QUICK = {"steps": 2}


def measure_fine_tuning(bench: Bench) -> Rounds:
    """By OpenAI's client on a server as it is by default, which has nothing else to do: a job for each task.

    `seconds_to_live`: from the upload until the job has succeeded and its adapter answers; `training`: from
    when it was taken up; `base` and `adapter`: exact match on words that are in no file.
    """
    from openai import OpenAI

    with bench.serving("fine-tuning", {}) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        done = run_rounds(
            {task: partial(_one, client, task, bench.quick) for task in TASKS}, bench.repeats, warm=False
        )
    done.notes.append(
        f"{_ROWS} rows, all settings `auto`; a validation file of {_VALIDATION} rows; "
        f"exact match over {_HELD_OUT} held-out words, through the server"
    )
    return done


def _one(client: OpenAI, task: str, quick: bool, number: int) -> Figures:
    held_out = make_examples(task, _HELD_OUT, split="held-out")
    before = _exact(client, "base", held_out)
    started = time.perf_counter()
    rows = make_examples(task, _ROWS + _VALIDATION, seed=number)
    job = client.fine_tuning.jobs.create(
        model="base",
        training_file=_upload(client, rows[_VALIDATION:]),
        validation_file=_upload(client, rows[:_VALIDATION]),
        suffix=f"{task}-{number}",
        seed=number,
        extra_body={"training": _QUICK, "gate": {"on": False}} if quick else None,
    )
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(0.2)
        job = client.fine_tuning.jobs.retrieve(job.id)
    if job.fine_tuned_model is None:
        raise RuntimeError(f"the job {job.status}: {job.error and job.error.message}")
    _answers(client, job.fine_tuned_model, held_out[:1])
    seconds = time.perf_counter() - started
    told = {
        event.message: event.created_at for event in client.fine_tuning.jobs.list_events(job.id, limit=100)
    }
    return {
        "seconds_to_live": seconds,
        "training": float((job.finished_at or 0) - told["Fine-tuning job started"]),
        "base": before,
        "adapter": _exact(client, job.fine_tuned_model, held_out),
    }


def _upload(client: OpenAI, rows: list[Example]) -> str:
    text = "".join(json.dumps(row.as_row()) + "\n" for row in rows)
    return client.files.create(file=("rows.jsonl", text.encode()), purpose="fine-tune").id


def _exact(client: OpenAI, model: str, cases: list[Example]) -> float:
    """Share of answers that are right to the letter."""
    found = _answers(client, model, cases)
    return sum(text == case.completion for text, case in zip(found, cases, strict=True)) / len(cases)


def _answers(client: OpenAI, model: str, cases: list[Example]) -> list[str]:
    found: list[str] = []
    for first in range(0, len(cases), _PROMPTS):
        prompts = [case.prompt for case in cases[first : first + _PROMPTS]]
        done = client.completions.create(model=model, prompt=prompts, max_tokens=48, temperature=0)
        found += [choice.text for choice in sorted(done.choices, key=lambda choice: choice.index)]
    return found
