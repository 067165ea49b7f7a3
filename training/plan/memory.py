"""What a training step holds in memory: the texts' rule, and a full estimate part by part.

The formulas count what PyTorch's autograd keeps of a transformers decoder with PEFT's layers, found with
`torch.autograd.graph.saved_tensors_hooks` and confirmed in tests/training/plan/test_memory.py. The idea of
counting activations layer by layer is that of Korthikanti et al. 2022 (arXiv 2205.05198), whose figure is for
full training; with a frozen base no input of a frozen layer is kept, but those of adapted ones are.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from training.plan.facts import BaseFacts
from training.plan.trainable import adapted, count, rank_of
from training.spec import TrainSpec

GIB = 1024**3
_BYTES = {"float32": 4, "bfloat16": 2}
NF4_BYTES = 0.5 + 4 / 64
"""Of a weight: 4 bits, and one float32 for each block of 64 (Dettmers et al. 2023, arXiv 2305.14314)."""
USABLE = 0.9
"""Share of a card that a run may take: the estimate is within a fifth, and memory comes in pieces."""
CUDA_CONTEXT = GIB // 2
"""Assumed: the driver's context, cuBLAS's workspace and loaded kernels."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the estimate, in bytes, and what it was computed from."""

    name: str
    size: int
    formula: str


@dataclass(frozen=True, slots=True)
class Memory:
    """Both estimates of one device's memory.

    Attributes:
        rule: the texts' (1+4m)x: weights x, adapter mx, gradients mx, two moments 2mx.
        full_training: their 4x, of a run that trains everything.
    """

    rule: int
    full_training: int
    parts: tuple[Part, ...]

    @property
    def full(self) -> int:
        return sum(part.size for part in self.parts)


def weight_bytes(base: BaseFacts, spec: TrainSpec) -> int:
    """Of the frozen base: embeddings, norms and the head stay in the run's precision with NF4."""
    element = _BYTES[spec.precision]
    if spec.lora.method != "qlora":
        return base.parameters * element
    return round(base.in_linears * NF4_BYTES) + (base.parameters - base.in_linears) * element


def estimate(
    base: BaseFacts, spec: TrainSpec, tokens: int, *, cuda: bool = False, counted: float = 1.0
) -> Memory:
    """For batches of `spec.batch_size` rows of `tokens` tokens each, of which the loss counts a share."""
    trained = count(base, spec.lora, spec.task)
    weights = weight_bytes(base, spec)
    share = trained.trainable / base.parameters
    unquantised = base.parameters * _BYTES[spec.precision]
    parts = (
        Part("weights", weights, _weights_said(spec)),
        Part("adapter", 4 * trained.trainable, "4 bytes x trainable (float32)"),
        Part("gradients", 4 * trained.trainable, "4 bytes x trainable"),
        _optimizer(spec, trained.trainable),
        *_of_tokens(base, spec, tokens, counted),
        *_experts(base, spec),
        _workspace(base, spec, cuda),
    )
    return Memory(round(weights * (1 + 4 * share)), 4 * unquantised, parts)


def _weights_said(spec: TrainSpec) -> str:
    element = _BYTES[spec.precision]
    if spec.lora.method != "qlora":
        return f"{element} bytes x parameters ({spec.precision})"
    return f"{NF4_BYTES} bytes x linear layers (NF4) + {element} bytes x the rest"


def _optimizer(spec: TrainSpec, trainable: int) -> Part:
    if spec.optimizer == "adamw":
        return Part("optimizer", 8 * trainable, "2 moments x 4 bytes x trainable (AdamW)")
    return Part("optimizer", 0, "SGD keeps nothing")


def _of_tokens(base: BaseFacts, spec: TrainSpec, tokens: int, counted: float) -> tuple[Part, ...]:
    """What grows with the batch: activations, and the logits with their gradients."""
    rows = spec.batch_size * (2 if spec.objective == "dpo" else 1)  # a chosen and a rejected answer
    total = rows * tokens
    element = _BYTES[spec.precision]
    layers = base.layers + base.encoder_layers
    per_token = saved_per_token(base, spec, tokens)
    logits = round(total * base.vocabulary * _logit_bytes(element, counted))
    passing = total * (2 * base.hidden + 2 * base.inner) * element
    again = "2 x (hidden + inner) of one layer"
    if spec.gradient_checkpointing:
        kept = total * layers * base.hidden * element
        formula = f"tokens x the inputs of {layers} layers, {base.hidden} x {element} bytes each"
        passing += total * per_token // layers
        again += ", and all that it keeps"
    else:
        kept = total * per_token
        formula = f"tokens x {per_token:,} bytes that autograd keeps in {layers} layers"
    return (
        Part("activations", kept, f"{total:,} {formula}"),
        Part(
            "logits",
            logits,
            f"tokens x vocabulary {base.vocabulary:,} x {_logit_bytes(element, counted):.1f} bytes",
        ),
        # The logits are gone when the first layer's gradients come.
        Part("backward", max(0, passing - logits), f"tokens x {again}, beyond what the logits had"),
    )


