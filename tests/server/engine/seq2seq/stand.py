"""Tiny random bases of the T5 family with PEFT adapters, in serving form and as transformers sees them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.checkpoint.reader import read_adapter
from adapters.delta import AdapterWeights
from adapters.residency import Residency
from adapters.weights import base_weights
from server.engine.core import EngineConfig
from server.engine.request import GenerationRequest
from server.engine.seq2seq.core import Seq2SeqCore
from server.engine.seq2seq.model import Seq2SeqModel
from tests.kit import AMPLE, LIMITS, Answers, Letters, collect
from tests.tiny import VOCAB, make_adapter, peft_model

START = 0

_T5: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 48,
    "d_kv": 12,
    "d_ff": 80,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": START,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", {**_T5, "feed_forward_proj": "relu"}),
    # As T5 1.1 and Flan-T5: gated, the head is a matrix of its own, and its input is not scaled.
    "flan": ("t5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("mt5", _T5),
    "umt5": ("umt5", _T5),
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "qv": {"r": 4, "lora_alpha": 8, "target_modules": ["q", "v"]},
    "all": {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"},
    "ff": {"r": 8, "lora_alpha": 6, "use_rslora": True, "target_modules": ["wo", "wi", "wi_0", "wi_1"]},
    "cross": {"r": 5, "target_modules": r"decoder\..*\.EncDecAttention\.(k|v)"},
    "head": {"r": 3, "target_modules": ["lm_head", "o"]},
}


def make_t5(family: str, seed: int = 0) -> Any:
    """A random float32 model whose answers vary: norms and the head are random too."""
    model_type, fields = FAMILIES[family]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **fields)
    model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.dim() == 1 else 2.0 if "relative" in name else 0.15
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
        if family != "t5":
            model.lm_head.weight = nn.Parameter(0.3 * torch.randn(VOCAB, 48, generator=generator))
    model.generation_config.eos_token_id = None
    return model.eval().requires_grad_(False)


class Seq2SeqFamily:
    """One tiny base and its adapters, whose names serve as digests."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.stock = make_t5(name)
        self._oracles: dict[str | None, Any] = {None: self.stock}
        self._answers: dict[tuple[str | None, tuple[int, ...], int], list[int]] = {}

    @cached_property
    def model(self) -> Seq2SeqModel:
        return Seq2SeqModel(copy.deepcopy(self.stock), name="base", digest=f"base-{self.name}")

    def adapter(self, name: str) -> Path:
        folder = self.folder / self.name / name
        if not folder.exists():
            seed = sum(name.encode())
            make_adapter(self.stock, folder, seed, task_type="SEQ_2_SEQ_LM", **ADAPTERS[name])
        return folder

    def weights(self, name: str) -> AdapterWeights:
        folder = self.adapter(name)
        config = (folder / CONFIG_FILE).read_bytes()
        weights = base_weights(self.model.model, self.model.linears)
        return read_adapter(
            config, folder / WEIGHTS_FILE, self.model.spec, LIMITS, digest=name, base_weights=weights
        )

    def oracle(self, adapter: str | None) -> Any:
        """The stock model, or PEFT's."""
        if adapter not in self._oracles:
            self._oracles[adapter] = peft_model(self.stock, self.adapter(adapter or ""))
        return self._oracles[adapter]

    def expected(self, adapter: str | None, source: Sequence[int], tokens: int) -> list[int]:
        """Transformers' own greedy answer, never ended early."""
        key = adapter, tuple(source), tokens
        if key not in self._answers:
            self._answers[key] = generate(self.oracle(adapter), source, tokens)
        return self._answers[key]


def generate(model: Any, source: Sequence[int], tokens: int, **options: Any) -> list[int]:
    ids = torch.tensor([list(source)])
    config = transformers.GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        decoder_start_token_id=START,
        use_cache=False,  # transformers makes a cache of as many layers as the encoder has
        **options,
    )
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    answer: list[int] = out[0, 1:].tolist()
    return answer


@contextmanager
def seq2seq_core(
    family: Seq2SeqFamily,
    *,
    load: Callable[[str], AdapterWeights] | None = None,
    budget: int = AMPLE,
    end_tokens: frozenset[int] = frozenset(),
    model: Seq2SeqModel | None = None,
    **sizes: Any,
) -> Iterator[Seq2SeqCore]:
    model = model or family.model
    residency = Residency(load or family.weights, model.batch.place, model.device, budget, budget)
    config = EngineConfig(**{"max_model_len": 128, "kv_blocks": 128, "block_size": 8, **sizes})
    try:
        yield Seq2SeqCore(model, Letters(), residency, config, end_tokens)
    finally:
        residency.close()


def step_once(core: Seq2SeqCore, answers: Answers) -> None:
    """One step; rests a moment when there was nothing to run (an adapter is being read)."""
    before = core.steps
    results = core.step()
    collect(answers, results)
    if core.steps == before and not results:
        time.sleep(0.0005)


def finish(core: Seq2SeqCore, answers: Answers | None = None) -> Answers:
    """Step until nothing is left, and see that nothing is lost."""
    answers = {} if answers is None else answers
    deadline = time.monotonic() + 60
    while core.busy:
        assert time.monotonic() < deadline, "the engine makes no progress"
        step_once(core, answers)
    core.check()
    assert core.pool.used == 0
    assert not core.residency.device.leases
    return answers


def run_all(core: Seq2SeqCore, requests: Iterable[GenerationRequest]) -> Answers:
    for request in requests:
        core.submit(request)
    return finish(core)
