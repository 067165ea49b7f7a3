"""`multilora combine`: arguments in, a folder, exit code and one line out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapters.base import BaseSpec, LinearSpec
from adapters.errors import AdapterNotFound
from adapters.limits import AdapterLimits
from adapters.registry.registry import Registry
from server.cli.combine import parse_input
from server.cli.main import main
from training.base import ADAPTERS_DIR


def test_shipped_adapters_by_name_and_by_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["combine", str(out), "shout:0.5", f"{ADAPTERS_DIR / 'backwards'}:-0.25", "--method", "cat"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"

    deltas = []
    for folder in (out, ADAPTERS_DIR / "shout", ADAPTERS_DIR / "backwards"):
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        name = next(name for name in sorted(tensors) if "lora_A" in name)
        product = tensors[name.replace("lora_A", "lora_B")].float() @ tensors[name].float()
        deltas.append(product * config["lora_alpha"] / config["r"])
    torch.testing.assert_close(deltas[0], 0.5 * deltas[1] - 0.25 * deltas[2])


def test_published_adapters(tmp_path: Path) -> None:
    folder = ADAPTERS_DIR / "shout"
    tensors = load_file(folder / "adapter_model.safetensors")
    linears = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): (
            tensors[name].shape[1],
            tensors[name.replace("lora_A", "lora_B")].shape[0],
        )
        for name in tensors
        if "lora_A" in name
    }
    base = BaseSpec("b", "0" * 64, {name: LinearSpec(name, *sizes) for name, sizes in linears.items()})
    with Registry(tmp_path, base, AdapterLimits()) as registry:
        digest = registry.publish_folder("mine", folder)[0].digest

        for ref in ("mine", "mine@1"):
            assert parse_input(f"{ref}:2", tmp_path) == (tmp_path / "adapters" / digest, 2.0)
        with pytest.raises(
            AdapterNotFound, match="mine@2: no such folder, and no shipped adapter, nor published"
        ):
            parse_input("mine@2", tmp_path)


def test_colons_of_paths_and_weights(tmp_path: Path) -> None:
    folder = tmp_path / "a:b"
    folder.mkdir()
    assert parse_input(str(folder)) == (folder, 1.0)
    assert parse_input(f"{folder}:0.5") == (folder, 0.5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nobody"], "multilora: nobody: no such folder, and no shipped adapter\n"),
        (["shout", "--method", "ties"], "multilora: --method ties needs --density\n"),
        (
            ["shout:nan"],
            f"multilora: {ADAPTERS_DIR / 'shout'}: its weight must be a finite number, not nan\n",
        ),
    ],
)
def test_failures_are_one_line_and_exit_code_1(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["combine", str(tmp_path / "out"), *arguments]) == 1
    assert capsys.readouterr().err == says


def test_an_output_and_one_adapter_are_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["combine", "out"])
    assert caught.value.code == 2
    assert "ADAPTER" in capsys.readouterr().err
