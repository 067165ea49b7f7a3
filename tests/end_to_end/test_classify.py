"""A classifier is published to a real server and answers beside the adapters that generate."""

from __future__ import annotations

import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from tests.end_to_end.conftest import Live
from training.base import MODEL_DIR

LABELS = ["bad", "fair", "good"]
TEXTS = ["red green", "one two three four", "red"]
CLASSES = {
    "SEQ_CLS": (AutoModelForSequenceClassification, "/v1/classify"),
    "TOKEN_CLS": (AutoModelForTokenClassification, "/v1/token_classify"),
}


def publish(live: Live, folder: Path, task: str) -> tuple[str, Any]:
    """Upload a random classifier of three labels; returns its name and PEFT's model of it."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = CLASSES[task][0].from_pretrained(str(MODEL_DIR), num_labels=3, dtype=torch.float32)
        config = LoraConfig(r=4, task_type=task, target_modules=["q_proj", "v_proj"])
        model = get_peft_model(stock, config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    parameter.copy_(0.1 * torch.randn(parameter.shape))
        model.save_pretrained(str(folder))
    name = task.lower().replace("_", "-")
    files = {
        "config": (folder / "adapter_config.json").read_bytes(),
        "weights": (folder / "adapter_model.safetensors").read_bytes(),
    }
    if task == "SEQ_CLS":
        files["labels"] = json.dumps(LABELS).encode()
    answer = httpx.post(f"{live.url}/v1/adapters", data={"name": name}, files=files, timeout=60)
    assert answer.status_code == 201, answer.text
    return name, model


@pytest.mark.parametrize("task", CLASSES)
def test_classes_beside_generation(live: Live, tmp_path: Path, task: str) -> None:
    name, model = publish(live, tmp_path, task)
    route = CLASSES[task][1]
    with ThreadPoolExecutor(1) as beside:
        text = beside.submit(
            live.client.completions.create, model="shout", prompt="red", max_tokens=64, temperature=0
        )
        answer = httpx.post(f"{live.url}{route}", json={"model": name, "input": TEXTS}, timeout=60)
        assert text.result().choices[0].text
    assert answer.headers["x-adapter"] == f"{name}@1"
    tokenizer = AutoTokenizer.from_pretrained(str(MODEL_DIR))
    for given, entry in zip(TEXTS, answer.json()["data"], strict=True):
        encoding = tokenizer(given, return_tensors="pt", return_offsets_mapping=True)
        offsets = encoding.pop("offset_mapping")[0].tolist()
        with torch.inference_mode():
            probs = model(**encoding).logits[0].softmax(-1)
        assert entry["num_classes"] == 3
        if task == "SEQ_CLS":
            assert torch.allclose(torch.tensor(entry["probs"]), probs, atol=0.03)
            assert [*entry["scores"]] == LABELS
        else:
            found = [(token["start"], token["end"]) for token in entry["tokens"]]
            assert found == [tuple(offset) for offset in offsets]
            scores = torch.tensor([token["score"] for token in entry["tokens"]])
            assert torch.allclose(scores, probs.max(-1).values, atol=0.03)
            assert {token["label"] for token in entry["tokens"]} <= {"LABEL_0", "LABEL_1", "LABEL_2"}

    card = live.client.models.retrieve(name)
    assert card.model_extra is not None
    assert card.model_extra["task"] == task
    refused = httpx.post(f"{live.url}/v1/completions", json={"model": name, "prompt": "red"})
    assert refused.status_code == 400
    assert f"was trained for {task}; it serves {route}" in refused.json()["error"]["message"]
