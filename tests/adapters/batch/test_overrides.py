"""Rows of adapters that replace modules or change embeddings, in one pass, are what PEFT gives alone."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate
from typing import Any

import peft
import pytest
import torch
from peft.tuners import lora
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

from adapters.batch.segment import Segment
from adapters.delta import AdapterWeights, EmbeddingDelta, ModuleDelta
from adapters.errors import InvalidAdapter
from server.engine.attention import KVCache, StepLayout
from server.engine.base import ServedModel
from server.engine.native.norms import NativeRMSNorm
from tests.kit import Families, Family, ask, engine_core, full_logits, letters, prompts, run_all
from tests.tiny import greedy

IDS = [3, 40, 95]
PROMPTS = [[*prompt, *IDS, prompt[0]] for prompt in prompts(7, 9, 6, 11, 8, 5, 10, 12)]

LLAMA: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": "all-linear"},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "tokens": {"target_modules": ["v_proj"], "trainable_token_indices": IDS},
    "norms": {"target_modules": ["o_proj"], "modules_to_save": ["norm"]},
    "head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "table": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "linear": {"target_modules": ["q_proj"], "modules_to_save": ["down_proj", "input_layernorm"]},
}
OPT = LLAMA | {
    "lora": {"target_modules": ["q_proj"]},
    "norms": {"target_modules": ["q_proj"], "modules_to_save": ["final_layer_norm", "embed_positions"]},
    "linear": {"target_modules": ["q_proj"], "modules_to_save": ["fc2"]},
}
OPT["embedding"] = {"target_modules": ["embed_tokens", "fc1"]}
OPT["tokens"] = OPT["norms"] | {"trainable_token_indices": IDS}
GPT2: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["c_attn", "c_fc"]},
    "embedding": {"target_modules": ["wte", "c_attn"]},
    "tokens": {"target_modules": ["c_fc"], "trainable_token_indices": {"wte": IDS}},
    "norms": {"target_modules": ["c_attn"], "modules_to_save": ["ln_1", "ln_f", "wpe"]},
    "head": {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]},
    "table": {"target_modules": ["c_attn"], "modules_to_save": ["wte"]},
    "linear": {"target_modules": ["c_attn"], "modules_to_save": ["c_fc"]},
}
CONFIGS = {"llama": LLAMA, "qwen2": LLAMA, "gemma3_text": LLAMA, "gpt2": GPT2, "opt": OPT}


class Stand:
    """A family with adapters made by PEFT, and what its modules hold as our records."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.model = family.model
        self.configs = CONFIGS[family.name]
        self.oracles = {name: _trained(family.stock, name, config) for name, config in self.configs.items()}

    @cached_property
    def weights(self) -> dict[str, AdapterWeights]:
        return {name: records(model, name) for name, model in self.oracles.items()}

    def expected(self, name: str | None, prompt: Sequence[int]) -> torch.Tensor:
        return full_logits(self.oracles[name] if name else self.family.stock, prompt)


