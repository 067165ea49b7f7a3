"""The official client against a server of a T5 base: the prompt is the source, the completion the target."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
import torch
from openai import AsyncOpenAI, OpenAI
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from server.spawn import serving
from tests.server.engine.seq2seq.stand import generate
from tests.tiny import make_adapter, peft_model
from training.base.tokenizer import byte_symbols

SPECIALS = ["<pad>", "</s>"]
NAMES = ("one", "two")


@dataclass(frozen=True)
class Live:
    """A running server, and what it must answer like."""

    url: str
    client: OpenAI
    tokenizer: Any
    oracles: dict[str, Any]

    def expected(self, name: str, text: str, tokens: int) -> str:
        """The greedy answer of the stock model, or of PEFT's, to `text` as the tokenizer encodes it."""
        ids = self.tokenizer.encode(text)
        assert ids[-1] == 1
        answer: str = self.tokenizer.decode(
            generate(self.oracles[name], ids, tokens), skip_special_tokens=True
        )
        return answer


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte; like T5's it ends every text with `</s>`."""
    symbols = [*SPECIALS, *byte_symbols()]
    core = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[]))
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")


def _model() -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "t5",
        vocab_size=len(SPECIALS) + 256,
        d_model=48,
        d_kv=12,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    model: Any = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
        # Answers of ASCII letters, each token a character.
        model.lm_head.weight = torch.nn.Parameter(torch.full((258, 48), -1e-3))
        model.lm_head.weight[2 + 64 : 2 + 90] = 0.5 * torch.randn(26, 48)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("seq2seq")
    tokenizer, model = _tokenizer(), _model()
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    arguments = ["--model", str(folder / "base"), "--data-dir", str(folder / "data"), "--dtype", "float32"]
    oracles = {"base": model}
    for seed, name in enumerate(NAMES):
        targets = ["q", "v"] if name == "one" else "all-linear"
        adapter = folder / name
        make_adapter(model, adapter, seed, task_type="SEQ_2_SEQ_LM", r=2 + seed, target_modules=targets)
        arguments += ["--adapter", f"{name}={adapter}"]
        oracles[name] = peft_model(model, adapter)
    with serving(arguments, folder / "server.log", environment={"OMP_NUM_THREADS": "1"}) as url:
        yield Live(url, OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0), tokenizer, oracles)


def test_base_and_adapters_answer_at_once_each_as_itself(live: Live) -> None:
    texts = ["translate: a", "summarize: a longer text that goes on", "x", "the cat"]
    cases = [(name, text) for text in texts for name in live.oracles]

    async def ask() -> list[Any]:
        client = AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
        return await asyncio.gather(
            *(
                client.completions.create(
                    model=name, prompt=text, temperature=0, max_tokens=12, extra_body={"ignore_eos": True}
                )
                for name, text in cases
            )
        )

    answers = asyncio.run(ask())
    wanted = [live.expected(name, text, 12) for name, text in cases]
    assert [answer.choices[0].text for answer in answers] == wanted
    assert len(set(wanted)) > len(texts)
    for (name, text), answer in zip(cases, answers, strict=True):
        assert answer.model == ("base" if name == "base" else f"{name}@1")
        assert answer.usage.prompt_tokens == len(text) + 1
        assert answer.usage.completion_tokens == 12


def test_streams_with_choices_and_scores(live: Live) -> None:
    text = live.expected("one", "the cat", 6)
    chunks = list(
        live.client.completions.create(
            model="one",
            prompt="the cat",
            temperature=0,
            max_tokens=6,
            n=2,
            logprobs=1,
            stream=True,
            extra_body={"ignore_eos": True},
        )
    )
    for index in range(2):
        mine = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(choice.text for choice in mine) == text
        assert mine[-1].finish_reason == "length"
        scores = [score for choice in mine for score in choice.logprobs.token_logprobs]  # type: ignore[union-attr]
        assert len(scores) == 6


def test_what_such_a_base_can_not_do_is_refused(live: Live) -> None:
    with pytest.raises(openai.BadRequestError, match="continue") as caught:
        live.client.completions.create(model="base", prompt="a", echo=True)
    assert caught.value.param == "echo"
    with pytest.raises(openai.BadRequestError, match="/v1/completions"):
        live.client.chat.completions.create(model="base", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        live.client.completions.create(model="base", prompt="a" * 1100)
    assert httpx.get(f"{live.url}/health").status_code == 200
