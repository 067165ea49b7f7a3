"""`/v1/completions`, read by the official client."""

from __future__ import annotations

import openai
import pytest
from starlette.testclient import TestClient

from tests.server.api.asgi import events
from tests.server.api.fakes import FakeEngine, say, tokens

PATH = "/v1/completions"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hi", [tokens("hi")]),
        (["hi", "you"], [tokens("hi"), tokens("you")]),
        ([104, 105], [(104, 105)]),
        ([[104], [105, 106]], [(104,), (105, 106)]),
        ([[104, 105]], [(104, 105)]),
    ],
)
def test_every_form_of_prompt(
    official: openai.OpenAI, engine: FakeEngine, prompt: str | list[str], expected: list[tuple[int, ...]]
) -> None:
    answer = official.completions.create(model="tiny", prompt=prompt)

    assert [request.prompt for request in engine.requests] == expected
    assert [choice.index for choice in answer.choices] == list(range(len(expected)))
    assert {choice.text for choice in answer.choices} == {"hello"}
    assert answer.object == "text_completion"
    assert engine.requests[0].sampling.max_tokens == 16
    assert len({request.request_id for request in engine.requests}) == len(expected)


def test_choices_are_ordered_by_prompt_then_answer(official: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = lambda request: say(f"{request.prompt[0]} {request.sampling.seed}", cached=1)(request)
    answer = official.completions.create(model="tiny", prompt=["a", "b"], n=2, seed=7)

    assert [choice.text for choice in answer.choices] == ["97 7", "97 8", "98 7", "98 8"]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 16)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


def test_logprobs(official: openai.OpenAI) -> None:
    (choice,) = official.completions.create(model="tiny", prompt="hi", logprobs=1, max_tokens=2).choices

    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["h", "e"]
    assert choice.logprobs.token_logprobs == [-0.5, -0.5]
    assert choice.logprobs.top_logprobs == [{"h": -0.5}, {"e": -0.5}]
    assert choice.logprobs.text_offset == [0, 1]


def test_echo_puts_the_prompt_before_the_answer(official: openai.OpenAI) -> None:
    answer = official.completions.create(model="tiny", prompt="hi", echo=True, logprobs=0, max_tokens=2)

    (choice,) = answer.choices
    assert choice.text == "hihe"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == list("hihe")
    assert choice.logprobs.text_offset == [0, 1, 2, 3]
    assert choice.logprobs.token_logprobs == [None, -0.5, -0.5, -0.5]
    assert choice.logprobs.top_logprobs == [None, {"i": -0.5}, {"h": -0.5}, {"e": -0.5}]


@pytest.mark.parametrize("logprobs", [None, 2])
def test_echo_with_no_tokens_scores_the_prompt(
    client: TestClient, engine: FakeEngine, logprobs: int | None
) -> None:
    body = {"model": "tiny", "prompt": [104, 105], "echo": True, "max_tokens": 0, "logprobs": logprobs}
    answer = client.post(PATH, json=body).json()

    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("hi", "length")
    assert engine.requests[0].sampling.prompt_logprobs == (logprobs or 0)
    assert (choice["logprobs"] is None) == (logprobs is None)
    assert answer["usage"]["completion_tokens"] == 0


def test_a_stream_of_several_prompts(official: openai.OpenAI) -> None:
    stream = official.completions.create(
        model="tiny",
        prompt=["a", "b"],
        n=2,
        stream=True,
        echo=True,
        logprobs=1,
        stream_options={"include_usage": True},
    )
    texts: list[str] = [""] * 4
    offsets: list[list[int]] = [[] for _ in texts]
    reasons = [""] * 4
    *chunks, last = stream
    for chunk in chunks:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        if chunk.choices[0].finish_reason:
            reasons[choice.index] += choice.finish_reason
        assert choice.logprobs is not None
        offsets[choice.index] += choice.logprobs.text_offset or []

    assert texts == ["ahello", "ahello", "bhello", "bhello"]
    assert offsets == [list(range(6))] * 4
    assert reasons == ["stop"] * 4
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (2, 20)


def test_the_last_chunk_of_a_choice_has_the_reason(client: TestClient) -> None:
    *chunks, done = events(client.post(PATH, json={"model": "tiny", "prompt": "a", "stream": True}).text)

    assert done == "[DONE]"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}


def test_special_tokens_can_be_left_out(client: TestClient, engine: FakeEngine) -> None:
    body = {"model": "tiny", "prompt": "a", "add_special_tokens": False}

    assert client.post(PATH, json=body).status_code == 200
    assert engine.requests[0].prompt == (97,)
