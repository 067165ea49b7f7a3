"""What requests notice of a job that trains on the same server, bounded as it is and unbounded."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from bench.load import TIMEOUT, ask, median, random_prompt
from bench.rounds import WARM, Case, Figures, Rounds, run_rounds
from bench.setting import Bench, threads

ALONE, BESIDE, UNBOUNDED = "no job", "a job", "a job at nice 0 with all threads"
REQUESTS = 60
_QUICK_REQUESTS = 4
_TOKENS = 16  # of each answer
_ROWS, _WORDS = 256, 64  # of the training file; words of a row, half of them trained
_TRAINING = {"lora": {"rank": 16, "alpha": 32}, "batch_size": 8, "steps": 1_000_000}
_STEPS = "multilora_training_steps"


def measure_training_beside(bench: Bench) -> Rounds:
    """Requests come at a steady pace, one in twice the time that one takes alone: first tokens, and gaps.

    The cases `no job` and `a job` are on one server as it is by default; `a job at nice 0 with all threads`
    is on another, with `--training-nice 0` and as many `--training-threads` as there are cores.
    """
    everything = ["--training-nice", "0", "--training-threads", str(threads())]
    with ExitStack() as stack:
        url = stack.enter_context(bench.serving("beside", {}))
        other = stack.enter_context(bench.serving("unbounded", {}, *everything))
        pace = 2 * _alone(url, bench)
        cases = {
            ALONE: _case(url, bench, pace, None),
            BESIDE: _case(url, bench, pace, _upload(url)),
            UNBOUNDED: _case(other, bench, pace, _upload(other)),
        }
        done = run_rounds(cases, bench.repeats, warm=not bench.quick)
    done.notes.append(
        f"a request of {bench.prompt_tokens} prompt tokens and {_TOKENS} new ones every {pace:.2f} s; "
        f"the job: rank 16 on all linear layers, rows of {_WORDS} tokens, {_TRAINING['batch_size']} in a step"
    )
    return done


def _case(url: str, bench: Bench, pace: float, file: str | None) -> Case:
    requests = _QUICK_REQUESTS if bench.quick else REQUESTS

    def run(number: int) -> Figures:
        count = _QUICK_REQUESTS if number == WARM else requests
        if file is None:
            return latencies(asyncio.run(_paced(url, bench, pace, count, number)))
        with _job(url, file):
            before, started = _steps(url), time.perf_counter()
            figures = latencies(asyncio.run(_paced(url, bench, pace, count, number)))
            rate = (_steps(url) - before) / (time.perf_counter() - started)
        return {**figures, "steps_per_second": rate}

    return run


def latencies(answers: Sequence[Sequence[float]]) -> Figures:
    """Of answers as `ask` times them: seconds to the first token and between two, median and 99%."""
    first = sorted(answer[1] - answer[0] for answer in answers)
    between = sorted(
        later - earlier for answer in answers for earlier, later in itertools.pairwise(answer[1:])
    )
    return {
        "first_token": median(first),
        "first_token_p99": _p99(first),
        "between_tokens": median(between),
        "between_tokens_p99": _p99(between),
    }


def _p99(ordered: Sequence[float]) -> float:
    return ordered[int(0.99 * (len(ordered) - 1) + 0.5)]


async def _paced(url: str, bench: Bench, pace: float, count: int, seed: int) -> list[list[float]]:
    """Each request is sent at its time, whether or not those before it are answered."""
    generator = random.Random(seed)
    async with httpx.AsyncClient(timeout=TIMEOUT) as client:
        running = []
        for _ in range(count):
            prompt = random_prompt(generator, bench.prompt_tokens, bench.vocabulary)
            running.append(asyncio.create_task(ask(client, url, "base", prompt, _TOKENS)))
            await asyncio.sleep(pace)
        return list(await asyncio.gather(*running))


def _alone(url: str, bench: Bench) -> float:
    """Seconds that one request takes."""

    async def run() -> list[list[float]]:
        return [(await _paced(url, bench, 0, 1, seed))[0] for seed in range(-6, -1)]

    return median([answer[-1] - answer[0] for answer in asyncio.run(run())])


@contextmanager
def _job(url: str, file: str) -> Iterator[None]:
    """A job trains for the length of a `with`.

    Raises:
        RuntimeError: it does not.
    """
    body = {"model": "base", "training_file": file, "training": _TRAINING, "gate": {"on": False}}
    job = _post(f"{url}/v1/fine_tuning/jobs", json=body)["id"]
    path = f"{url}/v1/fine_tuning/jobs/{job}"
    before = _steps(url)
    try:
        while _steps(url) < before + 2:
            status = httpx.get(path, timeout=TIMEOUT).json()
            if status["status"] == "failed":
                raise RuntimeError(status["error"]["message"])
            time.sleep(0.2)
        yield
    finally:
        _post(f"{path}/cancel")
        while _running(url):
            time.sleep(0.2)


def _upload(url: str) -> str:
    generator = random.Random(0)

    def words(count: int) -> str:
        return " ".join(f"t{generator.randrange(3, 500)}" for _ in range(count))

    rows = [{"prompt": words(_WORDS // 2), "completion": words(_WORDS // 2)} for _ in range(_ROWS)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    files = {"file": ("rows.jsonl", text.encode())}
    file: str = _post(f"{url}/v1/files", data={"purpose": "fine-tune"}, files=files)["id"]
    return file


def _post(url: str, **content: Any) -> Any:
    answer = httpx.post(url, timeout=TIMEOUT, **content)
    answer.raise_for_status()
    return answer.json()


def _steps(url: str) -> float:
    return _metric(url, _STEPS)


def _running(url: str) -> float:
    return _metric(url, "multilora_training_running")


def _metric(url: str, name: str) -> float:
    text = httpx.get(f"{url}/metrics", timeout=TIMEOUT).text
    families = text_string_to_metric_families(text)
    return sum(sample.value for family in families if family.name == name for sample in family.samples)
