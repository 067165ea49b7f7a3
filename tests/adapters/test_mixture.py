"""Mixtures are what PEFT computes with several active adapters, and what its merged weights say of any."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from adapters.delta import AdapterWeights, EmbeddingDelta, ExpertsDelta, ModuleDelta
from adapters.errors import AdapterNotFound, AdapterTooLarge, InvalidAdapter
from adapters.mixture import Mixture, Mixtures, mix, unmixable
from tests.adapters.records import answers, applied, read, trained

TOKENS = torch.arange(2, 26)[None] * 7 % 64

CONFIGS: dict[str, dict[str, Any]] = {
    "dora": {"r": 4, "use_dora": True, "target_modules": ["q_proj", "up_proj", "down_proj"]},
    "four": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "lm_head"]},
    "two": {"r": 2, "use_rslora": True, "target_modules": ["q_proj", "up_proj", "embed_tokens"]},
    "bias": {"r": 3, "lora_bias": True, "target_modules": ["q_proj", "o_proj"]},
    "table": {"r": 5, "target_modules": ["embed_tokens"]},
}
Parts = Sequence[tuple[str, float]]
# A DoRA in PEFT multiplies what stands before it in the list, so that it equals the sum only as the first.
ACTIVE: dict[str, Parts] = {
    "two LoRAs": [("four", 0.7), ("two", -0.5)],
    "one": [("four", 0.3)],
    "bias": [("bias", 1.5)],
    "tables": [("two", 0.5), ("table", 2.0)],
    "all": [("dora", 1.0), ("four", 0.7), ("two", 0.5), ("bias", -1.0), ("table", 0.1)],
    "nothing": [("four", 0.0), ("bias", 0.0)],
}
MERGED: dict[str, Parts] = {
    **ACTIVE,
    "half a DoRA": [("dora", 0.5)],
    "more than a DoRA": [("dora", 1.7), ("two", 0.5)],
}


class World:
    """A base with its adapters, as PEFT has them and as they are read."""

    def __init__(self, root: Path) -> None:
        self.model = _base()
        self.root = root
        for seed, (name, config) in enumerate(CONFIGS.items(), 1):
            trained(
                self.model,
                root / name,
                LoraConfig(task_type="CAUSAL_LM", **config),
                seed,
                save_embedding_layers=False,
            )
        self.weights = {name: read(self.model, root / name) for name in CONFIGS}

    def mixed(self, parts: Parts) -> AdapterWeights:
        return mix("mix", [(self.weights[name], scale) for name, scale in parts])

    def peft(self, names: Sequence[str]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first, *others = names
            folder = str(self.root / first)
            peft: Any = PeftModel.from_pretrained(copy.deepcopy(self.model), folder, adapter_name=first)
            for name in others:
                peft.load_adapter(str(self.root / name), adapter_name=name)
            peft.base_model.set_adapter(list(names))
        return peft.eval()

    def active(self, parts: Parts) -> Any:
        """PEFT with all of them active, each with its scale set."""
        peft = self.peft([name for name, _ in parts])
        for module in peft.modules():
            if isinstance(module, LoraLayer):
                for name, scale in parts:
                    module.set_scale(name, scale)
        return peft

    def merged(self, parts: Parts) -> Any:
        """The base's parameters plus the weighted differences that PEFT's merging makes."""
        model = copy.deepcopy(self.model)
        base = dict(self.model.named_parameters())
        for name, scale in parts:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                changed = self.peft([name]).merge_and_unload()
            for module, parameter in changed.named_parameters():
                _add(model, module, scale * (parameter - base.get(module, 0)))
        return model


def _add(model: Any, name: str, change: Tensor) -> None:
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    old = getattr(module, own)
    setattr(module, own, torch.nn.Parameter(change if old is None else old + change, requires_grad=False))


def _base() -> LlamaForCausalLM:
    """With biases of its own, into which PEFT can merge those of an adapter."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_()
    return model


def logits(model: Any) -> Tensor:
    return answers(model, TOKENS)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name", ACTIVE)
def test_as_pefts_active_adapters(name: str, world: World) -> None:
    expected = logits(world.active(ACTIVE[name]))
    torch.testing.assert_close(
        logits(applied(world.model, world.mixed(ACTIVE[name]))), expected, rtol=1e-5, atol=1e-5
    )
    moved = (expected - logits(world.model)).abs().max()
    assert moved < 1e-6 if name == "nothing" else moved > 1e-2


@pytest.mark.parametrize("name", MERGED)
def test_as_merged_weights(name: str, world: World) -> None:
    found = logits(applied(world.model, world.mixed(MERGED[name])))
    torch.testing.assert_close(found, logits(world.merged(MERGED[name])), rtol=1e-5, atol=1e-5)


def test_experts_are_stacked() -> None:
    def part(rank: int, scale: float) -> AdapterWeights:
        return AdapterWeights(
            "x", {}, experts={"e": ExpertsDelta(torch.randn(4, rank, 6), torch.randn(4, 5, rank), scale)}
        )

    first, second = part(2, 0.5), part(3, 2.0)
    mixed = mix("mix", [(first, 0.7), (second, -1.0)]).experts["e"]

    def delta(experts: ExpertsDelta) -> Tensor:
        return experts.scale * experts.b @ experts.a

    expected = 0.7 * delta(first.experts["e"]) - delta(second.experts["e"])
    torch.testing.assert_close(delta(mixed), expected)


