"""A server of an encoder: classes of texts, of tokens, and embeddings, as PEFT and transformers give them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from server.spawn import serving
from tests.server.engine.encoder.stand import VOCAB, Trained, save_base

SPECIALS = ["<s>", "<pad>", "</s>"]
WORDS = [f"w{index}" for index in range(VOCAB - len(SPECIALS))]
LABELS = {"topics": 4, "mood": 2}


@dataclass(frozen=True)
class Live:
    """A running server, what it must answer like, and what wrote to its standard output."""

    url: str
    base: Path
    adapters: dict[str, Trained]
    output: Path

    def post(self, route: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/{route}", json=body, timeout=60)


def ids(text: str) -> list[int]:
    """As the tokenizer encodes it."""
    return [0, *(len(SPECIALS) + WORDS.index(word) for word in text.split()), 2]


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", pad_token="<pad>", eos_token="</s>", cls_token="<s>"
    )


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("encoder")
    base = save_base("roberta", "SEQ_CLS", folder / "base", labels=3)
    _tokenizer().save_pretrained(base)
    attention = ["query", "key", "value"]
    adapters = {
        name: Trained(base, folder / name, "SEQ_CLS", labels, labels, target_modules=attention, r=labels)
        for name, labels in LABELS.items()
    }
    adapters["names"] = Trained(base, folder / "names", "TOKEN_CLS", 5, 9, target_modules=attention[:1])
    arguments = ["--model", str(base), "--data-dir", str(folder / "data"), "--dtype", "float32"]
    for name, trained in adapters.items():
        arguments += ["--adapter", f"{name}={trained.folder}"]
    with serving(arguments, folder / "log", environment={"OMP_NUM_THREADS": "1"}) as url:
        yield Live(url, base, adapters, folder / "log")


def _close(actual: Any, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(actual), expected, rtol=1e-4, atol=1e-5)


def test_texts_of_many_at_once(live: Live) -> None:
    texts = [
        " ".join(WORDS[start : start + length]) for start, length in ((3, 4), (50, 30), (7, 1), (20, 12))
    ]
    with ThreadPoolExecutor(8) as clients:
        answers = {
            (name, text): clients.submit(live.post, "classify", model=name, input=[text])
            for name in LABELS
            for text in texts
        }
    for (name, text), future in answers.items():
        answer = future.result().json()
        logits = [*answer["data"][0]["logits"].values()]
        _close(logits, live.adapters[name].expected(ids(text)))
        assert answer["data"][0]["num_classes"] == LABELS[name]
        assert answer["model"] == f"{name}@1"


def test_tokens(live: Live) -> None:
    entry = live.post("token_classify", model="names", input="w5 w9 w1").json()["data"][0]
    expected = live.adapters["names"].expected(ids("w5 w9 w1"))
    scores, labels = expected.softmax(-1).max(-1)
    _close([token["score"] for token in entry["tokens"]], scores)
    assert [token["label"] for token in entry["tokens"]] == [f"LABEL_{label}" for label in labels]
    assert [token["start"] for token in entry["tokens"]][1:4] == [0, 3, 6]


def test_the_base_by_itself(live: Live) -> None:
    stock = AutoModelForSequenceClassification.from_pretrained(live.base)
    body = AutoModel.from_pretrained(live.base, add_pooling_layer=False)
    row = torch.tensor([ids("w8 w2")])
    with torch.inference_mode():
        logits, hidden = stock(input_ids=row).logits[0], body(input_ids=row).last_hidden_state[0]
    _close([*live.post("classify", model="base", input="w8 w2").json()["data"][0]["logits"].values()], logits)
    for pooling, expected in ((None, hidden[0]), ("mean", hidden.mean(0)), ("last", hidden[-1])):
        given = {"pooling": pooling} if pooling else {}
        answer = live.post("embeddings", model="base", input="w8 w2", **given).json()
        _close(answer["data"][0]["embedding"], torch.nn.functional.normalize(expected, dim=0))


@pytest.mark.parametrize(
    ("route", "body", "message"),
    [
        ("completions", {"model": "mood", "prompt": "w1"}, "is an encoder; with adapters trained for them"),
        (
            "chat/completions",
            {"model": "base", "messages": [{"role": "user", "content": "w1"}]},
            "is an encoder",
        ),
        ("token_classify", {"model": "mood", "input": "w1"}, "was trained for SEQ_CLS"),
        ("classify", {"model": "mood", "input": " ".join(["w1"] * 37)}, "maximum context length"),
    ],
)
def test_what_it_does_not_do_is_a_400(live: Live, route: str, body: dict[str, Any], message: str) -> None:
    answer = live.post(route, **body)
    assert (answer.status_code, message in answer.json()["error"]["message"]) == (400, True), answer.text


def test_it_says_what_it_serves(live: Live) -> None:
    assert "multilora serves base (an encoder) and 3 adapter versions" in live.output.read_text()
