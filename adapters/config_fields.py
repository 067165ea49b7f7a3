"""What this server does with every field of PEFT's `LoraConfig`: applied, without effect here, or refused.

A field in none of the tables is refused unless it is off, so that a new PEFT option is never ignored.
"""

from __future__ import annotations

APPLIED = frozenset(
    {
        "peft_type",
        "task_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "init_lora_weights",
    }
)

NO_EFFECT = {
    "auto_mapping": "names the Python class of the base",
    "base_model_name_or_path": "paths differ between machines; the tensors are checked instead",
    "revision": "of the base, as above",
    "peft_version": "which PEFT saved the file",
    "inference_mode": "whether gradients are on",
    "lora_dropout": "off outside training",
    "fan_in_fan_out": "how the base stores its weight; A and B have the same shapes either way",
    "runtime_config": "where PEFT computes",
    "eva_config": "used to initialise A and B only",
    "corda_config": "used to initialise only; init_lora_weights tells whether it changed the base",
    "lora_ga_config": "used to initialise only, as above",
    "loftq_config": "used to initialise only, as above",
    "megatron_core": "a Python module name; without effect unless megatron_config is set",
    "qalora_group_size": "without effect unless use_qalora is set",
}

REFUSED = {
    "use_dora": "DoRA is not supported yet; train with use_dora=false",
    "lora_bias": "a bias on lora_B is not supported yet; train with lora_bias=false",
    "bias": 'trained biases are not supported yet; train with bias="none"',
    "modules_to_save": "fully trained modules are not supported yet; train without modules_to_save",
    "trainable_token_indices": "trained tokens are not supported yet; train without trainable_token_indices",
    "layer_replication": "repeated layers change the shape of the base; train without layer_replication",
    "alora_invocation_tokens": "activated LoRA is not supported yet; train without alora_invocation_tokens",
    "target_parameters": "LoRA on bare parameters is not supported yet; train on linear modules",
    "megatron_config": "Megatron layers are not supported; train without megatron_config",
    "use_qalora": "QALoRA is not supported yet; train with use_qalora=false",
    "use_bdlora": "BD-LoRA is not supported yet; train without use_bdlora",
    "arrow_config": "Arrow routing is not supported yet; serve its experts as adapters of their own",
    "kasa_config": "KaSA is not supported yet; train without kasa_config",
    "velora_config": "VeLoRA is not supported yet; train without velora_config",
    "monteclora_config": "MonteCLoRA is not supported yet; train without monteclora_config",
    "ensure_weight_tying": "tied adapters are not supported yet; train with ensure_weight_tying=false",
}

# With these the saved A and B are the whole difference from the base.
ORDINARY_INITS = (True, False, "gaussian", "orthogonal", "eva", "mica")

TASK_TYPES = (None, "CAUSAL_LM")


def is_off(field: str, value: object) -> bool:
    """Whether a refused or unknown field has a value that asks for nothing."""
    return value is None or value is False or value in ([], {}, "") or (field == "bias" and value == "none")