def _trained(stock: Any, name: str, config: dict[str, Any]) -> Any:
    """A PEFT model in which all that it trains is random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied layers, and of fan_in_fan_out
        base = copy.deepcopy(stock)
        model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=5, **config))
    generator = torch.Generator().manual_seed(sum(name.encode()))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def records(model: Any, digest: str) -> AdapterWeights:
    """What the modules of a PEFT model hold."""
    deltas, embeddings, replaced = {}, {}, {}
    for path, module in model.base_model.model.named_modules():
        if isinstance(module, lora.Embedding):
            a, b = module.lora_embedding_A["default"].detach(), module.lora_embedding_B["default"].detach()
            embeddings[path] = EmbeddingDelta(a, b, module.scaling["default"])
        elif isinstance(module, lora.Linear):
            a, b = module.lora_A["default"].weight.detach(), module.lora_B["default"].weight.detach()
            deltas[path] = ModuleDelta(a, b, module.scaling["default"])
        elif isinstance(module, TrainableTokensWrapper) and module.token_adapter.tied_adapter is None:
            rows = module.token_adapter.trainable_tokens_delta["default"].detach()
            embeddings[path] = EmbeddingDelta(ids=torch.tensor(IDS), rows=rows)
        elif isinstance(module, ModulesToSaveWrapper):
            replaced[path] = dict(module.modules_to_save["default"].state_dict())
    return AdapterWeights(digest, deltas, embeddings, replaced=replaced)


class Pass:
    """One flat row of whole prompts, each of its own adapter."""

    def __init__(self, model: ServedModel, prompts: Sequence[Sequence[int]], keep: int = 3) -> None:
        """`keep`: of how many tokens at each prompt's end the logits are computed."""
        self.model, self.prompts, self.keep = model, prompts, keep

    def run(self, adapters: Sequence[Any | None]) -> list[torch.Tensor]:
        """The last logits of each prompt, `(keep, vocabulary)`."""
        lengths = [len(prompt) for prompt in self.prompts]
        ends = [*accumulate(lengths)]
        starts = [end - length for end, length in zip(ends, lengths, strict=True)]
        rows = [row for end in ends for row in range(end - self.keep, end)]
        model = self.model
        cache = KVCache(ends[-1], model.dtype, model.device)
        slots = [list(range(*span)) for span in zip(starts, ends, strict=True)]
        plan = model.plan_type(cache, StepLayout.of(1, slots, lengths, lengths))
        tokens = [Segment(*span) for span in zip(starts, ends, adapters, strict=True)]
        heads = [Segment(i * self.keep, (i + 1) * self.keep, adapter) for i, adapter in enumerate(adapters)]
        model.batch.begin(tokens, heads)
        try:
            logits = model.forward(
                torch.tensor([token for prompt in self.prompts for token in prompt]),
                torch.tensor([position for length in lengths for position in range(length)]),
                plan,
                torch.tensor(rows),
            )
        finally:
            model.batch.end()
        return list(torch.split(logits, self.keep))


@pytest.fixture(scope="module", params=CONFIGS)
def stand(request: pytest.FixtureRequest, families: Families) -> Stand:
    return Stand(families(request.param))


@pytest.fixture(scope="module")
def qwen(families: Families) -> Stand:
    return Stand(families("qwen2"))


def test_the_adapters_are_of_the_kinds_that_are_meant(stand: Stand) -> None:
    weights = stand.weights
    assert not weights["lora"].embeddings
    assert not weights["lora"].replaced
    assert all(delta.a is not None for delta in weights["embedding"].embeddings.values())
    assert all(delta.rows is not None for delta in weights["tokens"].embeddings.values())
    assert len(weights["embedding"].embeddings) == len(weights["tokens"].embeddings) == 1
    for name in ("norms", "head", "table", "linear"):
        assert weights[name].replaced.keys() <= stand.model.spec.replaceable
    assert [*weights["head"].replaced] == ["lm_head"]


@pytest.mark.parametrize("form", ["native", "plain"])
def test_all_kinds_mixed_in_one_pass_are_peft_alone(stand: Stand, form: str) -> None:
    model = stand.model if form == "native" else stand.family.plain
    placed = {name: model.batch.place(weights) for name, weights in stand.weights.items()}
    names: list[str | None] = [*placed, None]
    got = Pass(model, PROMPTS).run([placed[name] if name else None for name in names])
    for name, prompt, logits in zip(names, PROMPTS, got, strict=True):
        expected = stand.expected(name, prompt)[-3:]
        assert torch.allclose(logits, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())), name
        assert name is None or not torch.allclose(logits, stand.expected(None, prompt)[-3:], atol=1e-2)


