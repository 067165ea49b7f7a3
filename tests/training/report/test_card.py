"""The model card: every field filled, its front matter read by the hub's library, its commands run."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from adapters.registry.names import check_new_name
from server.cli.main import build_parser
from tests.training.report.synthetic import evaluated, healthy, run
from training.base import ADAPTERS_DIR, BASE_NAME
from training.events import Evaluated, Sample
from training.report.card import CARD_FILE, write_card
from training.report.curves import Curves
from training.report.origin import Origin
from training.spec import LoraSpec, TrainSpec

SHA = "0f" * 32


def card_of(folder: Path, origin: Origin, curves: Curves) -> str:
    folder.mkdir(exist_ok=True)
    write_card(folder, origin, curves)
    return (folder / CARD_FILE).read_text()


def test_every_field_is_filled(tmp_path: Path) -> None:
    (tmp_path / "shout" / "run").mkdir(parents=True)
    (tmp_path / "shout" / "run" / "curve.png").write_bytes(b"png")
    spec = TrainSpec(LoraSpec(rank=4, target_modules=("q_proj", "v_proj")), patience=3)
    origin = Origin(spec, BASE_NAME, (("train.jsonl", SHA),), parent="tone@3")
    text = card_of(tmp_path / "shout", origin, Curves(run(healthy, healthy, finished="early_stopped")))
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", text, re.MULTILINE))
    assert rows["trained parameters"] == "1,000 of 100,000 (1.00%)"
    assert rows["rows to train on"] == "400"
    assert rows["train.jsonl"] == f"`{SHA}`"
    assert (rows["rank"], rows["target_modules"], rows["patience"]) == ("4", "q_proj, v_proj", "3")
    assert rows["exact_match"] == f"{Curves(run(healthy, healthy)).evaluated[-1].score:.4f}"
    assert "(run/curve.png)" in text
    assert "answer: RIVER!" in text
    assert "ended early" in text
    assert "`tone@3`" in text
    for gap in ("None", "[More Information Needed]", "{", "}", "nan", "| |\n| |"):
        assert gap not in text


@pytest.mark.parametrize(
    ("task", "pipeline"), [("CAUSAL_LM", "text-generation"), ("SEQ_CLS", "text-classification")]
)
def test_the_front_matter_is_peft_s(tmp_path: Path, task: str, pipeline: str) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(["no", "yes"]))
    base = "acme/base: of many"
    card_of(tmp_path, Origin(TrainSpec(task=task), base), Curves(run(healthy, steps=3)))  # type: ignore[arg-type]
    data = ModelCard.load(tmp_path / CARD_FILE).data
    assert (data.base_model, data.library_name, data.pipeline_tag) == (base, "peft", pipeline)
    assert {"lora", f"base_model:adapter:{base}"} <= set(data.tags or [])


def test_no_validation_rows_and_no_files_are_said(tmp_path: Path) -> None:
    text = card_of(tmp_path, Origin(TrainSpec(), "base"), Curves(run(healthy, steps=3)))
    assert "no validation rows" in text
    assert "from memory" in text
    assert "curve.png" not in text


def test_samples_can_t_break_out_and_long_ones_are_cut(tmp_path: Path) -> None:
    samples = (Sample("a ```` b\n# head", "x" * 5000, "|"),)
    found = Evaluated(3, 1.0, 0.5, "exact_match", 0.0, samples)
    events = [*run(healthy, steps=3), found]
    text = card_of(tmp_path, Origin(TrainSpec(), "base", (("a|b\n.jsonl", SHA),)), Curves(events))
    assert "`````text\nprompt: a ```` b\n# head\n" in text
    assert "x" * 1001 not in text
    assert "| a\\|b .jsonl |" in text


def test_its_python_loads_the_adapter_and_its_command_is_one(tmp_path: Path) -> None:
    prompt = (Sample("do: river\n", "RIVER!!!", "RIVER!!!"),)
    events = [*run(healthy, steps=3), Evaluated(3, 0.1, 1.0, "exact_match", 1.0, prompt)]
    text = card_of(tmp_path / "shout", Origin(TrainSpec(), BASE_NAME), Curves(events))
    python = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert python is not None
    code = python[1].replace('"path/to/shout"', repr(str(ADAPTERS_DIR / "shout")))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "card", "exec"), {})
    assert said.getvalue() == "do: river\nRIVER!!!\n"
    command = re.search(r"```bash\nmultilora (.*)\n```", text)
    assert command is not None
    build_parser().parse_args(shlex.split(command[1]))


@pytest.mark.parametrize(
    ("folder", "name"), [("My Run (2)", "my-run-2"), ("ß", "my-adapter"), ("a" * 90, "a" * 63)]
)
def test_any_folder_has_a_name_to_publish(tmp_path: Path, folder: str, name: str) -> None:
    text = card_of(tmp_path / folder, Origin(TrainSpec(), BASE_NAME), Curves(run(healthy, steps=3)))
    command = re.search(r"```bash\nmultilora (.*)\n```", text)
    assert command is not None
    assert shlex.split(command[1]) == ["push", name, f"path/to/{folder}"]
    check_new_name(name, "base")


def test_what_was_left_open_is_said_in_words(tmp_path: Path) -> None:
    text = card_of(tmp_path, Origin(TrainSpec(), "base"), Curves(run(healthy, steps=3)))
    for row in ("| steps | by epochs |", "| patience | none: no early end |", "| layers | all |"):
        assert row in text
    assert "beta" not in text
    assert "| beta | 0.1 |" in card_of(
        tmp_path, Origin(TrainSpec(objective="dpo"), "base"), Curves(run(healthy, steps=3))
    )


def test_a_quantised_base_is_loaded_as_it_was(tmp_path: Path) -> None:
    spec = TrainSpec(LoraSpec(method="qlora"), precision="bfloat16")
    text = card_of(tmp_path, Origin(spec, "acme/base"), Curves([*run(healthy, steps=3), evaluated(3, 1.0)]))
    assert 'bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16' in text
    assert "kept in NF4" in text
    assert "base = 'acme/base'" in text
