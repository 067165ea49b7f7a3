"""Prompts within the context, chat templates, and the tokens that come of them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.api.app import create_app
from server.api.context import ServerContext
from server.api.prompts import SHORT, text_prompt
from tests.server.api.fakes import FakeEngine, make_context, tokens


def chat(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": list(messages), **fields}


def test_the_conversation_goes_through_the_chat_template(client: TestClient, engine: FakeEngine) -> None:
    body = chat(
        {"role": "developer", "content": "be brief"},
        {
            "role": "user",
            "name": "ann",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
        {"role": "assistant", "content": "c", "tool_calls": None, "refusal": None},
    )
    assert client.post("/v1/chat/completions", json=body).status_code == 200

    expected = "<system>be brief\n<user ann>a\nb\n<assistant>c\n<assistant>"
    assert engine.requests[0].prompt == tokens(expected)
    assert engine.requests[0].sampling.max_tokens == 100 - len(expected)


def test_a_template_that_refuses_is_a_400(client: TestClient) -> None:
    answer = client.post("/v1/chat/completions", json=chat({"role": "user", "content": "refuse me"}))

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
    assert "no such thing" in answer.json()["error"]["message"]


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    class Plain:
        def __init__(self, inner: Any) -> None:
            self._inner = inner
            self.chat_template = None

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

    context = make_context(tmp_path)
    context.tokenizer = Plain(context.tokenizer)
    answer = TestClient(create_app(context)).post(
        "/v1/chat/completions", json=chat({"role": "user", "content": "hi"})
    )

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_chat_template")


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/completions", {"prompt": "x" * 85}, "prompt"),
        ("/v1/completions", {"prompt": [1] * 85}, "prompt"),
        ("/v1/completions", {"prompt": ["x", "y" * 85]}, "prompt"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 100}, "prompt"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 10**40}, "prompt"),
        ("/v1/completions", {"prompt": "x" * 101, "max_tokens": 0, "echo": True}, "prompt"),
        ("/v1/completions", {"prompt": "x" * 10_000}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 85}]}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 10_000}]}, "messages"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x"}], "max_tokens": 90},
            "messages",
        ),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_does_not_fit_the_context_has_openais_code(
    client: TestClient, engine: FakeEngine, path: str, fields: dict[str, Any], param: str
) -> None:
    body = json.dumps({"model": "tiny", **fields})
    answer = client.post(path, content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert error["message"].startswith("This model's maximum context length is 100 tokens. However, ")
    assert not engine.requests


def test_the_context_may_be_filled_to_the_last_token(client: TestClient) -> None:
    body = {"model": "tiny", "prompt": "x" * 84}

    assert client.post("/v1/completions", json=body).status_code == 200


def test_long_texts_are_tokenized_the_same_way(context: ServerContext) -> None:
    context.max_prompt_chars = 10 * SHORT
    text = "ab" * SHORT
    prompt = asyncio.run(text_prompt(context, text, special=True, param="prompt"))

    assert prompt.token_ids == tokens(text)