def test_greedy_answers_in_one_engine_are_pefts(stand: Stand) -> None:
    before = stand.model.checksum()
    names: list[str | None] = [*stand.weights, None]
    with engine_core(stand.family, load=stand.weights.__getitem__, prefill=13) as core:
        requests = [ask(str(i), PROMPTS[i], name, max_tokens=6) for i, name in enumerate(names)]
        answers = run_all(core, requests)
    for i, name in enumerate(names):
        oracle = stand.oracles[name] if name else stand.family.stock
        assert answers[str(i)].text == letters(greedy(oracle, PROMPTS[i], 6)), name
    assert stand.model.checksum() == before


def test_rows_of_others_stay_bit_for_bit(qwen: Stand) -> None:
    """Beside adapters that change what stands around the layers, the base gives what it gives alone."""
    model = qwen.model
    bare = Pass(model, PROMPTS).run([None] * len(PROMPTS))
    generator = torch.Generator().manual_seed(0)
    values = {"weight": torch.randn(48, generator=generator)}
    rows = EmbeddingDelta(ids=torch.tensor(IDS), rows=torch.randn(3, 48, generator=generator))
    norm = model.batch.place(AdapterWeights("norm", {}, replaced={"model.norm": values}))
    tokens = model.batch.place(AdapterWeights("tokens", {}, {"model.embed_tokens": rows}))
    mixed = Pass(model, PROMPTS).run([norm, None, tokens, None, norm, tokens, None, None])
    for i, (alone, beside) in enumerate(zip(bare, mixed, strict=True)):
        assert torch.equal(alone, beside) == (i in (1, 3, 6, 7))


def test_norms_that_run_as_native_code_are_replaced_all_the_same(qwen: Stand) -> None:
    """Their code reads the base's weights at an address; other weights go through the model's own code."""
    model, stock = qwen.model, copy.deepcopy(qwen.family.stock)
    names = [name for name in model.spec.replaceable if name.endswith("norm")]
    assert {type(model.model.get_submodule(name)) for name in names} == {NativeRMSNorm}
    generator = torch.Generator().manual_seed(3)
    values = {name: {"weight": torch.randn(48, generator=generator)} for name in names}
    stock.load_state_dict({f"{name}.weight": value["weight"] for name, value in values.items()}, strict=False)
    placed = model.batch.place(AdapterWeights("norms", {}, replaced=values))
    got = Pass(model, PROMPTS[:3]).run([placed, None, placed])
    for logits, prompt, expected in zip(got, PROMPTS, [stock, qwen.family.stock, stock], strict=False):
        assert torch.allclose(logits, full_logits(expected, prompt)[-3:], atol=1e-4)


def test_bfloat16_is_as_near_as_the_base_is(families: Families) -> None:
    """All the sites are seen, and a tied, scaled table, norms and a head give what a changed base gives."""
    wide = families("gemma3_text").stock
    stock = copy.deepcopy(wide).bfloat16()
    model = ServedModel(copy.deepcopy(stock), name="base", digest="d")
    assert model.spec.replaceable == families("gemma3_text").model.spec.replaceable
    generator = torch.Generator().manual_seed(4)
    rows, norm = torch.randn(3, 48, generator=generator), torch.randn(12, generator=generator)
    name = "model.layers.1.self_attn.q_norm"
    record = EmbeddingDelta(ids=torch.tensor(IDS), rows=rows)
    replaced = {name: {"weight": norm}}
    placed = model.batch.place(AdapterWeights("d", {}, {"model.embed_tokens": record}, replaced=replaced))
    changed = copy.deepcopy(wide)
    changed.model.embed_tokens.weight.data[torch.tensor(IDS)] = rows
    changed.get_submodule(name).weight.data = norm
    got = Pass(model, PROMPTS[:2]).run([placed, None])
    for logits, prompt, oracle in zip(got, PROMPTS, [changed, wide], strict=False):
        expected = full_logits(oracle, prompt)[-3:]
        assert float((logits.float() - expected).norm() / expected.norm()) < 0.06


