"""The facts that a plan is made from: a base's shape from its config alone, and its data's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.spec import Objective, TaskName

if TYPE_CHECKING:
    from training.data import Tokens

_UNCUT = 10**9


@dataclass(frozen=True, slots=True)
class Linear:
    """A layer that can get an adapter, or a stack of as many `experts` with one each.

    Attributes:
        scale: of its rank: two projections that are kept as one have twice the rank.
    """

    name: str
    inputs: int
    outputs: int
    experts: int = 1
    scale: int = 1


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """A base's shape.

    Attributes:
        sizes: number of values of each parameter, by name; tied ones once.
        linears: those of `nn.Linear` and `Conv1D`.
        head: name of the layer that makes logits; None: there is none.
        everywhere: full names of the layers that `all-linear` means.
        usual: names of the layers that are usual to adapt in this family; empty: nobody has said.
        stacks: of experts that are one parameter, where PEFT adapts them.
        classes: labels of a classifier.
        width: of all attention heads together; `key_width`: of the keys' heads.
        inner: width between the two halves of the feed-forward part, of all experts that a token takes.
        inner_saved: how many tensors of that width its activation keeps for the backward pass.
        taken: experts that a token takes; 1: there are no others.
        scores: how often attention keeps a weight for each pair of tokens; 0: it never makes them whole.
        active: parameters that one token is multiplied with.
    """

    name: str
    model_type: str
    hidden: int
    layers: int
    heads: int
    width: int
    key_width: int
    inner: int
    inner_saved: int
    vocabulary: int
    max_length: int | None
    sizes: Mapping[str, int]
    linears: tuple[Linear, ...]
    head: str | None = None
    everywhere: tuple[str, ...] = ()
    usual: tuple[str, ...] = ()
    stacks: tuple[Linear, ...] = ()
    classes: int = 0
    encoder_layers: int = 0
    taken: int = 1
    scores: int = 0
    active: int = 0

    @property
    def parameters(self) -> int:
        return sum(self.sizes.values())

    @property
    def in_linears(self) -> int:
        """Parameters of the linear layers but the head: what NF4 makes small."""
        return sum(
            self.sizes.get(f"{linear.name}.weight", 0) for linear in self.linears if linear.name != self.head
        )


@dataclass(frozen=True, slots=True)
class RowFacts:
    """A training file in numbers.

    Attributes:
        rows: that train.
        tokens: of all rows.
        longest: tokens of the longest row.
        trained: tokens that the loss counts.
        skipped: rows without a token that the loss counts.
        classes: labels of a file for classifiers.
    """

    rows: int
    tokens: int
    longest: int
    trained: int
    skipped: int = 0
    task: TaskName = "CAUSAL_LM"
    objective: Objective = "supervised"
    classes: int = 0

    @property
    def mean(self) -> float:
        """Tokens of a row."""
        return self.tokens / max(1, self.rows)


_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
}
_INNER = ("moe_intermediate_size", "intermediate_size", "ffn_dim", "d_ff", "n_inner")
_DROPOUTS = ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "dropout_rate")
# Tensors of the inner width that autograd keeps: the activation's input, and what a composite has between.
# A gate adds its output and the other half. Measured: tests/training/plan/test_memory.py.
_SAVED = {"relu": 1, "gelu": 1, "gelu_new": 5, "gelu_pytorch_tanh": 1, "silu": 1}


def sees_gpu() -> bool:
    """Whether a run would train on a GPU here, where nobody says otherwise."""
    import torch

    return torch.cuda.is_available()


def most_tokens(base: str | Path) -> int | None:
    """Tokens that a base reads at most, by its config; None: it says nothing of that.

    Raises:
        ValueError, OSError: there is no such config.
    """
    from transformers import AutoConfig

    return _longest(AutoConfig.from_pretrained(base))


def read_base(base: str | Path, task: TaskName = "CAUSAL_LM", classes: int = 2) -> BaseFacts:
    """The shape of a base, from its config: made on the meta device, where nothing has weights.

    Args:
        base: a folder, or a hub id.
        classes: labels of a classifier.

    Raises:
        ValueError: there is no such model, or it can't do the task.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise ValueError(f"{base}: there is no model: {str(error).splitlines()[0]}") from None
    if task in ("SEQ_CLS", "TOKEN_CLS"):
        config.num_labels = classes
    try:
        return facts_of(_on_meta(config, task), str(base), task)
    except ValueError as error:
        raise ValueError(f"{base} can't be trained for {task}: {str(error).splitlines()[0]}") from None


