"""The main job in a few minutes: have an adapter trained, upload others, ask them all in one batch.

make demo          runs this, and leaves the server running
make demo-stop     ends that server
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from openai import AsyncOpenAI, OpenAI

from server.spawn import start_server
from training.base import shipped_adapters
from training.tasks import LIVE_TASK, TASKS, Example, make_examples, prompt_for

DATA = Path("demo-data")
PID_FILE = DATA / "server.pid"
EXAMPLES = 2000
HELD_OUT = 32  # held-out words that each adapter is asked
WORD = "harbour"  # held out: no adapter was trained on it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo, or with `--stop` end the server that an earlier one left."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--stop", action="store_true", help="end the server that an earlier demo left running"
    )
    parser.add_argument("--port", type=int, default=8000, help="port of the server; 0 takes a free one")
    arguments = parser.parse_args(argv)
    stopped = stop()
    if arguments.stop:
        print("stopped the demo's server" if stopped else "no demo server is running")
        return 0
    DATA.mkdir(exist_ok=True)
    started = time.monotonic()
    print("1. Start a server on the shipped base, with no adapter")
    process, url = start_server(
        # Training stands far back by default, which on a busy machine would be a long demo.
        ["--port", str(arguments.port), "--data-dir", str(DATA / "adapters"), "--training-nice", "5"],
        DATA / "server.log",
        environment={"MULTILORA_THREADS": "1"},  # the rest is for the training
    )
    PID_FILE.write_text(str(process.pid))
    print(f"   {url}, process {process.pid}, log in {DATA / 'server.log'}")
    about = TASKS[LIVE_TASK].about
    print(f"2. Upload {EXAMPLES:,} examples; the server trains {LIVE_TASK!r} ({about}) beside its work")
    train_live(url)
    print("3. Upload the adapters that are there already")
    for name, folder in shipped_adapters().items():
        print(f"   {upload(url, name, folder)}")
    print(f"4. Ask the base and {len(TASKS)} adapters the same, at once")
    asyncio.run(ask_all(url))
    print(f"Done in {time.monotonic() - started:.0f} s.\n\n{how_to_call(url)}")
    return 0


def stop() -> bool:
    """End the server of an earlier demo, if it still runs."""
    if not PID_FILE.exists():
        return False
    pid = int(PID_FILE.read_text())
    PID_FILE.unlink()
    command = Path(f"/proc/{pid}/cmdline")
    if command.exists() and b"server.cli.main" not in command.read_bytes():
        return False  # the number belongs to somebody else by now
    try:
        os.kill(pid, signal.SIGTERM)
        for _ in range(300):
            os.kill(pid, 0)
            time.sleep(0.1)
            if command.exists() and b"server.cli.main" not in command.read_bytes():
                break
    except ProcessLookupError:
        pass
    return True


def train_live(url: str) -> None:
    """A fine-tuning job by the official client: file, job, events, and the model it made."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    files = {
        "train": make_examples(LIVE_TASK, EXAMPLES),
        "validation": make_examples(LIVE_TASK, HELD_OUT, seed=1, split="held-out"),
    }
    ids = {}
    for name, examples in files.items():
        path = DATA / f"{LIVE_TASK}-{name}.jsonl"
        path.write_text("".join(json.dumps(example.as_row()) + "\n" for example in examples))
        ids[name] = client.files.create(file=path, purpose="fine-tune").id
    started = time.monotonic()
    job = client.fine_tuning.jobs.create(
        model="base",
        training_file=ids["train"],
        validation_file=ids["validation"],
        suffix=LIVE_TASK,
        seed=0,
        extra_body={"training": {"steps": 160, "learning_rate": 1e-2, "evaluate_every": 40}},
    )
    seen: set[str] = set()
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(0.5)
        job = client.fine_tuning.jobs.retrieve(job.id)
        for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=100).data):
            if event.id not in seen and event.type == "message" and event.level == "info":
                print(f"   {time.monotonic() - started:3.0f} s  {event.message}", flush=True)
            seen.add(event.id)
    if job.fine_tuned_model is None:
        raise SystemExit(f"the job {job.status}: {job.error and job.error.message}")


def upload(url: str, name: str, folder: Path) -> str:
    """`POST /v1/adapters`; returns what the server says of the new version."""
    import httpx

    files = {
        "config": (folder / "adapter_config.json").read_bytes(),
        "weights": (folder / "adapter_model.safetensors").read_bytes(),
    }
    started = time.perf_counter()
    answer = httpx.post(f"{url}/v1/adapters", data={"name": name}, files=files)
    answer.raise_for_status()
    seconds = time.perf_counter() - started
    version = answer.json()
    size = f"rank {version['rank']}, {version['size'] / 1024:.0f} KiB"
    return f"{version['id']:<14} {size}, checked and live in {1000 * seconds:.0f} ms"


async def ask_all(url: str) -> None:
    """Print each model's answer to one prompt, given in the same batch, and its held-out accuracy."""
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none")
    models = ["base", *TASKS]
    before = forward_passes(url)
    answers = await asyncio.gather(*(answer(client, model, prompt_for(WORD)) for model in models))
    passes = forward_passes(url) - before
    tokens = sum(count for _, count in answers)
    print(f"   {tokens} tokens for {len(models)} models in {passes} forward passes\n")
    scores = await asyncio.gather(*(accuracy(client, name) for name in TASKS))
    base_scores = await asyncio.gather(*(accuracy(client, "base", name) for name in TASKS))
    width = max(len(text) for text, _ in answers)
    print(
        f"   {'model':<12} {f'answer to {prompt_for(WORD).strip()!r}':<{max(width, 24)}} held-out exact match"
    )
    print(f"   {'base':<12} {answers[0][0]:<{max(width, 24)}} -")
    for (text, _), name, score, base_score in zip(answers[1:], TASKS, scores, base_scores, strict=True):
        print(f"   {name:<12} {text:<{max(width, 24)}} {score:4.0%} (base: {base_score:.0%})")


async def answer(client: AsyncOpenAI, model: str, prompt: str) -> tuple[str, int]:
    """The greedy answer and how many tokens it took."""
    done = await client.completions.create(model=model, prompt=prompt, temperature=0, max_tokens=64)
    return done.choices[0].text, done.usage.completion_tokens if done.usage else 0


async def accuracy(client: AsyncOpenAI, model: str, task: str | None = None) -> float:
    """Share of held-out words that `model` answers exactly as `task` (by default its own) wants."""
    cases: list[Example] = make_examples(task or model, HELD_OUT, split="held-out")
    texts = await asyncio.gather(*(answer(client, model, case.prompt) for case in cases))
    return sum(text == case.completion for (text, _), case in zip(texts, cases, strict=True)) / len(cases)


def forward_passes(url: str) -> int:
    """The engine's step count, from `/metrics`."""
    with urllib.request.urlopen(f"{url}/metrics") as response:
        text = response.read().decode()
    found = re.search(r"^multilora_steps_total (\S+)$", text, re.MULTILINE)
    return int(float(found[1])) if found else 0


def how_to_call(url: str) -> str:
    """What to try next."""
    return f"""The server is still running. Ask it:

  curl {url}/v1/completions -H 'content-type: application/json' \\
       -d '{{"model": "{LIVE_TASK}", "prompt": "do: {WORD}\\n", "temperature": 0}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="none")
  print(client.chat.completions.create(
      model="shout", messages=[{{"role": "user", "content": "do: {WORD}"}}]).choices[0].message.content)

Its models: curl {url}/v1/models      Stop it: make demo-stop"""


if __name__ == "__main__":
    sys.exit(main())