def test_tokens_of_a_tied_base_are_the_heads_rows_too(qwen: Stand) -> None:
    """Written independently: the logits of trained tokens are products with the trained rows."""
    model, stock = qwen.model, qwen.family.stock
    rows = torch.randn(3, 48, generator=torch.Generator().manual_seed(1))
    record = EmbeddingDelta(ids=torch.tensor(IDS), rows=rows)
    placed = model.batch.place(AdapterWeights("t", {}, {"model.embed_tokens": record}))
    prompt = [token for token in PROMPTS[0] if token not in IDS]  # so that only the head differs
    with torch.inference_mode():
        hidden = stock.model(input_ids=torch.tensor([prompt])).last_hidden_state[0, -3:]
    expected = full_logits(stock, prompt)[-3:].clone()
    expected[:, IDS] = hidden @ rows.t()
    [got] = Pass(model, [prompt]).run([placed])
    assert torch.allclose(got, expected, atol=1e-4)


def test_a_heads_own_rows_and_embeddings_with_both_terms(families: Families) -> None:
    """An untied head may have trained tokens as well; a table both trained rows and an added product."""
    family = families("llama")
    model, stock = family.model, copy.deepcopy(family.stock)
    rows, others, a, b = (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        for seed, shape in enumerate([(3, 48), (3, 48), (2, 96), (48, 2)])
    )
    ids = torch.tensor(IDS)
    records = {
        "model.embed_tokens": EmbeddingDelta(a, b, 0.5, ids, rows),
        "lm_head": EmbeddingDelta(ids=ids, rows=others),
    }
    stock.model.embed_tokens.weight.data[ids] = rows
    stock.model.embed_tokens.weight.data += 0.5 * (b @ a).t()
    stock.lm_head.weight.data[ids] = others
    placed = model.batch.place(AdapterWeights("both", {}, records))
    got = Pass(model, PROMPTS[:2]).run([None, placed])
    assert torch.allclose(got[1], full_logits(stock, PROMPTS[1])[-3:], atol=1e-4)
    assert torch.allclose(got[0], full_logits(family.stock, PROMPTS[0])[-3:], atol=1e-4)


@contextmanager
def _hooked(model: ServedModel) -> Iterator[list[str]]:
    """Which modules have hooks while the model runs."""
    seen: list[str] = []
    forward = model.model.forward

    def look(*args: Any, **kwargs: Any) -> Any:
        seen.extend(name for name, module in model.model.named_modules() if module._forward_hooks)
        return forward(*args, **kwargs)

    model.model.forward = look
    try:
        yield seen
    finally:
        model.model.forward = forward


def test_only_modules_that_the_steps_adapters_change_have_hooks(qwen: Stand) -> None:
    model = qwen.model
    placed = {name: model.batch.place(weights) for name, weights in qwen.weights.items()}
    for name, expected in {"lora": [], "embedding": ["model.embed_tokens"], "head": ["lm_head"]}.items():
        with _hooked(model) as seen:
            Pass(model, PROMPTS[:2]).run([None, placed[name]])
        assert seen == expected
    assert not any(module._forward_hooks for module in model.model.modules())


def test_what_is_placed_is_counted_copied_and_moved(qwen: Stand) -> None:
    weights, batch = qwen.weights["table"], qwen.family.plain.batch
    bare, whole = batch.place(AdapterWeights("d", weights.deltas)), batch.place(weights)
    [(name, parameters)] = weights.replaced.items()
    assert whole.nbytes == bare.nbytes + parameters["weight"].nbytes
    held = whole.extras.replaced[name]["weight"]
    assert torch.equal(held, parameters["weight"])
    assert held.data_ptr() != parameters["weight"].data_ptr()
    moved = whole.to(torch.device("meta"))
    assert moved.extras.replaced[name]["weight"].device.type == "meta"
    assert sum(tensor.nbytes for tensor in moved.tensors()) <= moved.nbytes
    native = qwen.model.batch.place(weights)
    assert native.to(torch.device("cpu")).extras is native.extras is not None


