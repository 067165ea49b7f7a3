"""Mixtures of shipped adapters on a real server: PEFT's answers, beside the members and the base."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.end_to_end.conftest import Live
from training.base import ADAPTERS_DIR, MODEL_DIR
from training.tasks import prompt_for

MIXTURES = [
    {"shout": 1.0, "backwards": 1.0},
    {"shout": 0.5},
    {"shout": -0.25, "backwards": 0.75},
]


def body(shares: dict[str, float]) -> dict[str, Any]:
    adapters = [{"name": name, "scale": scale} for name, scale in shares.items()]
    return {"model": "base", "adapters": adapters, "prompt": prompt_for("garden"), "temperature": 0}


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """Greedy answers of PEFT with these adapters active."""
    tokenizer = AutoTokenizer.from_pretrained(str(MODEL_DIR))
    base = AutoModelForCausalLM.from_pretrained(str(MODEL_DIR), dtype=torch.float32).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft: Any = PeftModel.from_pretrained(base, str(ADAPTERS_DIR / "shout"), adapter_name="shout")
        peft.load_adapter(str(ADAPTERS_DIR / "backwards"), adapter_name="backwards")
    texts = []
    for shares in MIXTURES:
        peft.base_model.set_adapter(list(shares))
        for module in peft.modules():
            if hasattr(module, "set_scale"):
                for name, scale in shares.items():
                    module.set_scale(name, scale)
        inputs = tokenizer(prompt_for("garden"), return_tensors="pt")
        with torch.inference_mode():
            tokens = peft.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)
        texts.append(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


def test_mixtures_at_the_same_time(live: Live, expected: list[str]) -> None:
    bodies = [body(shares) | {"max_tokens": 12} for shares in MIXTURES]
    bodies += [{**bodies[0], "model": model, "adapters": None} for model in ("base", "shout", "backwards")]

    def post(json: dict[str, Any]) -> httpx.Response:
        return httpx.post(f"{live.url}/v1/completions", json=json, timeout=60)

    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(post, bodies))
    assert [answer.json()["choices"][0]["text"] for answer in answers[:3]] == expected
    assert answers[0].headers["x-adapter"] == "shout@1*1+backwards@1*1"
    assert answers[2].json()["model"] == "shout@1*-0.25+backwards@1*0.75"
    assert len({answer.headers.get("x-adapter-digest") for answer in answers}) == 6
    alone = post({**bodies[0], "adapters": [{"name": "shout"}]})
    assert alone.json()["choices"] == answers[4].json()["choices"]
    assert alone.headers["x-adapter-digest"] == answers[4].headers["x-adapter-digest"]


def test_the_official_client(live: Live, expected: list[str]) -> None:
    fields = body(MIXTURES[0])
    answer = live.client.completions.create(
        model="base",
        prompt=fields["prompt"],
        temperature=0,
        max_tokens=12,
        extra_body={"adapters": fields["adapters"]},
    )
    assert answer.choices[0].text == expected[0]