def _on_meta(config: Any, task: TaskName) -> Any:
    import torch
    import transformers

    with torch.device("meta"):
        return getattr(transformers, _CLASSES[task]).from_config(config, dtype=torch.float32)


def facts_of(model: Any, name: str, task: TaskName = "CAUSAL_LM") -> BaseFacts:
    """The shape of a transformers model, on whatever device."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    config = model.config.get_text_config()
    linears = [
        Linear(path, *_shape(module))
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]
    output = model.get_output_embeddings()
    heads = config.num_attention_heads
    head_dim = (
        getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or config.hidden_size // heads
    )
    inner = next((value for key in _INNER if (value := getattr(config, key, None))), 4 * config.hidden_size)
    experts = getattr(config, "num_experts_per_tok", None) or 1
    gated = any(part in linear.name for linear in linears for part in ("gate_proj", "gate_up_proj", "wi_0"))
    head = next((path for path, module in model.named_modules() if module is output), None)
    stacks, everywhere = _all_linear(model, [linear.name for linear in linears if linear.name != head])
    sizes = {path: tensor.numel() for path, tensor in model.named_parameters()}
    return BaseFacts(
        name=name,
        model_type=config.model_type,
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=heads,
        width=heads * head_dim,
        key_width=(getattr(config, "num_key_value_heads", None) or heads) * head_dim,
        inner=inner * experts,
        inner_saved=_inner_saved(config, gated or bool(stacks)),
        taken=experts,
        vocabulary=config.vocab_size if output is not None else 0,
        max_length=_longest(config),
        sizes=sizes,
        linears=tuple(linears),
        head=head,
        everywhere=tuple(everywhere),
        usual=_usual(model, config.model_type),
        stacks=stacks,
        classes=model.config.num_labels if task in ("SEQ_CLS", "TOKEN_CLS") else 0,
        encoder_layers=config.num_layers if model.config.is_encoder_decoder else 0,
        scores=_scores(config),
        active=_active(model, sizes, experts),
    )


def _usual(model: Any, model_type: str) -> tuple[str, ...]:
    from training.targets import resolve_targets

    try:
        return tuple(resolve_targets(model, model_type, "default"))
    except ValueError:
        return ()


def _shape(module: Any) -> tuple[int, int]:
    """Inputs and outputs; a Conv1D keeps its weight the other way round."""
    rows, columns = module.weight.shape
    return (columns, rows) if hasattr(module, "out_features") else (rows, columns)


def _inner_saved(config: Any, gated: bool) -> int:
    if config.model_type == "gpt_oss":
        return 5  # both halves bounded, their gate, and what it lets through
    return _SAVED.get(_activation(config), 2) + (2 if gated else 0)


def _activation(config: Any) -> str:
    for key in (
        "hidden_act",
        "hidden_activation",
        "activation_function",
        "dense_act_fn",
        "feed_forward_proj",
    ):
        value = getattr(config, key, None)
        if isinstance(value, str):
            return value
    return ""


def _scores(config: Any) -> int:
    """With capped scores: the cap and the softmax, twice; with dropout: before it and after it."""
    if getattr(config, "attn_logit_softcapping", None):
        return 3
    if config.model_type == "gpt_oss":
        return 1  # its sinks
    return 2 if any(getattr(config, key, 0.0) > 0 for key in _DROPOUTS) else 0


def _longest(config: Any) -> int | None:
    value = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(value) if value else None


def _active(model: Any, sizes: Mapping[str, int], experts: int) -> int:
    """Embeddings are looked up, and of a stack of experts a token takes a few."""
    table = model.get_input_embeddings().weight
    looked_up = 0 if model.get_output_embeddings() is not None and _tied(model) else table.numel()
    total = sum(sizes.values()) - looked_up
    for _, tensor in model.named_parameters():
        if tensor.dim() == 3 and tensor.shape[0] > experts:
            total -= tensor.numel() * (tensor.shape[0] - experts) // tensor.shape[0]
    return total


def _tied(model: Any) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def _all_linear(model: Any, linears: list[str]) -> tuple[tuple[Linear, ...], list[str]]:
    """What PEFT's `all-linear` means: stacks of experts that are one parameter each, and names of layers."""
    if not any(tensor.dim() == 3 for tensor in model.parameters()):
        return (), linears
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    asked = LoraConfig(r=1, target_modules="all-linear")
    convert_peft_config_for_transformers(asked, model, None)
    if not asked.target_parameters:
        return (), linears
    stacks = []
    for name, tensor in model.named_parameters():
        if not any(name.endswith(f".{target}") for target in asked.target_parameters):
            continue
        scale = asked.rank_pattern.get(rf".*\.{name.rpartition('.')[2]}", 1)
        experts = tensor.shape[0] if tensor.dim() == 3 else 1
        stacks.append(Linear(name, tensor.shape[-1], tensor.shape[-2], experts, scale))
    return tuple(stacks), [name for name in linears if name.rpartition(".")[2] in asked.target_modules]


