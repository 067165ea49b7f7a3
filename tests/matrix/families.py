"""The columns of the matrix: each family with the modules that adapters of it target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.matrix.bases import Base, Decoder, Encoder, EncoderDecoder


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        base, kind: the tiny base by its name where tests make it, and which class serves it.
        targets: linear layers, the last one of a feed-forward block where that has any.
        tables, head, norms: what else adapters may change, by the end of its name.
        experts: parameters of all experts. `biases`: whether the targets have any.
    """

    title: str
    base: str
    kind: type[Base]
    targets: tuple[str, ...]
    tables: tuple[str, ...] = ("embed_tokens",)
    head: str = "lm_head"
    norms: tuple[str, ...] = ("norm", "input_layernorm")
    experts: tuple[str, ...] = ()
    biases: bool = False

    @property
    def task(self) -> str:
        return self.kind.task

    def make(self, folder: Path) -> Base:
        return self.kind(self.base, folder)


_DENSE = ("q_proj", "v_proj", "down_proj")
_ATTENTION = ("q_proj", "v_proj", "o_proj")
_GPT2 = (("wte",), "lm_head", ("ln_1", "ln_f"))
_EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
_T5 = (("encoder.embed_tokens", "decoder.embed_tokens"), "lm_head", ("layer_norm", "final_layer_norm"))
_ENCODER = (("word_embeddings",), "classifier", ("LayerNorm",))

FAMILIES: dict[str, Family] = {
    family.base: family
    for family in (
        Family("Llama", "llama", Decoder, _DENSE),
        Family("Qwen2", "qwen2", Decoder, _DENSE, biases=True),
        Family("Qwen3", "qwen3", Decoder, _DENSE),
        Family("Qwen3-MoE", "qwen3_moe", Decoder, _ATTENTION, experts=_EXPERTS),
        Family(
            "DeepSeek V3",
            "deepseek_v3",
            Decoder,
            ("q_b_proj", "kv_a_proj_with_mqa", "o_proj"),
            experts=_EXPERTS,
        ),
        Family("Mistral", "mistral", Decoder, _DENSE),
        Family("Mixtral", "mixtral", Decoder, _ATTENTION, experts=_EXPERTS),
        Family("gpt-oss", "gpt_oss", Decoder, _ATTENTION, experts=_EXPERTS, biases=True),
        Family("Gemma 2", "gemma2", Decoder, _DENSE),
        Family("Gemma 3", "gemma3_text", Decoder, _DENSE),
        Family("Phi-3", "phi3", Decoder, ("qkv_proj", "o_proj", "down_proj")),
        Family("GPT-2", "gpt2", Decoder, ("c_attn", "mlp.c_proj"), *_GPT2, biases=True),
        Family("GPT-Neo", "gpt_neo", Decoder, ("q_proj", "out_proj", "c_proj"), *_GPT2, biases=True),
        Family(
            "GPT-NeoX",
            "gpt_neox",
            Decoder,
            ("query_key_value", "dense_4h_to_h"),
            ("embed_in",),
            "embed_out",
            ("input_layernorm", "final_layer_norm"),
            biases=True,
        ),
        Family(
            "OPT",
            "opt",
            Decoder,
            ("q_proj", "v_proj", "fc2"),
            norms=("self_attn_layer_norm", "model.decoder.final_layer_norm"),
            biases=True,
        ),
        Family("T5", "t5", EncoderDecoder, ("q", "v", "wo"), *_T5),
        Family("Flan-T5", "flan", EncoderDecoder, ("q", "v", "wo"), *_T5),
        Family("RoBERTa", "roberta", Encoder, ("query", "value", "output.dense"), *_ENCODER, biases=True),
        Family(
            "DeBERTa", "deberta", Encoder, ("in_proj", "pos_proj", "output.dense"), *_ENCODER, biases=True
        ),
        Family(
            "DeBERTa v2",
            "deberta-v2",
            Encoder,
            ("query_proj", "pos_key_proj", "output.dense"),
            *_ENCODER,
            biases=True,
        ),
        Family(
            "DeBERTa v3",
            "deberta-v3",
            Encoder,
            ("query_proj", "key_proj", "output.dense"),
            ("word_embeddings",),
            "classifier",
            ("output.LayerNorm",),  # that of the encoder itself is of positions
            biases=True,
        ),
    )
}
