"""Every bound of the two completion routes, over HTTP, with the error that names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.api.chat_schema import ChatRequest
from server.api.schemas import MAX_LOGIT_BIAS, MAX_STOP_CHARS, MAX_STOP_TOKENS, MAX_STOPS
from tests.server.api.fakes import FakeEngine, tokens

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]

SHARED: list[tuple[dict[str, Any], str]] = [
    ({"n": 0}, "n"),
    ({"n": 5}, "n"),
    ({"n": True}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": "2"}, "n"),
    ({"n": 10**400}, "n"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": 1e999}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": -0.1}, "min_p"),
    ({"min_p": 1.1}, "min_p"),
    ({"frequency_penalty": 2.1}, "frequency_penalty"),
    ({"presence_penalty": -2.1}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": 2.1}, "repetition_penalty"),
    ({"logit_bias": {"260": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"logit_bias": {str(i): 0 for i in range(MAX_LOGIT_BIAS + 1)}}, "logit_bias"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"seed": 2**63}, "seed"),
    ({"seed": -(2**63) - 1}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a"] * (MAX_STOPS + 1)}, "stop"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": "a" * (MAX_STOP_CHARS + 1)}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop_token_ids": [260]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [1] * (MAX_STOP_TOKENS + 1)}, "stop_token_ids"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"other": 1}}, "stream_options.other"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"model": ""}, "model"),
    ({"model": None}, "model"),
    ({"model": "m" * 257}, "model"),
    ({"no_such_field": 1}, "no_such_field"),
]
CHAT_ONLY: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [*MESSAGES, {"role": "user", "content": 5}]}, "messages[1].content"),
    ({"messages": [{**MESSAGES[0], "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls"),
    ({"messages": [{**MESSAGES[0], "mood": "good"}]}, "messages[0].mood"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": 4, "max_tokens": 5}, "max_completion_tokens"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 4}, "top_logprobs"),
    ({"logprobs": 1}, "logprobs"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"functions": [{}]}, "functions"),
    ({"response_format": {"type": "json_object"}}, "response_format.type"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"prediction": {"type": "content"}}, "prediction"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"web_search_options": {"a": 1}}, "web_search_options"),
    ({"echo": True}, "echo"),
]
TEXT_ONLY: list[tuple[dict[str, Any], str]] = [
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt[0]"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt[1]"),
    ({"prompt": ["a", 1]}, "prompt[1]"),
    ({"prompt": [260]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [[1], [2, 300]]}, "prompt[1]"),
    ({"prompt": [True]}, "prompt[0]"),
    ({"prompt": ["a"] * 5}, "prompt"),
    ({"logprobs": 4}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"best_of": 3, "n": 2}, "best_of"),
    ({"suffix": "end"}, "suffix"),
    ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ({"messages": MESSAGES}, "messages"),
]


def bodies() -> list[tuple[str, dict[str, Any], str]]:
    chat, text = {"model": "tiny", "messages": MESSAGES}, {"model": "tiny", "prompt": "hi"}
    return [
        *((CHAT, {**chat, **fields}, param) for fields, param in SHARED + CHAT_ONLY),
        *((TEXT, {**text, **fields}, param) for fields, param in SHARED + TEXT_ONLY),
    ]


@pytest.mark.parametrize(("path", "body", "param"), bodies(), ids=lambda value: str(value)[:60])
def test_what_breaks_a_bound_is_a_400_that_names_the_field(
    client: TestClient, engine: FakeEngine, path: str, body: dict[str, Any], param: str
) -> None:
    answer = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})

    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    if error["code"] == "invalid_json":  # the infinite number, refused before its field is known
        param = ""
    assert (error["param"] or "") == param
    assert error["type"] == "invalid_request_error"
    assert param in error["message"]
    assert "\n" not in error["message"]
    assert not engine.requests


def test_a_missing_field_is_named(client: TestClient) -> None:
    error = client.post(CHAT, json={"model": "tiny"}).json()["error"]

    assert error["message"] == "Missing required parameter: 'messages'."
    assert error["code"] == "missing_field"


def test_harmless_fields_and_nulls_are_accepted(client: TestClient, engine: FakeEngine) -> None:
    harmless = {
        "user": "u",
        "store": True,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "tools": [],
        "functions": None,
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "modalities": ["text"],
    }
    nulls = dict.fromkeys(set(ChatRequest.model_fields) - {"model", "messages", *harmless})
    answer = client.post(CHAT, json={"model": "tiny", "messages": MESSAGES, **nulls, **harmless})

    assert answer.status_code == 200, answer.text
    assert engine.requests[0].sampling.temperature == 1.0


def test_every_sampling_field_reaches_the_engine(client: TestClient, engine: FakeEngine) -> None:
    body = {
        "model": "tiny",
        "prompt": "hi",
        "n": 2,
        "max_tokens": 7,
        "min_tokens": 2,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 10**30,
        "min_p": 0.1,
        "frequency_penalty": 0.2,
        "presence_penalty": -0.3,
        "repetition_penalty": 1.2,
        "logit_bias": {"5": -100, "6": 1.5},
        "seed": 2**63 - 1,
        "stop": ["x", "y"],
        "stop_token_ids": [3],
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "logprobs": 2,
        "best_of": 2,
    }
    assert client.post(TEXT, json=body).status_code == 200

    first, second = (request.sampling for request in engine.requests)
    assert (first.max_tokens, first.min_tokens, first.temperature) == (7, 2, 0.0)
    assert (first.top_p, first.top_k, first.min_p) == (0.5, 260, 0.1)
    assert (first.frequency_penalty, first.presence_penalty, first.repetition_penalty) == (0.2, -0.3, 1.2)
    assert first.logit_bias == {5: -100.0, 6: 1.5}
    assert (first.stop, first.stop_token_ids) == (("x", "y"), frozenset({3}))
    assert (first.include_stop, first.ignore_eos, first.logprobs) == (True, True, 2)
    # Each choice has its own seed, and the last one wraps round instead of leaving 64 bits.
    assert (first.seed, second.seed) == (2**63 - 1, -(2**63))
    assert engine.requests[0].prompt == tokens("hi")


def test_top_k_of_minus_one_is_off(client: TestClient, engine: FakeEngine) -> None:
    client.post(TEXT, json={"model": "tiny", "prompt": "hi", "top_k": -1})

    assert engine.requests[0].sampling.top_k == 0
