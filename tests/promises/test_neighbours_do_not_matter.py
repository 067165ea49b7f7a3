"""Law 3 beyond parity: what runs beside a row, or ran before it, cannot change it, however wild it is."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.batch import forms
from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.checkpoint.reader import read_adapter
from adapters.delta import AdapterWeights
from adapters.limits import AdapterLimits
from tests.kit import Families, Family, ask, engine_core, prompts, run_all

PROMPTS = prompts(5, 14, 23, 31)


def _wild(family: Family, folder: Path) -> AdapterWeights:
    """An adapter of finite weights whose products overflow."""
    source = family.adapter("all")
    tensors = {key: tensor.sign() * 1e37 for key, tensor in load_file(source / WEIGHTS_FILE).items()}
    save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})
    config = (source / CONFIG_FILE).read_bytes()
    return read_adapter(config, folder / WEIGHTS_FILE, family.model.spec, AdapterLimits(), digest="wild")


@pytest.mark.parametrize("form", ["native", "concatenated", "by segment"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_an_adapter_that_overflows_harms_only_itself(
    name: str, form: str, families: Families, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither in the same step, nor through the KV blocks that it leaves behind."""
    monkeypatch.setattr(forms, "SEGMENT_SECONDS", 0.0 if form == "by segment" else math.inf)
    family = families(name)
    model = family.model if form == "native" else family.plain
    wild = _wild(family, tmp_path)

    def load(digest: str) -> AdapterWeights:
        return wild if digest == "wild" else family.weights(digest)

    with engine_core(family, load=load, model=model, kv_blocks=30, prefill=12) as core:
        requests = [ask("wild0", PROMPTS[2], "wild", max_tokens=12, logprobs=1)]
        requests += [
            ask(f"{adapter}-{index}", prompt, adapter)
            for index, prompt in enumerate(PROMPTS)
            for adapter in (None, "all", "mlp")
        ]
        requests += [ask("wild1", PROMPTS[0], "wild", max_tokens=12)]
        answers = run_all(core, requests)
        assert not torch.isfinite(torch.tensor([score.logprob for score in answers["wild0"].logprobs])).all()
        for request in requests:
            if request.adapter != "wild":
                expected = family.expected(request.adapter, request.prompt, 8)
                assert answers[request.request_id].tokens == expected


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text"])
def test_logprobs_do_not_move_with_the_company(name: str, families: Families) -> None:
    """Token for token is the law; the numbers themselves stay within float32 rounding too."""
    family = families(name)
    chance = random.Random(0)
    target = ask("x", PROMPTS[1], "all", logprobs=0)
    with engine_core(family, prefix_cache=False) as core:
        alone = run_all(core, [target])["x"].logprobs
        for round_ in range(4):
            others = [
                ask(f"{round_}-{i}", chance.choice(PROMPTS), chance.choice([None, *family.adapters]))
                for i in range(chance.randrange(1, 9))
            ]
            mixed = run_all(core, [*others, target])["x"].logprobs
            for one, other in zip(alone, mixed, strict=True):
                assert one.token_id == other.token_id
                assert abs(one.logprob - other.logprob) < 5e-5
