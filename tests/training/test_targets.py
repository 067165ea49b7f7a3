"""Target modules: the defaults are PEFT's, they exist in each family, and what does not fit is told."""

from __future__ import annotations

import pytest
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFTS

from tests.tiny import FAMILIES, make_model
from training.targets import _DEFAULTS, resolve_targets


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_has_defaults_that_it_has_modules_for(family: str) -> None:
    model = make_model(family)
    targets = resolve_targets(model, model.config.model_type, "default")
    assert targets
    assert isinstance(targets, list)
    assert resolve_targets(model, model.config.model_type, targets) == targets


def test_the_defaults_are_those_of_peft_where_it_knows_the_type() -> None:
    ours = {kind: list(names) for kinds, names in _DEFAULTS.items() for kind in kinds}
    both = ours.keys() & PEFTS.keys()
    assert {"llama", "gpt2", "gpt_neox", "t5", "roberta", "deberta", "deberta-v2", "mixtral"} <= both
    assert {kind: ours[kind] for kind in both} == {kind: PEFTS[kind] for kind in both}


def test_deepseek_has_other_projections_with_and_without_compressed_queries() -> None:
    targets = resolve_targets(make_model("deepseek_v3"), "deepseek_v3", "default")
    assert targets == ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"]


def test_what_fits_nothing_is_told_with_the_real_names() -> None:
    gpt2 = make_model("gpt2")
    known = "the linear layers of gpt2: c_attn, c_fc, c_proj, lm_head"
    with pytest.raises(ValueError, match=f"target_modules q_proj, v_proj: not among {known}"):
        resolve_targets(gpt2, "gpt2", ("q_proj", "c_attn", "v_proj"))
    with pytest.raises(ValueError, match=rf"target_modules '\.\*q_proj' matches none of {known}"):
        resolve_targets(gpt2, "gpt2", ".*q_proj")
    with pytest.raises(
        ValueError, match="no default target_modules for mine: say all-linear, or name some of"
    ):
        resolve_targets(gpt2, "mine", "default")
    with pytest.raises(ValueError, match="is no regular expression"):
        resolve_targets(gpt2, "gpt2", "(")


def test_names_patterns_and_all_linear_go_through() -> None:
    llama = make_model("llama")
    assert resolve_targets(llama, "llama", ("self_attn.q_proj", "up_proj")) == ["self_attn.q_proj", "up_proj"]
    assert resolve_targets(llama, "llama", r".*layers\.1\..*_proj") == r".*layers\.1\..*_proj"
    assert resolve_targets(llama, "llama", "all-linear") == "all-linear"
