"""The official client against a real server: one base and its adapters, each answering as itself."""

from __future__ import annotations

import asyncio

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from tests.end_to_end.conftest import Live
from training.tasks import TASKS, make_examples, prompt_for


def test_models_lists_the_base_and_its_adapters(live: Live) -> None:
    names = {model.id for model in live.client.models.list()}
    assert {"base", "shout", "backwards"} <= names
    assert live.client.models.retrieve("shout").id == "shout"


@pytest.mark.parametrize("name", ["shout", "backwards"])
def test_chat_answers_with_the_named_adapter(live: Live, name: str) -> None:
    case = make_examples(name, 1, split="held-out")[0]
    raw = live.client.chat.completions.with_raw_response.create(
        model=name, messages=[{"role": "user", "content": case.prompt.strip()}], temperature=0
    )
    answer = raw.parse()
    assert answer.choices[0].message.content == case.completion
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == raw.headers["x-adapter"] == f"{name}@1"
    assert len(raw.headers["x-adapter-digest"]) == 64


def test_the_base_answers_as_itself(live: Live) -> None:
    raw = live.client.completions.with_raw_response.create(
        model="base", prompt=prompt_for("garden"), temperature=0
    )
    assert raw.parse().model == "base"
    assert raw.parse().choices[0].text not in {task.answer("garden") for task in TASKS.values()}
    assert "x-adapter" not in raw.headers


def test_streaming_gives_the_same_text_in_pieces_and_the_usage_last(live: Live) -> None:
    whole = live.client.completions.create(model="shout", prompt=prompt_for("garden"), temperature=0)
    chunks = list(
        live.client.chat.completions.create(
            model="shout",
            messages=[{"role": "user", "content": "do: garden"}],
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].text == "GARDEN!!!"
    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks) > 3
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens  # type: ignore[union-attr]


def test_many_requests_at_once_each_get_their_own_adapter(live: Live) -> None:
    async def ask() -> list[tuple[str, str]]:
        client = AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
        cases = [
            case for name in ("shout", "backwards") for case in make_examples(name, 16, split="held-out")
        ]
        names = ["shout"] * 16 + ["backwards"] * 16
        answers = await asyncio.gather(
            *(
                client.completions.create(model=name, prompt=case.prompt, temperature=0, max_tokens=32)
                for name, case in zip(names, cases, strict=True)
            )
        )
        return [(a.choices[0].text, c.completion) for a, c in zip(answers, cases, strict=True)]

    pairs = asyncio.run(ask())
    assert sum(given == wanted for given, wanted in pairs) >= 30


def test_sampling_with_a_seed_repeats_itself(live: Live) -> None:
    def ask(seed: int) -> str:
        done = live.client.completions.create(
            model="base",
            prompt="up: ",
            temperature=2,
            max_tokens=24,
            seed=seed,
            extra_body={"ignore_eos": True},
        )
        return done.choices[0].text

    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(4)}) > 1


def test_several_choices_logprobs_and_stop(live: Live) -> None:
    answer = live.client.chat.completions.create(
        model="shout",
        messages=[{"role": "user", "content": "do: garden"}],
        n=2,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
        stop=["D"],
    )
    assert [choice.message.content for choice in answer.choices] == ["GAR", "GAR"]
    content = answer.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None
    assert content[0].token == "G"
    assert content[0].logprob == pytest.approx(content[0].top_logprobs[0].logprob)


def test_echo_scores_the_prompt(live: Live) -> None:
    answer = live.client.completions.create(
        model="shout", prompt=prompt_for("garden"), echo=True, logprobs=1, max_tokens=4, temperature=0
    )
    assert answer.choices[0].text == "do: garden\nGARD"
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert len(logprobs.tokens) == answer.usage.total_tokens  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["nobody", "shout@9", "SHOUT", "../shout", "shout@"])
def test_an_unknown_name_is_a_404_and_never_the_base(live: Live, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        live.client.completions.create(model=name, prompt="a")
    assert caught.value.code == "model_not_found"
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 10_000),
        ("max_tokens", -1),
        ("max_tokens", 10**9),
        ("temperature", 1e9),
        ("top_p", 0),
        ("logprobs", 10**6),
        ("stop", ["x"] * 1000),
        ("logit_bias", {"99999999": 1}),
        ("prompt", "a" * 200_000),
        ("prompt", [10**9]),
        ("prompt", ["a"] * 1000),
        ("nonsense", 1),
    ],
)
def test_absurd_parameters_are_refused_by_name(live: Live, field: str, value: object) -> None:
    body = {"model": "base", "prompt": "a", field: value}
    answer = httpx.post(f"{live.url}/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    assert "Traceback" not in answer.text
    assert httpx.get(f"{live.url}/health").status_code == 200
