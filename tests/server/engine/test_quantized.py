"""A quantised base answers as transformers, bitsandbytes and PEFT do with it, each row on its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.batch.native.batch import NativeBatch
from adapters.batch.plain import PlainBatch
from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.checkpoint.reader import read_adapter
from adapters.delta import AdapterWeights
from adapters.limits import AdapterLimits
from adapters.merge import build_merged
from adapters.quantized import Quantization, QuantizedMap
from adapters.registry.registry import Registry
from adapters.weights import base_weights
from server.engine.base import ServedModel
from server.engine.gathered import GatheredPlan
from server.engine.kv import block_hash, root_hash
from server.engine.request import GenerationRequest
from tests.kit import Answers, Families, ask, engine_core, full_logits, preload, prompts, run_all
from tests.quantized import KINDS, Bases, dequantized, qlora, serve, with_adapter
from tests.tiny import greedy

PROMPTS = prompts(3, 17, 34)
TOKENS = 8
ADAPTERS = {
    "lora": {"seed": 1},
    "dora": {"seed": 2, "use_dora": True},
    "attention": {"seed": 3, "r": 8, "target_modules": ["q_proj", "o_proj"]},
}


class Company:
    """The bases with their adapters, each made once."""

    def __init__(self, root: Path) -> None:
        self.bases = Bases(root)
        self._root = root

    def adapter(self, kind: Quantization, name: str) -> Path:
        folder = self._root / f"{kind}-{name}"
        if not folder.exists():
            qlora(self.bases.folder, kind, folder, **ADAPTERS[name])  # type: ignore[arg-type]
        return folder

    def weights(self, kind: Quantization, name: str, model: ServedModel) -> AdapterWeights:
        folder = self.adapter(kind, name)
        config = (folder / CONFIG_FILE).read_bytes()
        return read_adapter(
            config,
            folder / WEIGHTS_FILE,
            model.spec,
            AdapterLimits(),
            digest=name,
            base_weights=base_weights(model.model, model.linears),
        )

    def oracle(self, kind: Quantization, name: str | None) -> torch.nn.Module:
        model = self.bases.oracle(kind)
        return model if name is None else with_adapter(model, self.adapter(kind, name))

    def run(
        self, kind: Quantization, model: ServedModel, requests: list[GenerationRequest], families: Families
    ) -> Answers:
        load = lambda name: self.weights(kind, name, model)  # noqa: E731
        with engine_core(families("llama"), model=model, load=load) as core:
            preload(core, *ADAPTERS)
            answers = run_all(core, requests)
        assert not [answer.error for answer in answers.values() if answer.error]
        return answers


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Company:
    return Company(tmp_path_factory.mktemp("quantized"))


def mixed() -> list[GenerationRequest]:
    return [
        ask(f"{name}/{index}", prompt, name, max_tokens=TOKENS, logprobs=0, prompt_logprobs=0)
        for index, prompt in enumerate(PROMPTS)
        for name in (None, *ADAPTERS)
    ]


def plain(company: Company, kind: Quantization) -> ServedModel:
    """In torch operations, as it is served where there is no compiler."""
    return serve(
        company.bases.folder,
        kind,
        make_batch=lambda groups, linears, dtype, device, sizes: PlainBatch(groups, dtype),
        plan=GatheredPlan,
    )


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_batch_answers_as_peft_does_on_the_quantised_base(
    kind: Quantization, native: bool, company: Company, families: Families
) -> None:
    model = company.bases.serve(kind) if native else plain(company, kind)
    assert isinstance(model.batch, NativeBatch if native else PlainBatch)
    before = model.checksum()
    requests = mixed()
    answers = company.run(kind, model, requests, families)
    for name in (None, *ADAPTERS):
        oracle = company.oracle(kind, name)
        for request in (each for each in requests if each.adapter == name):
            answer = answers[request.request_id]
            assert answer.tokens == greedy(oracle, request.prompt, TOKENS), request.request_id
            assert answer.prompt_logprobs is not None
            got = [score.logprob for score in (*answer.prompt_logprobs[1:], *answer.logprobs) if score]
            assert (torch.tensor(got) - _logprobs(oracle, request, answer.tokens)).abs().max() < 2e-4
    assert model.checksum() == before


def _logprobs(oracle: torch.nn.Module, request: GenerationRequest, answer: list[int]) -> Tensor:
    tokens = [*request.prompt, *answer]
    logs = full_logits(oracle, tokens).log_softmax(-1)
    return logs[torch.arange(len(tokens) - 1), tokens[1:]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_oracles_differ(kind: Quantization, company: Company) -> None:
    answers = {tuple(greedy(company.oracle(kind, name), PROMPTS[1], TOKENS)) for name in (None, *ADAPTERS)}
    assert len(answers) == len(ADAPTERS) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_the_oracles(kind: Quantization, company: Company) -> None:
    """For int8 within what bitsandbytes loses by rounding activations, too, from what it computes itself."""
    ours = full_logits(company.bases.hold(kind), PROMPTS[2])

    assert (ours - full_logits(company.bases.oracle(kind), PROMPTS[2])).abs().max() < 1e-4
    theirs = full_logits(company.bases.stock(kind), PROMPTS[2])
    assert (ours - theirs).abs().max() < (0.1 * ours.abs().max() if kind == "int8" else 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_near_float32(kind: Quantization, company: Company, families: Families) -> None:
    model = company.bases.serve(kind, torch.bfloat16)
    requests = mixed()
    answers = company.run(kind, model, requests, families)
    for request in requests:
        oracle = company.oracle(kind, request.adapter)
        scores = answers[request.request_id].prompt_logprobs
        assert scores is not None
        got = torch.tensor([score.logprob for score in scores[1:] if score])
        expected = _logprobs(oracle, request, [])
        assert (got - expected).abs().mean() < 0.35, request.request_id


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_has_the_logprobs_it_has_in_company(
    kind: Quantization, company: Company, families: Families
) -> None:
    model, requests = company.bases.serve(kind), mixed()
    together = company.run(kind, model, requests, families)
    for request in requests[-4:]:
        alone = company.run(kind, model, [request], families)[request.request_id]
        mixed_in = together[request.request_id]
        assert alone.tokens == mixed_in.tokens
        difference = [a.logprob - b.logprob for a, b in zip(alone.logprobs, mixed_in.logprobs, strict=True)]
        assert max(map(abs, difference)) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["gpt2", "phi3", "qwen3_moe", "deepseek_v3"])
def test_other_families_answer_as_the_weights_that_the_codes_stand_for(
    name: str, kind: Quantization, families: Families, tmp_path: Path
) -> None:
    family = families(name)
    family.stock.save_pretrained(tmp_path)
    model = serve(tmp_path, kind)
    assert sum(isinstance(layer.linear, QuantizedMap) for layer in model.linears.values()) > 2
    plain = dequantized(tmp_path, kind)
    requests = [
        ask(f"{adapter}/{index}", prompt, adapter, max_tokens=TOKENS)
        for index, prompt in enumerate(PROMPTS)
        for adapter in (None, "all", "attention")
    ]
    with engine_core(family, model=model) as core:
        answers = run_all(core, requests)
    for adapter in (None, "all", "attention"):
        oracle = plain if adapter is None else with_adapter(plain, family.adapter(adapter))
        for request in (each for each in requests if each.adapter == adapter):
            answer = answers[request.request_id]
            assert answer.error is None
            assert answer.tokens == greedy(oracle, request.prompt, TOKENS), request.request_id


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_copy_is_not_quantised(kind: Quantization, company: Company) -> None:
    model = serve(company.bases.folder, kind)
    before = model.checksum()
    nbytes = build_merged(model.linears.values(), company.weights(kind, "lora", model))
    linears = model.spec.linears
    assert nbytes == 4 * sum(s.in_features * s.out_features for s in linears.values() if "head" not in s.name)
    oracle = company.oracle(kind, "lora")
    for name, layer in model.linears.items():
        if name != "lm_head":
            wrapped: Any = oracle.get_submodule(f"base_model.model.{name}")
            expected = layer.weight + wrapped.get_delta_weight("default")
            merged = layer.frozen(merged=True)
            assert not isinstance(merged, QuantizedMap)
            assert (merged.weight() - expected).abs().max() < 1e-5
    assert model.checksum() == before


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_belong_to_the_checkpoint_and_answers_to_its_form(
    kind: Quantization, company: Company, tmp_path: Path
) -> None:
    full, quantised = company.bases.serve("none"), company.bases.serve(kind)
    assert (full.spec.quantization, quantised.spec.quantization) == (None, kind)
    assert full.spec.digest == full.spec.serving_digest == quantised.spec.digest
    assert quantised.spec.serving_digest != full.spec.digest
    assert quantised.spec.parameters == full.spec.parameters
    assert quantised.spec.linears == full.spec.linears

    def registry(model: ServedModel) -> Registry:
        weights = base_weights(model.model, model.linears)
        return Registry(tmp_path, model.spec, AdapterLimits(), model.dtype, weights)

    with registry(full) as first:
        version, _ = first.publish_folder("dora", company.adapter(kind, "dora"))
        on_full = first.load(version.digest)
    with registry(quantised) as second:
        assert second.resolve("dora") == version
        again = second.load(version.digest)
    name = "model.layers.0.mlp.up_proj"
    magnitude = again.deltas[name].magnitude
    assert magnitude is not None
    assert not torch.equal(magnitude, on_full.deltas[name].magnitude)  # type: ignore[arg-type]
    fresh = company.weights(kind, "dora", quantised).deltas[name].magnitude
    assert fresh is not None
    assert torch.allclose(magnitude, fresh)


def test_cached_kv_belongs_to_the_form_of_the_base(company: Company, families: Families) -> None:
    model = company.bases.serve("nf4")
    with engine_core(families("llama"), model=model, block_size=8) as core:
        run_all(core, [ask("base", PROMPTS[1])])
        known = {
            digest: block_hash(root_hash("", digest, None), PROMPTS[1][:8])
            for digest in (model.spec.serving_digest, model.spec.digest)
        }
        assert core.pool.cached(known[model.spec.serving_digest])
        assert not core.pool.cached(known[model.spec.digest])