def _logit_bytes(element: int, counted: float) -> float:
    """Of one logit at the worst moment: training/run/batches.py takes the counted ones out, to float32.

    Forward: all of them, those taken, their softmax. Backward, of those taken: softmax, the loss's gradient,
    the softmax's. Then: that, and the gradient of all, on its way through the choice and a slice.
    """
    copied = 4 if element < 4 else 0
    return max(element + counted * (element + copied + 4), 12 * counted, 2 * element + 4 * counted)


def saved_per_token(base: BaseFacts, spec: TrainSpec, tokens: int) -> int:
    """Bytes that autograd keeps for one token in all layers, without the logits."""
    element = _BYTES[spec.precision]
    layers = base.layers + base.encoder_layers
    # Both norms' inputs (in float32); queries, keys, values and result of attention, its log-sums and mask;
    # what the activation function keeps.
    attention = (4 * base.width + tokens) * element + 4 * base.heads
    attention += base.scores * base.heads * tokens * element
    if base.encoder_layers:
        attention = 2 * attention  # half of the layers attend twice, and relative positions are kept
    layer = 8 * base.hidden + attention + base.inner_saved * base.inner * element
    if base.taken > 1:  # each expert's inputs are gathered
        layer += base.taken * base.hidden * element
    return layers * layer + _adapters_per_token(base, spec)


def _adapters_per_token(base: BaseFacts, spec: TrainSpec) -> int:
    """Inputs of A and of B. Layers on one input share it, unless each casts (autocast) or drops it out."""
    element = _BYTES[spec.precision]
    found = [layer for layer in adapted(base, spec.lora, spec.task) if layer not in base.stacks]
    ranks = sum(rank_of(layer, spec.lora) for layer in found) * element
    dropped = spec.lora.dropout > 0
    if spec.precision != "float32" or dropped:
        inputs = sum(layer.inputs * element * (2 if dropped else 1) for layer in found)
    else:
        shared: dict[tuple[str, int], int] = defaultdict(int)
        for layer in found:
            shared[layer.name.rpartition(".")[0], layer.inputs] = layer.inputs
        inputs = sum(shared.values()) * element
    if spec.lora.method == "dora":
        inputs += sum(2 * layer.outputs for layer in found) * element  # both terms of m * (Wx + BAx)
    return inputs + ranks


def _experts(base: BaseFacts, spec: TrainSpec) -> tuple[Part, ...]:
    """PEFT adapts a stack by making its changed weights whole: each layer's are kept, and two more of one."""
    found = adapted(base, spec.lora, spec.task)
    sizes = [base.sizes[layer.name] * _BYTES[spec.precision] for layer in base.stacks if layer in found]
    if not sizes:
        return ()
    return (
        Part("experts", sum(sizes) + 2 * max(sizes), "changed weights of each stack, and two more of one"),
    )


def _workspace(base: BaseFacts, spec: TrainSpec, cuda: bool) -> Part:
    largest = max(
        (layer.inputs * layer.outputs for layer in base.linears if layer.name != base.head), default=0
    )
    unpacked = largest * _BYTES[spec.precision] if spec.lora.method == "qlora" else 0
    said = "the largest layer as it is unpacked from NF4" if unpacked else "nothing"
    if cuda:
        return Part("workspace", unpacked + CUDA_CONTEXT, f"{said}; 0.5 GiB for CUDA's context (assumed)")
    return Part("workspace", unpacked, said)


def parse_memory(text: str) -> int:
    """Bytes of `24GB`, `24GiB` or `24`: makers of cards mean GiB by both.

    Raises:
        ValueError: it is none of these.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:GB|GiB|G)?\s*", text, re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise ValueError(f"a GPU's memory is given as 24GB, not as {text!r}")
    return round(float(found[1]) * GIB)