def test_one_member_keeps_its_tensors() -> None:
    """In the type that they are stored in, so that nothing grows; only the scale is another."""
    a, b = torch.randn(2, 3).bfloat16(), torch.randn(4, 2).bfloat16()
    mixed = mix("mix", [(AdapterWeights("x", {"m": ModuleDelta(a, b, 2.0)}), 0.25)]).deltas["m"]
    assert mixed.a is a
    assert mixed.b is b
    assert mixed.scale == 0.5


def test_types_are_joined_in_float32() -> None:
    def part(dtype: torch.dtype) -> AdapterWeights:
        return AdapterWeights("x", {"m": ModuleDelta(torch.ones(1, 2, dtype=dtype), torch.ones(2, 1), 1.0)})

    same = mix("mix", [(part(torch.bfloat16), 1.0), (part(torch.bfloat16), 1.0)])
    other = mix("mix", [(part(torch.bfloat16), 1.0), (part(torch.float32), 1.0)])
    assert (same.deltas["m"].a.dtype, other.deltas["m"].a.dtype) == (torch.bfloat16, torch.float32)


def test_the_digest_is_of_members_and_exact_scales_in_any_order() -> None:
    a, b = "a" * 64, "b" * 64
    digest = Mixture.of([(a, 0.7), (b, 0.5)]).digest

    assert len(digest) == 64
    assert Mixture.of([(b, 0.5), (a, 0.7)]).digest == digest
    others = [
        [(a, 0.5), (b, 0.7)],
        [(a, 0.7), (b, 0.5000000000000001)],
        [(a, 0.7)],
        [(a, 0.7), (b, 0.5), (b, 0.5)],
        [(a, -0.7), (b, 0.5)],
    ]
    assert len({digest, *(Mixture.of(members).digest for members in others)}) == 6


def test_members_and_task_are_known(world: World) -> None:
    mixed = world.mixed([("four", 0.5), ("two", 0.5)])
    assert mixed.members == (world.weights["four"].digest, world.weights["two"].digest)
    assert mixed.task == "CAUSAL_LM"


ONE = torch.ones(1, 1)
UNMIXABLE: dict[str, dict[str, Any]] = {
    "it replaces model.norm": {"replaced": {"model.norm": {"weight": ONE}}},
    "it has a task head, score.weight": {"head": {"score.weight": ONE}},
    "it trains tokens of wte": {"embeddings": {"wte": EmbeddingDelta(ids=torch.ones(1).long(), rows=ONE)}},
    "it scales the input of m": {"deltas": {"m": ModuleDelta(ONE, ONE, 1.0, input_scale=ONE[0])}},
    "it acts from its invocation tokens on only (aLoRA)": {"invocation": (1, 2)},
}


@pytest.mark.parametrize("reason", UNMIXABLE)
def test_what_replaces_can_not_be_mixed(reason: str) -> None:
    records: dict[str, Any] = {"deltas": {}, **UNMIXABLE[reason]}
    weights = AdapterWeights("x" * 64, **records)
    assert unmixable(weights) == reason
    with pytest.raises(InvalidAdapter) as caught:
        mix("mix", [(weights, 0.5)])
    assert str(caught.value) == f"adapter {'x' * 12} can't be scaled or mixed: {reason}"


def test_all_else_can(world: World) -> None:
    assert [unmixable(weights) for weights in world.weights.values()] == [""] * len(CONFIGS)


def test_a_mixture_is_found_while_it_is_held(world: World) -> None:
    def load(digest: str) -> AdapterWeights:
        if digest not in world.weights:
            raise AdapterNotFound(digest)
        return world.weights[digest]

    mixtures = Mixtures(load, 1 << 20)
    mixture = Mixture.of([("four", 0.5), ("two", 0.25)])
    assert mixtures.load("four") is world.weights["four"]
    mixtures.hold(mixture)
    mixtures.hold(Mixture.of([("two", 0.25), ("four", 0.5)]))
    mixtures.release(mixture)
    mixed = mixtures.load(mixture.digest)
    assert mixed.digest == mixture.digest
    assert mixed.deltas["lm_head"].scale == 0.5 * world.weights["four"].deltas["lm_head"].scale

    mixtures.release(mixture)
    with pytest.raises(AdapterNotFound):
        mixtures.load(mixture.digest)


def test_members_have_one_budget(world: World) -> None:
    one = world.weights["four"].nbytes
    mixture = Mixture.of([("four", 0.5), ("two", 0.5)])
    mixtures = Mixtures(world.weights.__getitem__, one)
    mixtures.hold(mixture)
    with pytest.raises(
        AdapterTooLarge, match=r"take more memory than .* mix fewer, or raise --adapter-memory-gb"
    ):
        mixtures.load(mixture.digest)
