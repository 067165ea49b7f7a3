"""Inputs of the routes that pool: every form, each within its bounds."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.api.app import create_app
from tests.server.api.fakes import FakeEngine, make_context

PATH = "/v1/embeddings"


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        (["a", "b" * 101], "context_length_exceeded", "your input[1] has 101. Please"),
        ("b" * 101, "context_length_exceeded", "your input has 101. Please"),
        ([[5], [5] * 101], "context_length_exceeded", "your input[1] has 101. Please"),
        (["a", "b" * 10_000], "context_length_exceeded", "your input[1] has 10000 characters"),
        (["a"] * 5, None, "input: at most 4 inputs in one request"),
        ([[1], [260]], None, "input[1]: token id 260 is not in the vocabulary (0 to 259)"),
        ([-1], None, "input: token id -1 is not in the vocabulary"),
        (["a", ""], None, "input[1]: the prompt has no tokens"),
        ([], None, "input"),
        ([[]], None, "input"),
        ([1.5], None, "input"),
        (None, None, "input"),
    ],
)
def test_refused(tmp_path: Path, given: Any, code: str | None, message: str) -> None:
    context = make_context(tmp_path, max_inputs=4)
    with TestClient(create_app(context), raise_server_exceptions=False) as client:
        answer = client.post(PATH, json={"model": "tiny", "input": given})

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, code)
    assert message in error["message"]
    assert isinstance(context.engine, FakeEngine)
    assert not context.engine.pooling


def test_a_whole_context_fits(client: TestClient, engine: FakeEngine) -> None:
    assert client.post(PATH, json={"model": "tiny", "input": "b" * 100}).status_code == 200
    assert len(engine.pooling[0].prompt) == 100


def test_special_tokens_are_the_tokenizers(
    client: TestClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    tokenizer = client.app.state.context.tokenizer  # type: ignore[attr-defined]
    encode = type(tokenizer).encode

    def note(self: Any, text: str, *, add_special_tokens: bool) -> Any:
        seen.append(add_special_tokens)
        return encode(self, text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(type(tokenizer), "encode", note)
    client.post(PATH, json={"model": "tiny", "input": "hi"})
    client.post(PATH, json={"model": "tiny", "input": "hi", "add_special_tokens": False})
    assert seen == [True, False]


def test_many_short_texts_do_not_hold_up_the_event_loop(
    client: TestClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()
    tokenizer = client.app.state.context.tokenizer  # type: ignore[attr-defined]
    encode = type(tokenizer).encode

    def note(self: Any, text: str, *, add_special_tokens: bool) -> Any:
        threads.add(threading.get_ident())
        return encode(self, text, add_special_tokens=add_special_tokens)

    async def loop() -> int:
        return threading.get_ident()

    monkeypatch.setattr(type(tokenizer), "encode", note)
    assert client.portal is not None
    assert client.post(PATH, json={"model": "tiny", "input": ["hi"]}).status_code == 200
    assert threads == {client.portal.call(loop)}
    threads.clear()
    assert client.post(PATH, json={"model": "tiny", "input": ["b" * 90] * 50}).status_code == 200
    assert client.portal.call(loop) not in threads
    assert len(engine.pooling) == 51
