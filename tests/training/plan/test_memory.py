"""The full estimate beside what real steps take, by torch's own accounting of its allocator."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny import FAMILIES
from training.data import IGNORE, Tokens
from training.methods import wrap
from training.plan.facts import facts_of
from training.plan.memory import GIB, NF4_BYTES, Memory, estimate, weight_bytes
from training.run.batches import collate, token_loss
from training.run.exact import precision_of
from training.run.optimizer import make_optimizer
from training.spec import LoraSpec, TrainSpec

TOKENS = 96
SHAPE = {"hidden_size": 96, "intermediate_size": 224, "num_hidden_layers": 3, "vocab_size": 800}
BEFORE_THE_STEP = {"weights", "adapter", "optimizer"}


def model_of(family: str, precision: str) -> Any:
    kind, fields = FAMILIES[family]
    names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer"} if family == "gpt2" else {}
    shape = {names.get(name, name): value for name, value in SHAPE.items()}
    fields = {name: value for name, value in fields.items() if name != "layer_types"}  # as many as layers
    config = AutoConfig.for_model(kind, **{**fields, **shape})
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, precision))
    model.untrained = []  # as load_base gives it
    return model


def peak_of_a_step(model: Any, spec: TrainSpec, counted: float) -> int:
    """Most bytes that one optimizer step has allocated at a time, beyond what there was before."""
    torch.manual_seed(0)
    trained = wrap(model, spec, [], 100).train()
    optimizer = make_optimizer(spec, trained.parameters())
    masked = round(TOKENS * (1 - counted))
    ids = torch.randint(3, SHAPE["vocab_size"], (spec.batch_size, TOKENS)).tolist()
    rows = [Tokens(row, [IGNORE] * masked + row[masked:]) for row in ids]
    batch = collate([Tokens(rows[0].ids[:-4], rows[0].labels[:-4]), *rows[1:]], 0)

    def step() -> None:
        with precision_of(spec, torch.device("cpu")):
            logits = trained(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            loss, _ = token_loss(logits, batch["labels"], "CAUSAL_LM", 10)
            del logits
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    step()  # makes the optimizer's states
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        step()
    now = most = 0
    profiler: Any = watched.profiler
    for event in profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def of_a_step(memory: Memory) -> int:
    return sum(part.size for part in memory.parts if part.name not in BEFORE_THE_STEP)


PLAIN = TrainSpec(batch_size=4)


@pytest.mark.parametrize(
    ("family", "spec", "counted"),
    [
        ("llama", PLAIN, 1.0),
        ("llama", PLAIN, 0.25),
        ("llama", TrainSpec(LoraSpec(target_modules="default", dropout=0.05), batch_size=4), 1.0),
        ("llama", TrainSpec(LoraSpec(rank=64), batch_size=2), 1.0),
        ("llama", TrainSpec(LoraSpec(method="dora"), batch_size=4), 1.0),
        ("llama", TrainSpec(batch_size=4, precision="bfloat16"), 1.0),
        ("llama", TrainSpec(batch_size=8, gradient_checkpointing=True), 1.0),
        ("qwen3", PLAIN, 1.0),
        ("gpt2", PLAIN, 1.0),
        ("gpt_neox", PLAIN, 1.0),
        ("gemma2", PLAIN, 1.0),
        ("mixtral", PLAIN, 1.0),
        ("gpt_oss", PLAIN, 1.0),
    ],
)
def test_the_full_estimate_is_within_a_fifth_of_a_real_step(
    family: str, spec: TrainSpec, counted: float
) -> None:
    model = model_of(family, spec.precision)
    wanted = of_a_step(estimate(facts_of(model, family), spec, TOKENS, counted=counted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers on checkpointing, of torch on its profiler
        measured = peak_of_a_step(model, spec, counted)
    assert wanted == pytest.approx(measured, rel=0.2)


def test_what_is_there_before_a_step_is_exact() -> None:
    model = model_of("llama", "bfloat16")
    spec = TrainSpec(LoraSpec(rank=4), batch_size=2, precision="bfloat16")
    parts = {part.name: part.size for part in estimate(facts_of(model, "llama"), spec, TOKENS).parts}
    trained = wrap(model, spec, [], 100).train()
    optimizer = make_optimizer(spec, trained.parameters())
    trained(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()
    optimizer.step()
    weights = [weight for weight in trained.parameters() if not weight.requires_grad]
    adapter = [weight for weight in trained.parameters() if weight.requires_grad]
    moments = [optimizer.state[weight][name] for weight in adapter for name in ("exp_avg", "exp_avg_sq")]
    assert parts["weights"] == sum(weight.nbytes for weight in weights)
    assert parts["adapter"] == sum(weight.nbytes for weight in adapter)
    assert parts["gradients"] == sum(weight.grad.nbytes for weight in adapter if weight.grad is not None)
    assert parts["optimizer"] == sum(moment.nbytes for moment in moments)


def test_sgd_keeps_nothing_and_cuda_has_a_context() -> None:
    base = facts_of(model_of("llama", "float32"), "llama")
    parts = {part.name: part.size for part in estimate(base, TrainSpec(optimizer="sgd"), 8, cuda=True).parts}
    assert parts["optimizer"] == 0
    assert parts["workspace"] == GIB // 2


def test_nf4_makes_the_linear_layers_small() -> None:
    base = facts_of(model_of("llama", "float32"), "llama")
    spec = TrainSpec(LoraSpec(method="qlora"), precision="bfloat16")
    rest = base.parameters - base.in_linears
    assert weight_bytes(base, spec) == round(base.in_linears * NF4_BYTES) + 2 * rest
    assert rest == 2 * 800 * 96 + 7 * 96  # both tables, and the norms
