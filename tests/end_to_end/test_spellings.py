"""A real server asked as SGLang, LoRAX and SageMaker are, with the official client; canaries and shadows."""

from __future__ import annotations

import time
from typing import Any

import httpx
import openai
import pytest

from tests.end_to_end.conftest import Live
from training.tasks import TASKS, prompt_for

SAGEMAKER = "X-Amzn-SageMaker-Adapter-Identifier"
PROMPT = prompt_for("garden")


def ask(live: Live, model: str, **how: Any) -> tuple[str, str, str]:
    """The greedy answer, and the version and the alias that gave it."""
    raw = live.client.completions.with_raw_response.create(
        model=model, prompt=PROMPT, temperature=0, max_tokens=48, **how
    )
    headers = raw.headers
    return raw.parse().choices[0].text, headers["x-adapter"], headers.get("x-adapter-alias", "")


def put_alias(live: Live, name: str, alias: str, body: dict[str, Any]) -> None:
    answer = httpx.put(f"{live.url}/v1/adapters/{name}/aliases/{alias}", json=body)
    assert answer.status_code in (200, 201), answer.text


def publish(live: Live, name: str, *contents: str) -> None:
    """One version for each of the shipped adapters that are named."""
    for content in contents:
        body = {"lora_name": name, "lora_path": content, "load_inplace": True}
        assert httpx.post(f"{live.url}/v1/load_lora_adapter", json=body).status_code == 200


@pytest.mark.parametrize(
    ("model", "how"),
    [
        ("base:shout", {}),
        ("base", {"extra_body": {"lora_path": "shout"}}),
        ("base", {"extra_body": {"adapter_id": "shout"}}),
        ("", {"extra_body": {"adapter_id": "default/shout@default"}}),
        ("base", {"extra_headers": {SAGEMAKER: "shout"}}),
    ],
)
def test_every_spelling_gets_the_adapters_answer(live: Live, model: str, how: dict[str, Any]) -> None:
    assert ask(live, model, **how) == ("GARDEN!!!", "shout@1", "default")


def test_spellings_that_disagree_or_name_nothing(live: Live) -> None:
    with pytest.raises(openai.BadRequestError, match="names `backwards`, but model names `shout`"):
        ask(live, "base:shout", extra_body={"adapter_id": "backwards"})
    for path in ("/etc/passwd", "../shout", "s3://bucket/shout", str(live.adapter_dir / "shout")):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(live, "base", extra_body={"lora_path": path})
        assert (caught.value.code, caught.value.param) == ("model_not_found", "lora_path")


def test_sglangs_routes(live: Live) -> None:
    load = {"lora_name": "sgl", "lora_path": "spell", "pinned": True}
    answer = httpx.post(f"{live.url}/load_lora_adapter", json=load)
    assert (answer.status_code, answer.json()["success"]) == (200, True)
    assert answer.json()["loaded_adapters"]["sgl"] == "sgl@1"
    assert ask(live, "base:sgl") == (TASKS["spell"].answer("garden"), "sgl@1", "default")

    again = httpx.post(f"{live.url}/load_lora_adapter", json=load)
    assert (again.status_code, again.json()["success"]) == (400, False)
    assert "already been loaded" in again.json()["error_message"]
    pickled = {"lora_name": "sgl", "config_dict": {}, "serialized_named_tensors": ["gASV"]}
    refused = httpx.post(f"{live.url}/load_lora_adapter_from_tensors", json=pickled)
    assert (refused.status_code, "no pickle" in refused.json()["error_message"]) == (400, True)

    gone = httpx.post(f"{live.url}/unload_lora_adapter", json={"lora_name": "sgl"})
    assert (gone.status_code, "sgl" in gone.json()["loaded_adapters"]) == (200, False)
    with pytest.raises(openai.NotFoundError):
        ask(live, "base:sgl")


def test_sagemakers_routes(live: Live) -> None:
    answer = httpx.post(f"{live.url}/adapters", json={"name": "sage", "src": "json", "preload": True})
    assert answer.text == "Success: LoRA adapter 'sage' added successfully."
    assert ask(live, "base", extra_headers={SAGEMAKER: "sage"})[:2] == (
        TASKS["json"].answer("garden"),
        "sage@1",
    )
    far = httpx.post(f"{live.url}/adapters", json={"name": "far", "src": "s3://bucket/far"})
    assert (far.status_code, "'src' is a URL" in far.json()["error"]["message"]) == (400, True)
    answer = httpx.delete(f"{live.url}/adapters/sage")
    assert answer.text == "Success: LoRA adapter 'sage' removed successfully."
    assert httpx.delete(f"{live.url}/adapters/sage").status_code == 404


def test_a_canary_stays_with_its_key_and_the_cards_tell_of_aliases(live: Live) -> None:
    publish(live, "bird", "shout", "backwards")
    put_alias(
        live, "bird", "prod", {"targets": [{"version": 1, "percent": 50}, {"version": 2, "percent": 50}]}
    )
    answers = {"bird@1": "GARDEN!!!", "bird@2": "nedrag"}
    seen = set()
    for key in map(str, range(12)):
        by_header = ask(live, "bird@prod", extra_headers={"X-Routing-Key": key})
        by_field = ask(live, "bird@prod", user=key)
        assert by_header == by_field == (answers[by_header[1]], by_header[1], "prod")
        seen.add(by_header[1])
    assert seen == set(answers)

    cards = {card.id: card.model_dump() for card in live.client.models.list()}
    assert (cards["bird"]["root"], cards["bird"]["parent"]) == ("bird@2", "base")
    assert cards["bird@prod"]["root"] in answers
    assert live.client.models.retrieve("bird@1").model_dump()["root"] == "bird@1"


def test_a_shadow_gets_copies_and_nobody_sees_them(live: Live) -> None:
    publish(live, "covert", "shout", "backwards", "shout")
    put_alias(live, "covert", "default", {"targets": [{"version": 1}], "shadow": 2})
    assert ask(live, "covert") == ("GARDEN!!!", "covert@1", "default")
    put_alias(live, "covert", "default", {"targets": [{"version": 1}], "shadow": 3})
    assert ask(live, "covert") == ("GARDEN!!!", "covert@1", "default")

    wanted = [
        f'multilora_shadow_agreement_total{{adapter="{version}",answer="{answer}"}} 1.0'
        for version, answer in (("covert@2", "different"), ("covert@3", "same"))
    ]
    deadline = time.monotonic() + 10
    while not all(line in (metrics := httpx.get(f"{live.url}/metrics").text) for line in wanted):
        assert time.monotonic() < deadline, metrics
        time.sleep(0.02)
    assert 'multilora_requests_total{adapter="covert@1",outcome="success"} 2.0' in metrics
    assert 'multilora_requests_total{adapter="covert@2"' not in metrics
