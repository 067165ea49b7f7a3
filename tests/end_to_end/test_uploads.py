"""Adapters that come in over HTTP: good ones live at once, bad ones named and refused, the server goes on."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.end_to_end.conftest import Live
from tests.tiny import make_adapter, make_model
from training.base import ADAPTERS_DIR
from training.tasks import prompt_for

CONFIG = (ADAPTERS_DIR / "spell" / "adapter_config.json").read_bytes()
WEIGHTS = (ADAPTERS_DIR / "spell" / "adapter_model.safetensors").read_bytes()


def upload(live: Live, name: str, config: bytes = CONFIG, weights: bytes = WEIGHTS) -> httpx.Response:
    files = {"config": config, "weights": weights}
    return httpx.post(f"{live.url}/v1/adapters", data={"name": name}, files=files)


def ask(live: Live, model: str) -> httpx.Response:
    body = {"model": model, "prompt": prompt_for("garden"), "temperature": 0, "max_tokens": 32}
    return httpx.post(f"{live.url}/v1/completions", json=body)


def _loaded(live: Live, name: str) -> bool:
    deadline = time.monotonic() + 10
    while httpx.get(f"{live.url}/v1/adapters/{name}").json()["tier"] != "device":
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_upload_ask_republish_delete(live: Live) -> None:
    first = upload(live, "speller")
    assert (first.status_code, first.json()["id"]) == (201, "speller@1")
    assert _loaded(live, "speller")  # before anyone has asked it
    assert ask(live, "speller").json()["choices"][0]["text"] == "G-A-R-D-E-N"
    assert upload(live, "speller").status_code == 200  # the same content is the same version
    shout = ADAPTERS_DIR / "shout"
    second = upload(
        live,
        "speller",
        (shout / "adapter_config.json").read_bytes(),
        (shout / "adapter_model.safetensors").read_bytes(),
    )
    assert second.json()["id"] == "speller@2"
    assert ask(live, "speller").json()["choices"][0]["text"] == "GARDEN!!!"
    assert ask(live, "speller@1").json()["choices"][0]["text"] == "G-A-R-D-E-N"
    assert httpx.delete(f"{live.url}/v1/adapters/speller@2?force=true").status_code == 200
    assert ask(live, "speller").json()["model"] == "speller@1"
    assert httpx.delete(f"{live.url}/v1/adapters/speller").status_code == 200
    assert ask(live, "speller").status_code == 404
    assert upload(live, "speller").json()["id"] == "speller@3"  # numbers are never reused
    httpx.delete(f"{live.url}/v1/adapters/speller")


def other_base(folder: Path) -> tuple[bytes, bytes]:
    made = make_adapter(make_model("gpt2"), folder / "other", 0)
    return (made / "adapter_config.json").read_bytes(), (made / "adapter_model.safetensors").read_bytes()


def changed(folder: Path, change: Any) -> tuple[bytes, bytes]:
    tensors = load_file(ADAPTERS_DIR / "spell" / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "changed.safetensors")
    return CONFIG, (folder / "changed.safetensors").read_bytes()


def wrong_shape(tensors: dict[str, torch.Tensor]) -> None:
    key = next(iter(tensors))
    tensors[key] = torch.zeros(tensors[key].shape[0] + 1, *tensors[key].shape[1:])


def unknown_tensor(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.layers.0.mystery.lora_A.weight"] = torch.zeros(8, 128)


def not_a_number(tensors: dict[str, torch.Tensor]) -> None:
    next(iter(tensors.values()))[0, 0] = float("nan")


def with_rank(rank: int) -> bytes:
    return json.dumps({**json.loads(CONFIG), "r": rank}).encode()


@pytest.mark.parametrize(
    ("case", "status", "says"),
    [
        ("wrong base", 400, "another base"),
        ("wrong shape", 400, "shape"),
        ("unknown tensor", 400, "mystery"),
        ("not a number", 400, "NaN"),
        ("truncated", 400, "bytes"),
        ("pickle", 400, "pickle"),
        ("rank", 413, "rank"),
        ("oversize", 413, "MiB"),
        ("config is not JSON", 400, "adapter_config.json"),
        ("dora", 400, "has no lora_magnitude_vector beside it"),
    ],
)
def test_a_bad_upload_is_named_and_the_server_goes_on(
    live: Live, tmp_path: Path, case: str, status: int, says: str
) -> None:
    makers: dict[str, Any] = {
        "wrong base": lambda: other_base(tmp_path),
        "wrong shape": lambda: changed(tmp_path, wrong_shape),
        "unknown tensor": lambda: changed(tmp_path, unknown_tensor),
        "not a number": lambda: changed(tmp_path, not_a_number),
        "truncated": lambda: (CONFIG, WEIGHTS[:-1000]),
        "pickle": lambda: (CONFIG, pickle.dumps({"a": 1})),
        "rank": lambda: (with_rank(10_000), WEIGHTS),
        "oversize": lambda: (CONFIG, WEIGHTS + bytes(3 << 20)),
        "config is not JSON": lambda: (b"{", WEIGHTS),
        "dora": lambda: (json.dumps({**json.loads(CONFIG), "use_dora": True}).encode(), WEIGHTS),
    }
    answer = upload(live, "bad", *makers[case]())
    assert answer.status_code == status, answer.text
    message = answer.json()["error"]["message"]
    assert says in message
    assert "\n" not in message
    assert ask(live, "bad").status_code == 404
    assert ask(live, "shout").json()["choices"][0]["text"] == "GARDEN!!!"


def test_vllm_users_can_load_and_unload_by_path_below_the_allowed_folder(live: Live) -> None:
    body = {"lora_name": "greet", "lora_path": str(live.adapter_dir / "greeter")}
    loaded = httpx.post(f"{live.url}/v1/load_lora_adapter", json=body)
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'greet' added successfully.")
    assert ask(live, "greet").json()["choices"][0]["text"] == "Hello, Garden!"
    unloaded = httpx.post(f"{live.url}/v1/unload_lora_adapter", json={"lora_name": "greet"})
    assert unloaded.text == "Success: LoRA adapter 'greet' removed successfully."
    outside = httpx.post(
        f"{live.url}/v1/load_lora_adapter",
        json={"lora_name": "x", "lora_path": str(live.adapter_dir / "../..")},
    )
    assert outside.status_code == 403
