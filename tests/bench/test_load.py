"""The load that benchmarks put on a server, on a fake one."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import httpx
import pytest

from bench import load


def answering(
    seen: list[dict[str, object]], status: int = 200, error: bool = False, missing: int = 0
) -> httpx.MockTransport:
    def handler(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        seen.append(body)
        tokens = body["max_tokens"] - missing
        chunks: list[dict[str, Any]] = [{"choices": [{"text": "a"}], "usage": None}] * tokens
        chunks += [{"error": {"message": "broke"}}] if error else []
        chunks += [{"choices": [], "usage": {"completion_tokens": tokens}}]
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        return httpx.Response(status, text="".join([*lines, "data: [DONE]\n\n"]))

    return httpx.MockTransport(handler)


def run(monkeypatch: pytest.MonkeyPatch, transport: httpx.MockTransport) -> load.LoadResult:
    monkeypatch.setattr("bench.load.httpx.AsyncClient", partial(httpx.AsyncClient, transport=transport))
    clients = [["base", "a@1"], ["a@1", "b@1"]]
    return asyncio.run(load.run_load("http://test", clients, load.Workload(5, 3, 50)))


def test_each_client_asks_its_models_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, object]] = []
    result = run(monkeypatch, answering(seen))

    assert sorted(str(body["model"]) for body in seen) == ["a@1", "a@1", "b@1", "base"]
    for body in seen:
        prompt = body["prompt"]
        assert isinstance(prompt, list)
        assert len(prompt) == 5
        assert all(3 <= token < 50 for token in prompt)
        assert (body["max_tokens"], body["ignore_eos"], body["temperature"]) == (3, True, 0)
    assert len({str(body["prompt"]) for body in seen}) == 4  # nothing for the prefix cache
    assert result.tokens_per_second > 0
    assert 0 <= result.between_tokens <= result.worst_gap


@pytest.mark.parametrize(("status", "error", "missing"), [(404, False, 0), (200, True, 0), (200, False, 1)])
def test_a_failure_is_no_measurement(
    monkeypatch: pytest.MonkeyPatch, status: int, error: bool, missing: int
) -> None:
    with pytest.raises(RuntimeError):
        run(monkeypatch, answering([], status, error, missing))


def test_median() -> None:
    assert load.median([3, 1, 2]) == 2
    assert load.median([]) == 0
