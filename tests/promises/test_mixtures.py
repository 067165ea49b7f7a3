"""Laws 2 to 5 for mixtures: any number of them in one batch, each what PEFT makes of its members."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer

from adapters.mixture import Mixture, Mixtures
from adapters.registry.registry import Registry
from adapters.weights import base_weights
from tests.adapters.records import trained
from tests.kit import LIMITS, Families, Family, ask, engine_core, preload, prompts, run_all
from tests.tiny import greedy

PROMPTS = prompts(5, 17, 30)
CONFIGS: dict[str, dict[str, Any]] = {
    "dora": {"r": 4, "use_dora": True, "target_modules": ["q_proj", "up_proj"]},
    "four": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "lm_head"]},
    "two": {"r": 2, "use_rslora": True, "target_modules": ["q_proj", "down_proj", "embed_tokens"]},
    "bias": {"r": 3, "lora_bias": True, "target_modules": ["q_proj", "o_proj"]},
}
MIXTURES: dict[str, dict[str, float]] = {
    "pair": {"four": 0.7, "two": 0.5},
    "other scales": {"four": 0.5, "two": 0.7},
    "less": {"four": -1.0},
    "with bias": {"bias": 1.5, "four": 0.25},
    "all": {"dora": 1.0, "four": 0.7, "two": -0.5, "bias": 0.5},
}


class World:
    """Published members, and what PEFT answers for each mixture, adapter and the base."""

    def __init__(self, family: Family, folder: Path, registry: Registry) -> None:
        self.family, self.registry = family, registry
        self.mixtures = Mixtures(registry.load, 1 << 30)
        self.folder = folder
        self.digests: dict[str | None, str | None] = {None: None}
        for seed, (name, config) in enumerate(CONFIGS.items(), 1):
            lora = LoraConfig(task_type="CAUSAL_LM", **config)
            trained(family.stock, folder / name, lora, seed, save_embedding_layers=False)
            self.digests[name] = registry.publish_folder(name, folder / name)[0].digest
        for name in MIXTURES:
            self.mixtures.hold(self.mixture(name))
            self.digests[name] = self.mixture(name).digest

    def mixture(self, name: str) -> Mixture:
        return Mixture.of([(self.digests[member] or "", scale) for member, scale in MIXTURES[name].items()])

    def oracle(self, name: str | None) -> Any:
        if name is None:
            return self.family.stock
        members = MIXTURES.get(name, {name: 1.0})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first, *others = members
            stock = copy.deepcopy(self.family.stock)
            peft: Any = PeftModel.from_pretrained(stock, str(self.folder / first), adapter_name=first)
            for other in others:
                peft.load_adapter(str(self.folder / other), adapter_name=other)
            peft.base_model.set_adapter(list(members))
        for module in peft.modules():
            if isinstance(module, LoraLayer):
                for member, scale in members.items():
                    module.set_scale(member, scale)
        return peft.eval()


@pytest.fixture(scope="module")
def world(families: Families) -> Iterator[World]:
    family = families("llama")
    weights = base_weights(family.model.model, family.model.linears)
    with (
        tempfile.TemporaryDirectory() as folder,
        Registry(Path(folder) / "data", family.model.spec, LIMITS, torch.float32, weights) as registry,
    ):
        yield World(family, Path(folder), registry)


@pytest.mark.parametrize("form", ["native", "plain"])
def test_mixtures_beside_one_another(form: str, world: World) -> None:
    """Greedy tokens and log-probabilities, alone and in one batch with plain adapters and the base."""
    model = world.family.model if form == "native" else world.family.plain
    requests = [
        ask(f"{name}/{index}", prompt, digest, logprobs=0)
        for index, prompt in enumerate(PROMPTS)
        for name, digest in world.digests.items()
    ]
    with engine_core(world.family, load=world.mixtures.load, model=model, kv_blocks=400) as core:
        preload(core, *(digest for digest in world.digests.values() if digest))
        mixed = run_all(core, requests)
        core.check()
        alone = [run_all(core, [request])[request.request_id] for request in requests[:9]]
    for request, answer in zip(requests, alone, strict=False):
        assert answer.tokens == mixed[request.request_id].tokens
    for name in world.digests:
        oracle = world.oracle(name)
        for index, prompt in enumerate(PROMPTS):
            answer = mixed[f"{name}/{index}"]
            assert answer.tokens == greedy(oracle, prompt, 8)
            with torch.inference_mode():
                logits = oracle(input_ids=torch.tensor([prompt + answer.tokens])).logits[0]
            scores = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)[range(8), answer.tokens]
            found = torch.tensor([score.logprob for score in answer.logprobs])
            torch.testing.assert_close(found, scores, rtol=1e-5, atol=1e-5)


def test_kv_is_not_shared_between_mixtures(world: World) -> None:
    with engine_core(world.family, load=world.mixtures.load) as core:
        for name in ("pair", "other scales", "pair", "four"):
            answer = run_all(core, [ask("x", PROMPTS[2], world.digests[name])])["x"]
            assert answer.tokens == greedy(world.oracle(name), PROMPTS[2], 8)
        assert run_all(core, [ask("x", PROMPTS[2], world.digests["pair"])])["x"].cached > 0


def test_they_count_in_the_budget_and_are_evicted_as_others(world: World) -> None:
    sizes = [
        world.family.place(world.mixtures.load(digest)).nbytes for digest in world.digests.values() if digest
    ]
    with engine_core(world.family, load=world.mixtures.load, budget=max(sizes)) as core:
        for name in MIXTURES:
            answer = run_all(core, [ask("x", PROMPTS[0], world.digests[name])])["x"]
            assert answer.tokens == greedy(world.oracle(name), PROMPTS[0], 8)
            assert core.residency.device.bytes <= max(sizes)
        assert core.residency.device.evictions >= 1


def test_a_mixture_leaves_memory_with_its_member(world: World) -> None:
    """After the last hold, which is the request's."""
    registry = world.registry
    config = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["o_proj"])
    trained(world.family.stock, world.folder / "extra", config, 9)
    member = registry.publish_folder("extra", world.folder / "extra")[0]
    mixture = Mixture.of([(member.digest, 0.5), (world.digests["two"] or "", 1.0)])
    with engine_core(world.family, load=world.mixtures.load) as core:
        registry.on_unused = core.forget
        registry.hold(member.digest)
        world.mixtures.hold(mixture)
        preload(core, mixture.digest, member.digest, world.digests["two"] or "")

        registry.delete("extra")
        assert run_all(core, [ask("x", PROMPTS[0], mixture.digest)])["x"].error is None
        assert core.residency.state(mixture.digest) == "device"
        world.mixtures.release(mixture)
        registry.release(member.digest)
        assert core.residency.state(mixture.digest) == "disk"
        assert core.residency.state(member.digest) == "disk"
        assert core.residency.state(world.digests["two"] or "") == "device"
