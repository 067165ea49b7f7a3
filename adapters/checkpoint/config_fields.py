"""What this server does with every field of PEFT's configs: applied, without effect here, or refused.

A field in none of the tables is refused unless it is off, so that a new PEFT option is never ignored. Those
of tuners other than LoRA and AdaLoRA are beside their readers in `variants/`.
"""

from __future__ import annotations

COMMON_APPLIED = frozenset(
    {
        "peft_type",
        "task_type",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "bias",
    }
)

COMMON_NO_EFFECT = {
    "auto_mapping": "names the Python class of the base",
    "base_model_name_or_path": "paths differ between machines; the tensors are checked instead",
    "revision": "of the base, as above",
    "peft_version": "which PEFT saved the file",
    "inference_mode": "whether gradients are on",
}

APPLIED = COMMON_APPLIED | {
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "init_lora_weights",
    "use_dora",
    "lora_bias",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "target_parameters",
    "use_bdlora",
    "kasa_config",
}

NO_EFFECT = COMMON_NO_EFFECT | {
    "lora_dropout": "off outside training",
    "fan_in_fan_out": "how the base stores its weight; A and B have the same shapes either way",
    "runtime_config": "where PEFT computes",
    "eva_config": "used to initialise A and B only",
    "corda_config": "used to initialise only; init_lora_weights tells whether it changed the base",
    "lora_ga_config": "used to initialise only, as above",
    "loftq_config": "used to initialise only, as above",
    "megatron_core": "a Python module name; without effect unless megatron_config is set",
    "qalora_group_size": "without effect unless use_qalora is set",
    "velora_config": "how gradients are compressed while training",
    "monteclora_config": "noise on A while training, none outside",
}

REFUSED = {
    "layer_replication": "repeated layers change the shape of the base; train without layer_replication",
    "megatron_config": "Megatron layers are not supported; train without megatron_config",
    "use_qalora": "QALoRA adds to a GPTQ base's groups; train with use_qalora=false",
    "arrow_config": "Arrow routing is not supported; serve its experts as adapters of their own",
    "ensure_weight_tying": "tied adapters are not supported; train with ensure_weight_tying=false",
}

ADALORA_APPLIED = COMMON_APPLIED | {"init_r", "lora_alpha", "rank_pattern"}

ADALORA_NO_EFFECT = NO_EFFECT | {
    "r": "AdaLoRA has init_r",
    "target_r": "when ranks are pruned; rank_pattern tells which were",
    "tinit": "as above",
    "tfinal": "as above",
    "deltaT": "as above",
    "beta1": "as above",
    "beta2": "as above",
    "total_step": "as above",
    "orth_reg_weight": "part of the training loss",
    "init_lora_weights": "how A and B began",
}

ADALORA_REFUSED = {
    "use_rslora": "AdaLoRA has a scale of its own; train with use_rslora=false",
    "alpha_pattern": "AdaLoRA has one alpha; train without alpha_pattern",
} | {
    field: "not with AdaLoRA; train without it, or with LoRA"
    for field in (*sorted(APPLIED - COMMON_APPLIED), *REFUSED)
    if field not in ("r", "lora_alpha", "rank_pattern", "init_lora_weights", "use_rslora", "alpha_pattern")
}

# With these the saved A and B are the whole difference from the base.
ORDINARY_INITS = (True, False, "gaussian", "orthogonal", "eva", "mica")

# With these the base was changed while training, in a way that can be repeated from its weights alone.
FOLDED_INITS = ("pissa", "olora")

# The kinds of base that adapters of each task can be served on.
TASKS = {
    None: ("decoder", "encoder", "encoder-decoder"),
    "CAUSAL_LM": ("decoder",),
    "SEQ_2_SEQ_LM": ("encoder-decoder",),
    "SEQ_CLS": ("decoder", "encoder"),
    "TOKEN_CLS": ("decoder", "encoder"),
    "FEATURE_EXTRACTION": ("decoder", "encoder"),
}

HEAD_TASKS = ("SEQ_CLS", "TOKEN_CLS")
