"""What engine tests need: tiny bases in serving form, adapters that differ, a core, and its answers."""

from __future__ import annotations

import copy
import random
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from adapters.batch.placed import Placed
from adapters.batch.plain import PlainBatch
from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.checkpoint.reader import read_adapter
from adapters.delta import AdapterWeights
from adapters.limits import AdapterLimits
from adapters.residency import Residency
from server.engine.base import ServedModel
from server.engine.core import EngineConfig, EngineCore, Results
from server.engine.gathered import GatheredPlan
from server.engine.request import (
    FinishReason,
    GenerationOutput,
    GenerationRequest,
    PoolingOutput,
    Request,
    SamplingParams,
    TokenLogprob,
)
from tests.tiny import VOCAB, greedy, make_adapter, make_model, peft_model

LIMITS = AdapterLimits()
AMPLE = 1 << 30

_LLAMA_ROLES = (["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"])
_ROLES: dict[str, tuple[list[str], list[str]]] = {
    "gpt2": (["attn.c_attn", "attn.c_proj"], ["c_fc", "mlp.c_proj"]),
    "opt": (["q_proj", "k_proj", "v_proj", "out_proj"], ["fc1", "fc2"]),
    "phi3": (["qkv_proj", "o_proj"], ["gate_up_proj", "down_proj"]),
    "gpt_oss": (["q_proj", "k_proj"], ["v_proj", "o_proj"]),  # its experts are not linear layers
    "gpt_neo": (["q_proj", "k_proj", "v_proj", "out_proj"], ["c_fc", "c_proj"]),
    "gpt_neox": (["query_key_value", "attention.dense"], ["dense_h_to_4h", "dense_4h_to_h"]),
    "mixtral": (_LLAMA_ROLES[0], ["w1", "w3", "w2"]),  # PEFT makes parameters of all experts of these
    "deepseek_v3": (["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"], _LLAMA_ROLES[1]),
}


def adapter_configs(family: str) -> dict[str, dict[str, Any]]:
    """LoRA configs that differ in rank, scale and target modules."""
    attention, mlp = _ROLES.get(family, _LLAMA_ROLES)
    patterns = {
        "r": 3,
        "lora_alpha": 5,
        "use_rslora": True,
        "target_modules": [attention[0], attention[-1], mlp[-1]],
        "rank_pattern": {attention[0]: 6, mlp[-1]: 1},
        "alpha_pattern": {attention[-1]: 2},
    }
    return {
        "all": {"r": 4, "lora_alpha": 8},
        "attention": {"r": 2, "lora_alpha": 6, "target_modules": attention},
        "mlp": {"r": 8, "lora_alpha": 4, "target_modules": mlp},
        "patterns": patterns,
    }


class Family:
    """One tiny base with its adapters, in serving form and as transformers and PEFT see it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.stock = make_model(name)
        self._answers: dict[tuple[str | None, tuple[int, ...], int], list[int]] = {}
        self._stocks: dict[str | None, Any] = {None: self.stock}
        self.configs = adapter_configs(name)

    @cached_property
    def model(self) -> ServedModel:
        return ServedModel(copy.deepcopy(self.stock), name="base", digest=f"base-{self.name}")

    @cached_property
    def plain(self) -> ServedModel:
        """The same in plain torch operations, as it is served where there is no compiler."""
        return ServedModel(
            copy.deepcopy(self.stock),
            name="base",
            digest=f"base-{self.name}",
            make_batch=lambda groups, linears, dtype, device, sizes: PlainBatch(groups, dtype),
            plan=GatheredPlan,
        )

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(adapter_configs(self.name))

    def adapter(self, name: str) -> Path:
        """The PEFT folder of an adapter, made on demand. Its name serves as its digest."""
        folder = self.folder / name
        if not folder.exists():
            make_adapter(self.stock, folder, sum(name.encode()), **self.configs[name])
        return folder

    def weights(self, name: str) -> AdapterWeights:
        """What the product's own reader makes of it."""
        return self.read(self.adapter(name), name)

    def read(self, folder: Path, digest: str) -> AdapterWeights:
        """The same of any PEFT folder."""
        config = (folder / CONFIG_FILE).read_bytes()
        return read_adapter(config, folder / WEIGHTS_FILE, self.model.spec, LIMITS, digest=digest)

    def save(self, peft_model: Any, digest: str) -> AdapterWeights:
        """What the reader makes of the files that PEFT writes of `peft_model`."""
        folder = self.folder / digest
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT looks for the base's config on the hub
            peft_model.save_pretrained(str(folder), save_embedding_layers=False)
        return self.read(folder, digest)

    def place(self, weights: AdapterWeights) -> Placed:
        placed: Placed = self.model.batch.place(weights)
        return placed

    def oracle(self, adapter: str | None) -> Any:
        """The stock model, or PEFT's."""
        if adapter not in self._stocks:
            self._stocks[adapter] = peft_model(self.stock, self.adapter(adapter or ""))
        return self._stocks[adapter]

    def expected(self, adapter: str | None, prompt: Sequence[int], tokens: int) -> list[int]:
        """The greedy answer of transformers' `generate`."""
        key = adapter, tuple(prompt), tokens
        if key not in self._answers:
            self._answers[key] = greedy(self.oracle(adapter), prompt, tokens)
        return self._answers[key]


