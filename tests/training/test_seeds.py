"""What the seed texts say, by its number in docs/seeds.md: shown on tiny layers, with PEFT as the oracle."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.utils.error import NoMatchingPeftModuleError
from torch import Tensor, nn

from adapters.delta import ModuleDelta
from adapters.merge import merged_weight
from tests.tiny import make_model
from tests.training.plan.models import ROWS
from training.methods import save, wrap
from training.plan.facts import facts_of
from training.plan.presets import tutorial
from training.plan.trainable import count
from training.rates import rate
from training.run.batches import collate, token_loss
from training.run.optimizer import make_optimizer
from training.spec import LoraSpec, TrainSpec, spec_from_json
from training.targets import resolve_targets


class One(nn.Module):
    """One linear layer, to put LoRA on."""

    def __init__(self, inputs: int = 64, outputs: int = 64) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


def lora_on(inputs: int = 64, outputs: int = 64, *, drawn: bool = True, **config: Any) -> Any:
    """PEFT's layer on `One`; B is random unless `drawn` is off."""
    torch.manual_seed(0)
    options = {"r": 8, "lora_alpha": 16, "target_modules": ["layer"], **config}
    layer: Any = get_peft_model(One(inputs, outputs), LoraConfig(**options)).base_model.model.layer
    if drawn:
        nn.init.normal_(layer.lora_B["default"].weight)
    return layer.eval()


def factors(layer: Any) -> tuple[Tensor, Tensor]:
    """A, `(rank, inputs)`, and B, `(outputs, rank)`, as PEFT keeps them."""
    return layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()


def tiny(family: str = "llama") -> Any:
    model = make_model(family)
    model.untrained = []  # as load_base gives it
    return model


def trained_names(spec: TrainSpec, family: str = "llama") -> list[str]:
    wrapped = wrap(tiny(family), spec, [], 20)
    return [name for name, weight in wrapped.named_parameters() if weight.requires_grad]


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_seed_001_the_new_weight_is_w_plus_alpha_over_r_times_ab() -> None:
    layer = lora_on()
    a, b = (factor.T for factor in factors(layer))  # as the text has them: A (input, r), B (r, output)
    x = torch.randn(5, 64)
    close(x @ (layer.base_layer.weight.T + 16 / 8 * (a @ b)), layer(x))


def test_seed_002_the_same_with_columns_and_in_the_server() -> None:
    layer = lora_on()
    a, b = factors(layer)
    x = torch.randn(64)
    close(layer.base_layer.weight @ x + 16 / 8 * (b @ (a @ x)), layer(x))
    close(merged_weight(layer.base_layer.weight, ModuleDelta(a, b, 16 / 8)) @ x, layer(x))


@pytest.mark.parametrize("outputs", [128, 32])
def test_seed_003_layers_need_not_be_square(outputs: int) -> None:
    layer = lora_on(64, outputs)
    a, b = factors(layer)
    assert (a.shape, b.shape) == ((8, 64), (outputs, 8))
    delta = layer.get_delta_weight("default")
    assert torch.linalg.matrix_rank(delta) == 8
    close(merged_weight(torch.zeros(outputs, 64), ModuleDelta(a, b, 2.0)), delta)


def test_seed_004_the_factor_is_alpha_over_r_and_never_alpha() -> None:
    layer = lora_on(r=8, lora_alpha=16)
    a, b = factors(layer)
    x = torch.randn(3, 64)
    added = layer(x) - layer.base_layer(x)
    close(added, x @ (b @ a).T * 2)
    assert not torch.allclose(added, x @ (b @ a).T * 16)


def test_seed_005_a_larger_rank_fits_better_and_costs_more() -> None:
    wanted = torch.linalg.svd(torch.randn(64, 48, generator=torch.Generator().manual_seed(0)))
    base = facts_of(make_model("llama"), "llama")
    errors, sizes = [], []
    for rank in (1, 4, 16, 48):
        kept = wanted.U[:, :rank] * wanted.S[:rank] @ wanted.Vh[:rank]
        errors.append(float((wanted.U[:, :48] * wanted.S @ wanted.Vh[:48] - kept).norm()))
        sizes.append(count(base, LoraSpec(rank=rank)).trainable)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4
    assert sizes == [sizes[0] * rank for rank in (1, 4, 16, 48)]


def test_seed_006_twice_the_rank_at_one_alpha_is_half_the_scale() -> None:
    assert lora_on(r=16).scaling["default"] == lora_on(r=8).scaling["default"] / 2 == 1
    assert lora_on(r=16, use_rslora=True).scaling["default"] == 16 / math.sqrt(16)


