"""Embeddings of a real server through the official client, while another request generates."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.end_to_end.conftest import Live
from training.base import MODEL_DIR

TEXTS = ["red green", "one two three four", "red"]


def expected(text: str) -> torch.Tensor:
    """Transformers' own last hidden state of the last token, of length 1."""
    tokenizer = AutoTokenizer.from_pretrained(str(MODEL_DIR))
    model = AutoModelForCausalLM.from_pretrained(str(MODEL_DIR), dtype=torch.float32).eval()
    with torch.inference_mode():
        states = model.base_model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1]
    return torch.nn.functional.normalize(states, dim=0)


def test_embeddings_beside_generation(live: Live) -> None:
    with ThreadPoolExecutor(1) as beside:
        text = beside.submit(
            live.client.completions.create, model="shout", prompt="red", max_tokens=64, temperature=0
        )
        answer = live.client.embeddings.create(model="base", input=TEXTS)
        shout = live.client.embeddings.create(model="shout", input=TEXTS[0], encoding_format="float")
        assert text.result().choices[0].text

    vectors = [torch.tensor(entry.embedding) for entry in answer.data]
    for given, vector in zip(TEXTS, vectors, strict=True):
        assert torch.dot(vector, expected(given)) > 0.999
    assert torch.dot(torch.tensor(shout.data[0].embedding), vectors[0]) < 0.999
    assert (answer.model, shout.model) == ("base", "shout@1")
    alone = live.client.embeddings.create(model="base", input=TEXTS[1])
    assert torch.dot(torch.tensor(alone.data[0].embedding), vectors[1]) > 0.999


def test_a_base_without_a_head_does_not_classify(live: Live) -> None:
    answer = httpx.post(f"{live.url}/v1/classify", json={"model": "base", "input": "red"})
    assert answer.status_code == 400
    assert "no head of its own to classify with" in answer.json()["error"]["message"]
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        live.client.embeddings.create(model="base", input=["red", "red " * 20_000])
