"""Everything at once on a real server: no answer of another version than it names, and no request lost.

SOAK_SECONDS says for how long; `make soak` takes minutes.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import PeftModel
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from server.spawn import start_server, stop_server
from tests.promises.soak import TOKENS, Content, Soak
from training.base import MODEL_DIR, shipped_adapters
from training.tasks import prompt_for

SECONDS = float(os.environ.get("SOAK_SECONDS", "8"))
WORDS = ("garden", "silver", "window", "planet", "bridge", "orange")
"""As long as one another: one batch without padding."""
ALPHAS = (16.0, 11.0)
CLEAR = 1e-3
"""By how much PEFT's best token leads at least: no rounding error changes the answer then."""
ARGUMENTS = [
    *("--port", "0", "--dtype", "float32", "--max-model-len", "128"),
    # Prompts of several KV blocks, and room for few adapters and sequences: they are evicted and preempted.
    *("--block-size", "4"),
    *("--adapter-memory-gb", "0.0012", "--kv-cache-gb", "0.0007", "--max-running", "8"),
]


def greedy_texts(model: Any, tokenizer: Any) -> dict[str, str]:
    """Plain PEFT's answers by word, without those that hang by a hair."""
    prompts = tokenizer([prompt_for(word) for word in WORDS], return_tensors="pt")
    config = GenerationConfig(
        max_new_tokens=TOKENS,
        do_sample=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    done = model.generate(**prompts, generation_config=config)
    answers = done.sequences[:, prompts["input_ids"].shape[1] :]
    best = torch.stack(done.scores).topk(2).values  # steps x words x 2
    leads = (best[..., 0] - best[..., 1]).T
    ended = (answers == 2).cumsum(1) - (answers == 2).int() > 0
    clear = (leads > CLEAR) | ended
    return {
        word: tokenizer.decode(answers[row], skip_special_tokens=True)
        for row, word in enumerate(WORDS)
        if bool(clear[row].all())
    }


def contents(folder: Path) -> list[Content]:
    """Shipped adapters in two strengths each, with their answers to the words that are clear for all."""
    base = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    found = []
    for name, source in shipped_adapters().items():
        weights = (source / "adapter_model.safetensors").read_bytes()
        for alpha in ALPHAS:
            config = json.loads((source / "adapter_config.json").read_bytes()) | {"lora_alpha": alpha}
            place = folder / f"{name}-{alpha}"
            place.mkdir()
            (place / "adapter_config.json").write_text(json.dumps(config))
            (place / "adapter_model.safetensors").write_bytes(weights)
            model = PeftModel.from_pretrained(base, str(place))
            found.append((json.dumps(config).encode(), weights, greedy_texts(model, tokenizer)))
            base = model.unload()
    words = set(WORDS).intersection(*(answers.keys() for _, _, answers in found))
    assert len(words) >= 2
    return [Content(config, weights, {w: answers[w] for w in words}) for config, weights, answers in found]


@dataclass
class Server:
    url: str
    data: Path
    pid: int

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/v1/status").json()
        return found

    def quiet(self) -> dict[str, Any]:
        """The status, once nothing runs."""
        deadline = time.monotonic() + 20
        while True:
            status = self.status()
            busy = status["running"], status["waiting"], status["memory"]["kv_blocks_used"]
            if not any(busy) and not any(adapter["requests"] for adapter in status["adapters"]):
                return status
            assert time.monotonic() < deadline, status
            time.sleep(0.05)

    def metrics(self) -> Counter[str]:
        """Values by name, and by outcome where there is one; all adapters together."""
        values: Counter[str] = Counter()
        for family in text_string_to_metric_families(httpx.get(f"{self.url}/metrics").text):
            for sample in family.samples:
                values[" ".join((sample.name, sample.labels.get("outcome", ""))).strip()] += sample.value  # type: ignore[assignment]
        return values

    def megabytes(self) -> float:
        """Resident memory of the process."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[Server, list[Content]]]:
    """A server, and beside its start what PEFT says."""
    data = tmp_path / "data"
    arguments = [*ARGUMENTS, "--data-dir", str(data)]
    with ThreadPoolExecutor(1) as beside:
        known = beside.submit(contents, tmp_path)
        process, url = start_server(arguments, tmp_path / "log", environment={"OMP_NUM_THREADS": "1"})
        try:
            yield Server(url, data, process.pid), known.result()
        finally:
            code = stop_server(process)
    assert code == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_every_answer_is_of_the_version_that_it_names_whatever_is_changed_meanwhile(
    started: tuple[Server, list[Content]],
) -> None:
    server, known = started
    soak = Soak(known, SECONDS)
    before = server.megabytes()
    asyncio.run(soak.run(server.url))

    whole = [asked for asked in soak.asked if asked.whole]
    status, metrics = server.quiet(), server.metrics()
    print(f"\n{SECONDS:g} s: {len(whole)} whole answers of {len(soak.digests)} versions, ", end="")
    print(f"slowest {soak.slowest:.2f} s; memory {before:.0f} -> {server.megabytes():.0f} MiB;", end=" ")
    for name in ("adapter_loads", "adapter_evictions", "preemptions", "prefix_cache_hits"):
        print(f"{name} {metrics[f'multilora_{name}_total']:.0f}", end=", ")
    print(dict(sorted(soak.told.items())))

    assert soak.lost == []
    assert soak.wrong() == []
    assert len(whole) > 100
    assert len({asked.version for asked in whole}) >= 4
    assert metrics["multilora_requests_total success"] >= len(whole)
    assert metrics["multilora_requests_total error"] == 0
    ended = metrics["multilora_requests_total success"] + metrics["multilora_requests_total aborted"]
    assert ended == soak.told["asked 200"] + soak.told["left 200"]
    for name in ("adapter_evictions", "prefix_cache_hits"):
        assert metrics[f"multilora_{name}_total"] >= 10
    live = {soak.digests[f"{name}@{number}"] for name, numbers in soak.live.items() for number in numbers}
    assert {path.name for path in (server.data / "adapters").iterdir()} == live
    assert {adapter["digest"] for adapter in status["adapters"]} <= live