def test_seed_007_two_r_d_instead_of_d_squared() -> None:
    layer = lora_on(4096, 4096, drawn=False)
    a, b = factors(layer)
    assert a.numel() + b.numel() == 2 * 8 * 4096 == 65_536
    assert layer.base_layer.weight.numel() == 16_777_216 == 256 * 65_536


def test_seed_008_a_begins_small_by_kaiming_and_b_at_zero() -> None:
    wrapped = wrap(tiny(), TrainSpec(LoraSpec(rank=8)), [], 10)
    layer: Any = wrapped.base_model.model.model.layers[0].mlp.down_proj
    a, b = factors(layer)
    assert not b.any()
    bound = 1 / math.sqrt(a.shape[1])  # kaiming_uniform with a = sqrt(5)
    assert 0.9 * bound < a.abs().max() <= bound


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "pissa", "olora"])
def test_seed_009_a_new_adapter_changes_nothing(method: Any) -> None:
    ids = torch.arange(3, 20)[None]
    before = tiny()(input_ids=ids).logits
    wrapped = wrap(tiny(), TrainSpec(LoraSpec(method=method, rank=4)), [], 10).eval()
    torch.testing.assert_close(wrapped(input_ids=ids).logits, before, rtol=1e-4, atol=1e-4)


def test_seed_012_only_a_and_b_train() -> None:
    model = tiny()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    wrapped = wrap(model, TrainSpec(), [], 10)
    names = [name for name, weight in wrapped.named_parameters() if weight.requires_grad]
    assert names
    assert all("lora_A" in name or "lora_B" in name for name in names)
    step(wrapped, TrainSpec(learning_rate=0.1))
    after = {
        name.replace(".base_layer", ""): weight
        for name, weight in wrapped.base_model.model.named_parameters()
    }
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def step(wrapped: Any, spec: TrainSpec, rows: int = 4) -> None:
    """One optimizer step on random tokens."""
    optimizer = make_optimizer(spec, wrapped.parameters())
    ids = torch.randint(3, 90, (rows, 12))
    loss, _ = token_loss(wrapped(input_ids=ids).logits, ids, "CAUSAL_LM", rows * 11)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def test_seed_014_enough_rank_holds_any_change() -> None:
    change = torch.randn(24, 16, generator=torch.Generator().manual_seed(1))
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    weight = torch.randn(24, 16)
    close(merged_weight(weight, ModuleDelta(v, u * s, 1.0)), weight + change)


@pytest.mark.parametrize("rank", [1, 4, 8, 64, 128])
def test_seed_017_any_rank_can_be_trained(rank: int) -> None:
    wrapped = wrap(tiny(), TrainSpec(LoraSpec(rank=rank, target_modules="default")), [], 10)
    assert wrapped.get_nb_trainable_parameters()[0] == rank * 3 * (48 + 48 + 48 + 24)


def test_seed_020_the_more_alpha_the_further_from_the_base() -> None:
    x = torch.randn(7, 64)
    moved = []
    for alpha in (1, 4, 16, 64):
        layer = lora_on(lora_alpha=alpha)
        moved.append(float((layer(x) - layer.base_layer(x)).norm().detach()))
    assert moved == sorted(moved)
    assert moved[3] == pytest.approx(64 * moved[0], rel=1e-3)


def test_seed_021_dropout_is_of_the_inputs_and_only_in_training() -> None:
    layer = lora_on(lora_dropout=0.5)
    x = torch.randn(200, 64)
    close(layer(x), layer(x))
    layer.train()
    torch.manual_seed(3)
    found = layer(x)
    torch.manual_seed(3)
    a, b = factors(layer)
    close(found, layer.base_layer(x) + 2 * nn.functional.dropout(x, 0.5) @ a.T @ b.T)


def test_seed_022_the_usual_modules_by_family() -> None:
    assert tutorial(facts_of(tiny("opt"), "opt"), ROWS, None)["target_modules"].value == "default"
    assert resolve_targets(tiny("opt"), "opt", "default") == ["q_proj", "v_proj"]
    assert resolve_targets(tiny("gpt2"), "gpt2", "default") == ["c_attn"]
    base = facts_of(tiny(), "llama")
    sizes = [
        count(base, LoraSpec(target_modules=names)).trainable
        for names in (("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj"), "all-linear")
    ]
    assert sizes == sorted(sizes)


def test_seed_023_layers_can_be_chosen() -> None:
    names = trained_names(TrainSpec(LoraSpec(layers=(1,), rank_pattern={"q_proj": 2})))
    assert names
    assert all(".layers.1." in name for name in names)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_seed_024_biases_train_as_asked(bias: Any) -> None:
    names = trained_names(TrainSpec(LoraSpec(bias=bias, target_modules="default")), "opt")
    biases = {
        name.removesuffix(".bias").rpartition(".")[0].rpartition(".")[2] for name in names if "bias" in name
    }
    assert biases == {"none": set(), "lora_only": {"q_proj", "v_proj"}}.get(bias, biases)
    assert ("final_layer_norm" in str(names)) is (bias == "all")