ROWS = torch.zeros(2, 48)
REFUSED: dict[str, tuple[AdapterWeights, str]] = {
    "unknown": (
        AdapterWeights("d", {}, replaced={"model.rotary_emb": {"weight": torch.ones(3)}}),
        "replaces model.rotary_emb, which can't be replaced",
    ),
    "shape": (
        AdapterWeights("d", {}, replaced={"model.norm": {"weight": torch.ones(3)}}),
        r"model.norm with weight \[3\]; it has weight \[48\]",
    ),
    "parameter": (
        AdapterWeights("d", {}, replaced={"model.norm": {"bias": torch.ones(48)}}),
        r"model.norm with bias \[48\]",
    ),
    "no weight": (
        AdapterWeights("d", {}, replaced={"model.layers.0.self_attn.q_proj": {"bias": torch.ones(48)}}),
        "q_proj, but brings no weight",
    ),
    "no table": (
        AdapterWeights("d", {}, {"model.norm": EmbeddingDelta(ids=torch.tensor([1, 2]), rows=ROWS)}),
        "changes model.norm, which the model does not call as a table",
    ),
    "product": (
        AdapterWeights("d", {}, {"model.embed_tokens": EmbeddingDelta(torch.ones(2, 5), torch.ones(48, 2))}),
        r"adds \[48, 2\] x \[2, 5\] to model.embed_tokens",
    ),
    "id": (
        AdapterWeights("d", {}, {"model.embed_tokens": EmbeddingDelta(ids=torch.tensor([1, 96]), rows=ROWS)}),
        "ids are not different ones from 0 to 95",
    ),
    "twice": (
        AdapterWeights("d", {}, {"model.embed_tokens": EmbeddingDelta(ids=torch.tensor([1, 1]), rows=ROWS)}),
        "ids are not different ones from 0 to 95",
    ),
    "rows": (
        AdapterWeights("d", {}, {"model.embed_tokens": EmbeddingDelta(ids=torch.tensor([1]), rows=ROWS)}),
        r"\[2, 48\] values for tokens of model.embed_tokens; they must be \[1, 48\]",
    ),
    "head": (
        AdapterWeights(
            "d",
            {"lm_head": ModuleDelta(torch.ones(1, 48), torch.ones(96, 1), 1.0)},
            {"model.embed_tokens": EmbeddingDelta(ids=torch.tensor([1, 2]), rows=ROWS)},
        ),
        "trains tokens of model.embed_tokens and adds to lm_head, which is tied",
    ),
    "both": (
        AdapterWeights(
            "d",
            {"lm_head": ModuleDelta(torch.ones(1, 48), torch.ones(96, 1), 1.0)},
            replaced={"lm_head": {"weight": torch.ones(96, 48)}},
        ),
        "both replaces lm_head and adds to it",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_is_refused_with_its_name(case: str, families: Families) -> None:
    weights, reason = REFUSED[case]
    with pytest.raises(InvalidAdapter, match=reason):
        families("qwen2").model.batch.place(weights)


def test_values_that_the_type_cannot_hold_are_refused(qwen: Stand) -> None:
    weights = AdapterWeights("d" * 64, {}, replaced={"model.norm": {"weight": torch.full((48,), torch.inf)}})
    with pytest.raises(InvalidAdapter, match="dddddddddddd has values too large"):
        qwen.model.batch.place(weights)


def test_a_module_with_other_rows_than_the_steps_is_an_error(qwen: Stand) -> None:
    """Rather than rows of the wrong adapter."""
    model = qwen.model
    placed = model.batch.place(qwen.weights["head"])
    model.batch.begin([Segment(0, 4, placed)], [Segment(0, 2, placed)])
    try:
        with pytest.raises(RuntimeError, match="lm_head got 3 rows where the step has 2"):
            model.model.lm_head(torch.zeros(1, 3, 48))
    finally:
        model.batch.end()
