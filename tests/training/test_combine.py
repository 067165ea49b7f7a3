"""Combined adapters against PEFT's `add_weighted_adapter`, tensor by tensor."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, PeftModel, get_peft_model
from peft.tuners.lora.model import LoraModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.errors import AdapterError
from tests.tiny import make_adapter, make_model
from training.combine import METHODS, SIGNS, CombineError, How, combine

ATTENTION = ["q_proj", "v_proj"]
SEED = 11
Adapters = Callable[..., Path]


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("llama")


@pytest.fixture(scope="module")
def adapters(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    """Makes an adapter of a config, once."""
    root = tmp_path_factory.mktemp("adapters")

    def made(name: str, **config: Any) -> Path:
        if not (root / name).exists():
            make_adapter(model, root / name, sum(name.encode()), **config)
        return root / name

    return made


def oracle(
    model: Any,
    inputs: Sequence[tuple[Path, float]],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    density: float | None = None,
    rank: int | None = None,
    sign: Any = "total",
) -> dict[str, Tensor]:
    """The tensors that PEFT's model has for the combination, by name as it saves them."""
    seeded: list[bool] = []

    def seed_first(function: Any) -> Any:
        def call(*given: Any, **options: Any) -> Any:
            if not seeded:  # after PEFT has drawn the values that it overwrites
                torch.manual_seed(SEED)
                seeded.append(True)
            return function(*given, **options)

        return call

    for name in (
        "_generalized_task_arithmetic_weighted_adapter",
        "_svd_generalized_task_arithmetic_weighted_adapter",
    ):
        monkeypatch.setattr(LoraModel, name, seed_first(getattr(LoraModel, name)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft: Any = PeftModel.from_pretrained(copy.deepcopy(model), str(inputs[0][0]), adapter_name="0")
        for index, (folder, _) in enumerate(inputs[1:], 1):
            peft.load_adapter(str(folder), adapter_name=str(index))
        names, weights = [str(index) for index in range(len(inputs))], [weight for _, weight in inputs]
        peft.add_weighted_adapter(
            names,
            weights,
            "mix",
            combination_type=method,
            svd_rank=rank,
            density=density,
            majority_sign_method=sign,
        )
    return {
        name.replace(".mix", ""): tensor.detach()
        for name, tensor in peft.named_parameters()
        if ".mix" in name and "lora_" in name
    }


def products(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`B A` of each module: unlike A and B it does not depend on the signs that a decomposition chooses."""
    return {
        name: tensors[name.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B")] @ tensor
        for name, tensor in tensors.items()
        if "lora_A" in name or "lora_embedding_A" in name
    }


SIGNED = [(method, sign) for method in METHODS for sign in SIGNS if "ties" in method or sign == SIGNS[0]]


@pytest.mark.parametrize(("method", "sign"), SIGNED)
def test_every_method_gives_pefts_tensors(
    method: str, sign: str, model: Any, adapters: Adapters, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # One kind of module, so that both draw by chance in the same order.
    first = adapters("a", r=4, lora_alpha=8, target_modules=["q_proj"])
    second = adapters("b", r=4, lora_alpha=2, target_modules=["q_proj"], use_rslora=True)
    third = adapters("c", r=4, target_modules=["q_proj"])
    inputs = [(first, 0.7), (second, -0.5), (third, 1.3)]
    density = None if method in ("linear", "cat", "svd") else 0.6
    rank = 5 if method.endswith("svd") else None
    expected = oracle(model, inputs, monkeypatch, method, density, rank, sign)

    combine(inputs, tmp_path / "out", How(method, density, rank, SEED, sign))

    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    if method.endswith("svd"):
        found, expected = products(found), products(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_ranks_and_modules_may_differ(
    method: str, model: Any, adapters: Adapters, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = adapters("attention", r=3, target_modules=ATTENTION, rank_pattern={"q_proj": 5})
    second = adapters("tables", r=2, target_modules=["v_proj", "up_proj", "embed_tokens"])
    inputs = [(first, 0.5), (second, 2.0)]
    expected = oracle(model, inputs, monkeypatch, method)

    combine(inputs, tmp_path / "out", How(method))

    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in products(expected).items():
        torch.testing.assert_close(products(found)[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "limits", [{}, {"layers_to_transform": [1]}, {"exclude_modules": ["q_proj", "c_proj"]}]
)
def test_peft_loads_the_folder_with_scale_1(family: str, limits: dict[str, Any], tmp_path: Path) -> None:
    """`cat` is the exact sum, also where the configs choose modules by other means than their names."""
    model = make_model(family)
    targets = [["c_attn"], ["c_attn", "c_fc"]] if family == "gpt2" else [ATTENTION, ["v_proj", "up_proj"]]
    folders = [
        make_adapter(model, tmp_path / "a", 1, target_modules=targets[0], use_rslora=True, **limits),
        make_adapter(model, tmp_path / "b", 2, target_modules=targets[1], r=3),
    ]
    combine([(folders[0], 0.25), (folders[1], -1.5)], tmp_path / "out", How("cat"))

    def changes(folder: Path) -> dict[str, Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft: Any = PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).merge_and_unload()
        base = dict(model.named_parameters())
        return {name: tensor - base[name] for name, tensor in peft.named_parameters()}

    first, second, mixed = changes(folders[0]), changes(folders[1]), changes(tmp_path / "out")
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, 0.25 * first[name] - 1.5 * second[name], rtol=1e-4, atol=1e-5)


def test_chance_is_the_seeds(adapters: Adapters, tmp_path: Path) -> None:
    inputs = [
        (adapters("a", target_modules=["q_proj"]), 1.0),
        (adapters("c", target_modules=["q_proj"]), 1.0),
    ]
    before = torch.get_rng_state()
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        combine(inputs, tmp_path / name, How("dare_linear", 0.5, seed=seed))
    one, again, two = (
        (tmp_path / n / "adapter_model.safetensors").read_bytes() for n in ("one", "again", "two")
    )

    assert one == again
    assert one != two
    assert torch.equal(before, torch.get_rng_state())


def test_one_adapter_is_weighted_and_a_density_of_1_prunes_nothing(
    adapters: Adapters, tmp_path: Path
) -> None:
    folder = adapters("a", r=4, lora_alpha=8, target_modules=["q_proj"])
    combine([(folder, 0.5)], tmp_path / "one", How("svd", rank=9))
    combine([(folder, 0.5), (folder, 0.0)], tmp_path / "all", How("magnitude_prune", 1.0))

    source = products(load_file(folder / "adapter_model.safetensors"))
    for out in ("one", "all"):
        found = products(load_file(tmp_path / out / "adapter_model.safetensors"))
        for name, product in source.items():
            torch.testing.assert_close(found[name], product, rtol=1e-5, atol=1e-6)  # 0.5 of a scale of 2
    assert json.loads((tmp_path / "one" / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "mean"}, "--method mean: no such method; there are linear, ties"),
        ({"method": "ties"}, "--method ties needs --density"),
        ({"method": "svd", "density": 0.5}, "--method svd takes no --density"),
        ({"method": "ties", "density": 0.0}, "--density 0.0: must be over 0, to 1"),
        ({"method": "ties", "density": float("nan")}, "--density nan: must be over 0, to 1"),
        ({"method": "cat", "rank": 4}, "--rank 4: must be at least 1, and only svd and ..._svd take one"),
        ({"method": "svd", "rank": 0}, "--rank 0: must be at least 1"),
        ({"sign": "most"}, "--majority-sign most: must be total or frequency"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], says: str) -> None:
    with pytest.raises(CombineError) as caught:
        How(**options)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"use_dora": True}, "only A and B can be combined, and this adapter has use_dora"),
        ({"lora_bias": True}, "only A and B can be combined, and this adapter has lora_bias"),
        ({"bias": "all"}, "only A and B can be combined, and this adapter has bias"),
        (
            {"modules_to_save": ["lm_head"]},
            "only A and B can be combined, and this adapter has modules_to_save",
        ),
        ({"r": 7}, "--method linear needs adapters of one rank, not [4, 7]; use cat, svd or ..._svd"),
        (
            {"rank_pattern": {"q_proj": 2}},
            "--method linear needs one rank in model.layers.0.self_attn.q_proj",
        ),
    ],
)
def test_adapters_that_can_not_be_combined(
    config: dict[str, Any], says: str, model: Any, adapters: Adapters, tmp_path: Path
) -> None:
    other = make_adapter(model, tmp_path / "other", 3, **{"target_modules": ATTENTION, **config})
    with pytest.raises(CombineError) as caught:
        combine([(adapters("plain", target_modules=ATTENTION), 1.0), (other, 1.0)], tmp_path / "out", How())
    assert says in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_other_tuners_and_other_bases(model: Any, adapters: Adapters, tmp_path: Path) -> None:
    plain = adapters("plain", target_modules=ATTENTION)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loha = LoHaConfig(target_modules=ATTENTION, task_type="CAUSAL_LM")
        get_peft_model(copy.deepcopy(model), loha).save_pretrained(str(tmp_path / "loha"))
    with pytest.raises(CombineError, match="only LoRA can be combined, not LOHA"):
        combine([(tmp_path / "loha", 1.0)], tmp_path / "out", How())

    wide = tmp_path / "wide"
    wide.mkdir()
    (wide / "adapter_config.json").write_bytes((plain / "adapter_config.json").read_bytes())
    tensors = load_file(plain / "adapter_model.safetensors")
    save_file(
        {n: t.repeat(1, 2) if "lora_A" in n else t for n, t in tensors.items()},
        wide / "adapter_model.safetensors",
    )
    with pytest.raises(
        CombineError, match=r"trained on other bases: model.layers.0.self_attn.q_proj has sizes"
    ):
        combine([(plain, 1.0), (wide, 1.0)], tmp_path / "out", How())


def test_a_naive_pissa_is_refused(model: Any, tmp_path: Path) -> None:
    folder = make_adapter(model, tmp_path / "pissa", 1, target_modules=ATTENTION, init_lora_weights="pissa")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": "pissa"}))
    with pytest.raises(
        CombineError, match="init_lora_weights='pissa' changed the base while training; convert it"
    ):
        combine([(folder, 1.0)], tmp_path / "out", How())


def test_files_and_weights(adapters: Adapters, tmp_path: Path) -> None:
    plain = adapters("plain", target_modules=ATTENTION)
    with pytest.raises(AdapterError, match="holds no adapter_config"):
        combine([(tmp_path, 1.0)], tmp_path / "out", How())
    with pytest.raises(CombineError, match="its weight must be a finite number, not inf"):
        combine([(plain, float("inf"))], tmp_path / "out", How())
    with pytest.raises(FileExistsError, match="is not empty"):
        combine([(plain, 1.0)], plain, How())