def test_seed_025_the_names_of_the_tasks() -> None:
    assert {task.value for task in TaskType} >= {"CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS"}
    with pytest.raises(ValueError, match="task"):
        spec_from_json({"task": "SEQ2SEQ_LM"})


def test_seed_027_what_is_saved_is_frozen(tmp_path: Path) -> None:
    spec = TrainSpec(LoraSpec(rank=2))
    wrapped = wrap(tiny(), spec, [], 10)
    save(wrapped, tmp_path, base_name="tiny", spec=spec)
    loaded = PeftModel.from_pretrained(make_model("llama"), tmp_path)
    assert loaded.peft_config["default"].inference_mode
    assert not any(weight.requires_grad for weight in loaded.parameters())
    # 51: the adapter alone is in the folder.
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 4 * 2 * loaded.num_parameters() // 4


def test_seed_028_trainable_parameters_are_those_that_peft_prints(capsys: pytest.CaptureFixture[str]) -> None:
    wrap(tiny(), TrainSpec(LoraSpec(rank=4)), [], 10).print_trainable_parameters()
    found = count(facts_of(tiny(), "llama"), LoraSpec(rank=4))
    printed = capsys.readouterr().out
    assert f"trainable params: {found.trainable:,} || all params: {found.total:,}" in printed
    assert f"trainable%: {100 * found.share:.4f}" in printed


def test_seed_029_the_rate_is_the_size_of_a_step() -> None:
    moved = []
    for learning_rate in (1e-4, 1e-3):
        torch.manual_seed(0)
        wrapped = wrap(tiny(), TrainSpec(LoraSpec(rank=2)), [], 10)
        before = torch.cat(
            [weight.detach().flatten() for weight in wrapped.parameters() if weight.requires_grad]
        )
        step(wrapped, TrainSpec(learning_rate=learning_rate))
        after = torch.cat(
            [weight.detach().flatten() for weight in wrapped.parameters() if weight.requires_grad]
        )
        moved.append(float((after - before).abs().max()))
    assert moved == pytest.approx([1e-4, 1e-3], rel=0.05)


def test_seed_030_optimizers_and_schedules() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    assert type(make_optimizer(TrainSpec(optimizer="sgd"), [weight])) is torch.optim.SGD
    assert type(make_optimizer(TrainSpec(), [weight])) is torch.optim.AdamW
    factor = rate("cosine", 100, 10)
    assert [factor(0) < 0.1, factor(10) > 0.97, round(factor(50), 2), round(factor(100), 2)] == [
        True,
        True,
        0.51,
        0.02,
    ]


def test_seed_033_four_passes_of_two_rows_are_one_of_eight() -> None:
    from training.data import Tokens

    torch.manual_seed(0)
    rows = [Tokens(ids, ids) for ids in torch.randint(3, 90, (8, 9)).tolist()]
    gradients = []
    for size in (8, 2):
        torch.manual_seed(1)
        wrapped = wrap(tiny(), TrainSpec(LoraSpec(rank=2)), [], 10)
        for start in range(0, 8, size):
            batch = collate(rows[start : start + size], 0)
            loss, _ = token_loss(
                wrapped(input_ids=batch["input_ids"]).logits, batch["labels"], "CAUSAL_LM", 64
            )
            loss.backward()  # type: ignore[no-untyped-call]
        gradients.append(torch.cat([w.grad.flatten() for w in wrapped.parameters() if w.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_seed_049_the_forward_pass_costs_the_same_and_the_backward_less() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    def operations(model: Any) -> tuple[int, int]:
        ids = torch.randint(3, 90, (2, 16), generator=torch.Generator().manual_seed(0))
        with FlopCounterMode(display=False) as forward:
            loss = model(input_ids=ids).logits.sum()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
        return forward.get_total_flops(), backward.get_total_flops()

    full = operations(make_model("llama").requires_grad_(True))
    lora = operations(wrap(tiny(), TrainSpec(LoraSpec(rank=2)), [], 10))
    assert full[0] < lora[0] < 1.4 * full[0]
    assert lora[1] < 0.75 * full[1]


def test_seed_062_the_example_for_gpt2_fails_in_peft_and_says_why_here() -> None:
    config = LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    with pytest.raises(NoMatchingPeftModuleError):
        get_peft_model(make_model("gpt2"), config)
    with pytest.raises(
        ValueError, match="target_modules q_proj, v_proj: not among the linear layers of gpt2"
    ):
        wrap(tiny("gpt2"), TrainSpec(LoraSpec(target_modules=("q_proj", "v_proj"))), [], 10)
