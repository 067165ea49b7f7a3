"""How long a run would take: the operations of a token, over a rate that is measured, given or assumed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from training.plan.facts import BaseFacts
from training.plan.trainable import count
from training.spec import TrainSpec, require

Source = Literal["measured", "given", "assumed"]
CORE_RATE = 10e9
# What cards of so many GiB reach in bfloat16 while they train, about 40% of what their makers promise for
# usual ones of that size: assumed, not measured here.
_CARD_RATES = ((12, 12e12), (16, 25e12), (24, 40e12), (48, 70e12), (80, 200e12), (10**6, 350e12))
_MEASURED_STEPS = 3


@dataclass(frozen=True, slots=True)
class Duration:
    """Time of the training steps, without loading, evaluation and saving.

    Attributes:
        source: where the rate comes from; `said` tells it in words.
    """

    seconds: float
    tokens_per_second: float
    source: Source
    said: str


def operations_per_token(base: BaseFacts, spec: TrainSpec, tokens: float) -> float:
    """Floating point operations of one trained token in rows of so many.

    A multiplication with N weights costs 2N forward and 2N back to its inputs, and 2N more for the weights'
    own gradients, which a frozen base has not (Kaplan et al. 2020, arXiv 2001.08361, has 6N for full
    training). Checkpointing computes the forward pass twice. Attention to the tokens before adds 6 x width x
    tokens in each layer.
    """
    trained = count(base, spec.lora, spec.task).trainable
    forwards = 4 if spec.gradient_checkpointing else 2
    attention = 6 * (base.layers + base.encoder_layers) * base.width * tokens
    return (forwards + 2) * base.active + 6 * trained + attention


def duration(
    base: BaseFacts,
    spec: TrainSpec,
    tokens: float,
    mean: float,
    *,
    cuda: bool,
    gpu_bytes: int | None = None,
    devices: int = 1,
    rate: float | None = None,
    measured: bool = False,
) -> Duration:
    """Of a run over `tokens` tokens in rows of `mean`; `rate`: tokens a second of a device, if known."""
    source: Source = "assumed"
    if rate is not None:
        source = "measured" if measured else "given"
        said = f"{rate:,.0f} tokens/s, {'measured in steps on this machine' if measured else 'as given'}"
    elif cuda:
        card = (gpu_bytes or 24 * 1024**3) / 1024**3
        operations = next(value for size, value in _CARD_RATES if card <= size)
        rate = operations / operations_per_token(base, spec, mean)
        said = f"assumed {operations / 1e12:.0f} TFLOP/s, usual for a card of {card:.0f} GiB"
    else:
        cores = os.cpu_count() or 1
        rate = cores * CORE_RATE / operations_per_token(base, spec, mean)
        said = f"assumed {CORE_RATE / 1e9:.0f} GFLOP/s for each of {cores} cores"
    return Duration(tokens / (rate * devices), rate, source, said)


def measure(base: str | Path, spec: TrainSpec, tokens: int) -> float:
    """Tokens a second of real steps on this machine, with random weights of the base's shape.

    Random weights take as long as trained ones, and need no file. The first step, which allocates, does not
    count.

    Raises:
        ValueError: it is no plain run of a causal model.
    """
    plain = spec.task == "CAUSAL_LM" and spec.objective == "supervised" and spec.lora.method != "qlora"
    require(
        plain,
        "steps can be timed for causal models without NF4 only: give tokens/s of an earlier run instead",
    )
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    from training.targets import resolve_targets

    device = "cuda" if spec.device != "cpu" and torch.cuda.is_available() else "cpu"
    config = transformers.AutoConfig.from_pretrained(base)
    with torch.random.fork_rng(), torch.device(device):
        model: Any = transformers.AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, spec.precision)
        )
        targets = resolve_targets(model, config.model_type, spec.lora.target_modules)
        wanted = LoraConfig(
            task_type="CAUSAL_LM",
            r=spec.lora.rank,
            target_modules=targets,
            use_dora=spec.lora.method == "dora",
        )
        peft = get_peft_model(model, wanted).train()
        rows = torch.randint(config.vocab_size, (spec.batch_size, tokens))
    weights = [weight for weight in peft.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-9)
    started = 0.0
    for step in range(_MEASURED_STEPS + 1):
        if step == 1:
            started = _now(device)
        peft(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return _MEASURED_STEPS * rows.numel() / (_now(device) - started)


def _now(device: str) -> float:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()