def read_rows(path: Path, base: str | Path) -> RowFacts:
    """The numbers of a training file, with the base's tokenizer.

    Raises:
        DataError: the file has bad lines.
        ValueError: no row has a token that the loss counts; the base has no tokenizer.
    """
    from transformers import AutoConfig, AutoTokenizer

    from training.data import (
        LabelledText,
        LabelledTokens,
        Preference,
        encode,
        encode_pairs,
        label_names,
        read_jsonl,
    )

    examples = read_jsonl(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(base)
        reads_first = AutoConfig.from_pretrained(base).is_encoder_decoder
    except (OSError, ValueError) as error:
        raise ValueError(f"{base}: no model with a tokenizer: {str(error).splitlines()[0]}") from None
    if isinstance(examples[0], Preference):
        pairs = encode_pairs(examples, tokenizer, _UNCUT)
        both = [row for pair in pairs.rows for row in (pair.chosen, pair.rejected)]
        return _numbers(both, len(pairs.skipped), path, rows=len(pairs.rows), objective="dpo")
    task: TaskName = "SEQ_2_SEQ_LM" if reads_first else "CAUSAL_LM"
    if isinstance(examples[0], LabelledText | LabelledTokens):
        task = "SEQ_CLS" if isinstance(examples[0], LabelledText) else "TOKEN_CLS"
    labels = label_names(examples)
    encoded = encode(examples, tokenizer, task, _UNCUT, labels)
    return _numbers(encoded.rows, len(encoded.skipped), path, task=task, classes=len(labels))


def _numbers(
    found: Sequence[Tokens],
    skipped: int,
    path: Path,
    *,
    rows: int | None = None,
    task: TaskName = "CAUSAL_LM",
    objective: Objective = "supervised",
    classes: int = 0,
) -> RowFacts:
    if not found:
        raise ValueError(f"{path.name}: no row has a token to learn")
    # An encoder and a decoder read one each; the others read what they learn as one row.
    lengths = [len(row.ids) + (len(row.labels) if task == "SEQ_2_SEQ_LM" else 0) for row in found]
    return RowFacts(
        rows=len(found) if rows is None else rows,
        tokens=sum(lengths),
        longest=max(lengths),
        trained=sum(row.trained for row in found),
        skipped=skipped,
        task=task,
        objective=objective,
        classes=classes,
    )
