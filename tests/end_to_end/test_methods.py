"""Adapters by several methods, published over HTTP with the proof on, and asked: they answer as PEFT does."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import PeftModel

from server.spawn import serving
from tests.training.methods.stand import spec_for, train
from training.base import MODEL_DIR
from training.methods import load_base

METHODS = ("adalora", "lora-ga", "dora")
PROMPT = "do: river\n"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    arguments = ["--data-dir", str(folder / "data"), "--dtype", "float32"]
    environment = {"OMP_NUM_THREADS": "1", "MULTILORA_PARITY": "on"}
    with serving(arguments, folder / "server.log", environment=environment) as url:
        yield url


def publish(url: str, name: str, folder: Path) -> dict[str, Any]:
    files = {
        "config": (folder / "adapter_config.json").read_bytes(),
        "weights": (folder / "adapter_model.safetensors").read_bytes(),
    }
    answer = httpx.post(f"{url}/v1/adapters", data={"name": name}, files=files, timeout=120)
    assert answer.status_code == 201, answer.text
    published: dict[str, Any] = answer.json()
    return published


def ask(url: str, model: str) -> tuple[str, list[float]]:
    """The greedy answer, and its tokens' log probabilities."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "logprobs": 1}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice["text"], choice["logprobs"]["token_logprobs"]


def by_peft(folder: Path) -> tuple[str, list[float]]:
    """The same by plain PEFT."""
    base, tokenizer = load_base(MODEL_DIR, spec_for())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT takes AdaLoRA's pattern for another
        model = PeftModel.from_pretrained(base, folder).eval()
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    before = ids.shape[1]
    found: list[float] = []
    with torch.no_grad():
        while len(found) < 8:
            scores = model(input_ids=ids).logits[0, -1].log_softmax(-1)
            found.append(float(scores.max()))
            if int(scores.argmax()) == tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, scores.argmax().view(1, 1)], 1)
    return tokenizer.decode(ids[0, before:]), found


def test_what_was_trained_is_what_answers(url: str, tmp_path: Path) -> None:
    bare, _ = ask(url, "base")
    for method in METHODS:
        spec = spec_for(method=method, target_modules=("q_proj", "down_proj"))
        folder = train(MODEL_DIR, tmp_path / method, spec).folder
        proof = publish(url, method, folder)["proof"]
        assert proof["status"] == "proved"
        assert proof["kl_from_base"] > 0.01
        text, logprobs = ask(url, method)
        wanted, expected = by_peft(folder)
        assert (text, text != bare) == (wanted, True)
        assert logprobs == pytest.approx(expected[: len(logprobs)], abs=1e-4)
