"""The rows of the matrix: each a PEFT config for any family, or the reason why there can be none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
from peft import AdaLoraConfig, EvaConfig, LoraConfig, PeftConfig
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig

from tests.matrix.families import Family

Make = Callable[[Family], "PeftConfig | str"]
INVOCATION = (17, 23)
"""Tokens that the prompt of the matrix holds."""


def _lora(**options: Any) -> Make:
    return lambda family: LoraConfig(
        **{"r": 4, "lora_alpha": 7, "target_modules": [*family.targets], "task_type": family.task} | options
    )


def _tuner(kind: type[PeftConfig], **options: Any) -> Make:
    return lambda family: kind(**{"target_modules": [*family.targets], "task_type": family.task} | options)


def _patterns(family: Family) -> PeftConfig:
    first, last = family.targets[0], family.targets[-1]
    made: PeftConfig | str = _lora(rank_pattern={first: 6}, alpha_pattern={last: 2})(family)
    assert isinstance(made, PeftConfig)
    return made


def _blocks(family: Family) -> PeftConfig | str:
    first, last = family.targets[0], family.targets[-1]
    blocks = BdLoraConfig(
        target_modules_bd_a=[last], target_modules_bd_b=[first], nblocks=2, match_strict=False
    )
    return _lora(use_bdlora=blocks)(family)


def _alora(family: Family) -> PeftConfig | str:
    if family.task != "CAUSAL_LM":
        return "PEFT has it for CAUSAL_LM only"
    # PEFT fails on layers that a model calls with all rows in one dimension.
    return _lora(target_modules=[family.targets[0]], alora_invocation_tokens=[*INVOCATION])(family)


def _tokens(family: Family) -> PeftConfig | str:
    tokens: Any = [9, 23, 40]
    if family.task == "SEQ_2_SEQ_LM":
        # With the same tokens for both PEFT takes them for one, and saves neither.
        tokens = {"encoder.embed_tokens": tokens, "decoder.embed_tokens": [0, 7]}
    return _lora(trainable_token_indices=tokens)(family)


def _experts(family: Family) -> PeftConfig | str:
    if not family.experts:
        return "no experts"
    return _lora(target_modules=[], target_parameters=[*family.experts])(family)


def _biases(which: str) -> Make:
    return lambda family: _lora(bias=which)(family) if family.biases else "the base has no biases"


def _ia3(family: Family) -> PeftConfig | str:
    return _tuner(peft.IA3Config, feedforward_modules=[family.targets[-1]])(family)


def _adalora(family: Family) -> PeftConfig | str:
    return _tuner(AdaLoraConfig, init_r=5, target_r=3, total_step=10, lora_alpha=6)(family)


VARIANTS: dict[str, Make] = {
    "LoRA": _lora(),
    "rsLoRA": _lora(use_rslora=True),
    "rank_pattern, alpha_pattern": _patterns,
    "layers_to_transform": _lora(layers_to_transform=[1]),
    "lora_bias": _lora(lora_bias=True),
    "gaussian": _lora(init_lora_weights="gaussian"),
    "orthogonal": _lora(init_lora_weights="orthogonal"),
    "EVA": _lora(init_lora_weights="eva", eva_config=EvaConfig()),
    "MiCA": _lora(init_lora_weights="mica"),
    "VeLoRA": _lora(velora_config=VeloraConfig()),
    "MonteCLoRA": _lora(monteclora_config=MontecloraConfig()),
    "DoRA": _lora(use_dora=True),
    "PiSSA": _lora(init_lora_weights="pissa"),
    "PiSSA, converted": _lora(init_lora_weights="pissa"),
    "OLoRA": _lora(init_lora_weights="olora"),
    "OLoRA, converted": _lora(init_lora_weights="olora"),
    "KaSA": _lora(kasa_config=KasaConfig()),
    "BD-LoRA": _blocks,
    "AdaLoRA": _adalora,
    "aLoRA": _alora,
    "bias all": _biases("all"),
    "bias lora_only": _biases("lora_only"),
    "embedding": lambda family: _lora(target_modules=[*family.targets, *family.tables])(family),
    "trainable_token_indices": _tokens,
    "modules_to_save: head": lambda family: _lora(modules_to_save=[family.head])(family),
    "modules_to_save: norms": lambda family: _lora(modules_to_save=[*family.norms])(family),
    "modules_to_save: embedding": lambda family: _lora(modules_to_save=[*family.tables])(family),
    "target_parameters": _experts,
    "BEFT": _tuner(peft.BeftConfig),
    "DEFT": _tuner(peft.DeftConfig, r=3, alpha=5),
    "DeLoRA": _tuner(peft.DeloraConfig, r=4, delora_lambda=3),
    "GraLoRA": _tuner(peft.GraloraConfig, r=4, gralora_k=2, hybrid_r=2, alpha=5),
    "HRA": _tuner(peft.HRAConfig, r=3),
    "IA3": _ia3,
    "LoHa": _tuner(peft.LoHaConfig, r=3, alpha=5),
    "LoKr": _tuner(peft.LoKrConfig, r=2, decompose_both=True),
    "MiSS": _tuner(peft.MissConfig, r=4),
    "PVeRA": _tuner(peft.PveraConfig, r=4),
    "TinyLoRA": _tuner(peft.TinyLoraConfig, r=3, u=5),
    "Uni-LoRA": _tuner(peft.UniLoraConfig, r=3, theta_d_length=300, proj_seed=7),
    "VB-LoRA": _tuner(peft.VBLoRAConfig, r=3, num_vectors=20, vector_length=4),
    "VeRA": _tuner(peft.VeraConfig, r=6),
}
CONVERTED = frozenset({"PiSSA, converted", "OLoRA, converted"})
"""Saved with `path_initial_model_for_weight_conversion`."""
