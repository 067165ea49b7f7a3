"""`/v1/chat/completions`, read by the official client."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest
from starlette.testclient import TestClient

from tests.server.api.asgi import events
from tests.server.api.fakes import FakeEngine, FakeRegistry, say, tokens

MESSAGES = [{"role": "user", "content": "hi"}]
BODY = {"model": "tiny", "messages": MESSAGES}
PATH = "/v1/chat/completions"


def test_an_answer_in_one_piece(official: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = say("hello", cached=4)
    answer = official.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], n=2, max_completion_tokens=3
    )

    assert (answer.object, answer.model, answer.system_fingerprint) == (
        "chat.completion",
        "tiny",
        "fp_ba5eba5eba5e",
    )
    assert answer.id.startswith("chatcmpl-")
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content == "hel"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs is None
    prompt = len(tokens("<user>hi\n<assistant>"))
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, 6)
    assert answer.usage.total_tokens == prompt + 6
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 4


def test_an_answer_can_be_sent_back_as_history(official: openai.OpenAI) -> None:
    answer = official.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])
    message = answer.choices[0].message
    again = official.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}, message, {"role": "user", "content": "more"}],  # type: ignore[list-item]
    )

    assert again.choices[0].message.content == "hello"


def test_logprobs(official: openai.OpenAI) -> None:
    answer = official.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], logprobs=True, top_logprobs=2
    )

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [item.token for item in logprobs.content] == list("hello")
    assert logprobs.content[0].bytes == [ord("h")]
    assert [top.token for top in logprobs.content[0].top_logprobs] == ["h", "i"]
    assert logprobs.content[0].top_logprobs[1].logprob == -9999.0


def test_the_chunks_of_a_stream(client: TestClient) -> None:
    *chunks, done = events(client.post(PATH, json={**BODY, "stream": True}).text)

    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    assert deltas[1:-1] == [{"content": char} for char in "hello"]
    assert deltas[-1] == {}
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * 6 + ["stop"]


def test_the_official_client_reads_a_stream_of_several_choices(official: openai.OpenAI) -> None:
    stream = official.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        n=3,
        stream=True,
        logprobs=True,
        stream_options={"include_usage": True},
    )
    texts, reasons, logprobs = [""] * 3, [""] * 3, 0
    chunks = list(stream)
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] += choice.finish_reason or ""
        logprobs += len((choice.logprobs and choice.logprobs.content) or [])

    assert texts == ["hello"] * 3
    assert reasons == ["stop"] * 3
    assert logprobs == 15
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 15


def test_usage_is_null_in_the_other_chunks_only_for_those_who_asked(client: TestClient) -> None:
    body = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last, _ = events(client.post(PATH, json=body).text)

    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 5


def test_an_unknown_model_is_the_clients_not_found_error(official: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        official.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "hi"}])

    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


def test_an_adapter_answers_under_its_ref(
    official: openai.OpenAI, registry: FakeRegistry, tmp_path: Path
) -> None:
    version = registry.add("shop", tmp_path)
    raw = official.chat.completions.with_raw_response.create(
        model="shop", messages=[{"role": "user", "content": "hi"}], stream=True
    )

    assert raw.headers["x-adapter-digest"] == version.digest
    assert {chunk.model for chunk in raw.parse()} == {"shop@1"}
    assert not +registry.held