class Families:
    """Makes each family once."""

    def __init__(self, folder: Path) -> None:
        self._get = cache(lambda name: Family(name, folder / name))

    def __call__(self, name: str) -> Family:
        return self._get(name)


class Letters:
    """A decoder that writes each token as one character, so that text tells the tokens."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return letters(token_ids)


def letters(token_ids: Iterable[int]) -> str:
    return "".join(chr(0x100 + token) for token in token_ids)


class FixedPacer:
    """The same prefill budget in every step, so that tests can count steps."""

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def prefill_budget(self, decodes: int, prompts: int = 1) -> int:
        return self.budget

    def record(self, decodes: int, prefill: int, seconds: float) -> None:
        """Nothing is learnt."""


@dataclass
class Answer:
    """All that one request got."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    reason: FinishReason | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    cached: int = 0
    vectors: tuple[tuple[float, ...], ...] = ()
    error: Exception | None = None

    @property
    def finished(self) -> bool:
        return self.reason is not None or self.error is not None or bool(self.vectors)

    def add(self, result: GenerationOutput | PoolingOutput | Exception) -> None:
        assert not self.finished
        if isinstance(result, Exception):
            self.error = result
            return
        if isinstance(result, PoolingOutput):
            self.vectors, self.cached = result.vectors, result.cached_tokens
            return
        self.tokens += result.token_ids
        self.text += result.text
        self.logprobs += result.logprobs or ()
        self.reason, self.stop_reason = result.finish_reason, result.stop_reason
        self.prompt_logprobs = result.prompt_logprobs or self.prompt_logprobs
        self.cached += result.cached_tokens


Answers = dict[str, Answer]


@contextmanager
def engine_core(
    family: Family,
    *,
    load: Callable[[str], AdapterWeights] | None = None,
    budget: int = AMPLE,
    end_tokens: frozenset[int] = frozenset(),
    prefill: int | None = None,
    model: ServedModel | None = None,
    **sizes: Any,
) -> Iterator[EngineCore]:
    """A core over `family`. `load`: instead of reading the family's adapters; `prefill`: tokens in a step."""
    model = model or family.model
    residency = Residency(load or family.weights, model.batch.place, model.device, budget, budget)
    defaults = {"max_model_len": 128, "kv_blocks": 128, "block_size": 8}
    config = EngineConfig(**{**defaults, **sizes})
    core = EngineCore(model, Letters(), residency, config, end_tokens)
    if prefill is not None:
        core.scheduler.pacer = FixedPacer(prefill)  # type: ignore[assignment]
    try:
        yield core
    finally:
        residency.close()


def ask(
    request_id: str,
    prompt: Sequence[int],
    adapter: str | None = None,
    *,
    scope: str = "",
    tenant: str = "",
    **sampling: Any,
) -> GenerationRequest:
    """A request, greedy and without an early end unless told otherwise."""
    params = SamplingParams(**{"temperature": 0.0, "ignore_eos": True, "max_tokens": 8, **sampling})
    return GenerationRequest(request_id, tuple(prompt), params, adapter, scope, tenant=tenant)


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Random token ids above the special ones."""
    chance = random.Random(seed)
    return [[chance.randrange(3, VOCAB) for _ in range(length)] for length in lengths]


def collect(answers: Answers, results: Results) -> None:
    for request_id, result in results:
        answers.setdefault(request_id, Answer()).add(result)


def step(core: EngineCore) -> Results:
    """One step; rests a moment when there was nothing to run (an adapter is being read)."""
    before = core.stats().steps
    results = core.step()
    if core.stats().steps == before and not results:
        time.sleep(0.0005)
    return results


def finish(core: EngineCore, answers: Answers | None = None, *, seconds: float = 60) -> Answers:
    """Step until nothing is left, and see that nothing is lost."""
    answers = {} if answers is None else answers
    deadline = time.monotonic() + seconds
    while core.busy:
        assert time.monotonic() < deadline, "the engine makes no progress"
        collect(answers, step(core))
    core.check()
    assert core.pool.used == 0
    assert not core.residency.device.leases
    return answers


def run_all(core: EngineCore, requests: Iterable[Request]) -> Answers:
    """Submit all at once and finish."""
    for request in requests:
        core.submit(request)
    return finish(core)


def preload(core: EngineCore, *digests: str) -> None:
    """Bring adapters into memory, so that no step waits for them."""
    deadline = time.monotonic() + 30
    for digest in digests:
        core.residency.prefetch(digest)
    while any(core.residency.state(digest) == "disk" for digest in digests):
        assert time.monotonic() < deadline, "an adapter is not loaded"
        time.sleep(0.001)


def full_logits(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """`(tokens, vocabulary)` logits of a stock forward over the whole sequence."""
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([list(tokens)])).logits[0]
    return logits
