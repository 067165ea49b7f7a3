"""The recipe: a shortened run is deterministic, learns, and gives a model that transformers loads."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.base import MODEL_DIR
from training.base.card import UNKNOWN_TAG, measure_skills, read_scores
from training.base.recipe import BaseResult, Recipe, base_config, draw_row, save_base, train_base
from training.base.skills import SKILLS
from training.base.tokenizer import BOS_ID, EOS_ID
from training.data import IGNORE

SHORT = Recipe(steps=30, rows=4, row_length=48, warmup=5)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def digest(result: BaseResult) -> str:
    state = result.model.state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def test_a_short_run_is_deterministic_and_learns() -> None:
    first, second = (train_base(SHORT, progress=False) for _ in range(2))
    assert digest(first) == digest(second)
    assert first.losses == second.losses
    assert sum(first.losses[-5:]) < 0.8 * sum(first.losses[:5])


def test_another_seed_gives_other_weights() -> None:
    runs = [train_base(Recipe(steps=2, rows=2, row_length=32, seed=seed), progress=False) for seed in (1, 2)]
    assert digest(runs[0]) != digest(runs[1])


def test_a_saved_base_loads_to_the_same_logits(tmp_path: Path) -> None:
    model = train_base(Recipe(steps=2, rows=2, row_length=32), progress=False).model
    save_base(model, tmp_path)
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path)("up: cat\n")["input_ids"]])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(model(input_ids=ids).logits, loaded(input_ids=ids).logits)
    assert loaded.generation_config.eos_token_id == EOS_ID


def test_rows_are_whole_chats_with_labels_on_answers() -> None:
    ids, labels = draw_row(random.Random(3), 128)
    assert len(ids) == len(labels) == 128
    assert ids[0] == BOS_ID
    assert all(label in (token, IGNORE) for token, label in zip(ids, labels, strict=True))
    assert 0.2 < sum(label != IGNORE for label in labels) / 128 < 0.8


def test_the_shipped_base_has_the_recipe_s_shape() -> None:
    shipped = AutoModelForCausalLM.from_pretrained(MODEL_DIR).config
    ours = base_config()
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings", "eos_token_id"):
        assert getattr(shipped, name) == getattr(ours, name)


def test_the_shipped_base_is_as_good_as_its_card_says() -> None:
    recorded = read_scores(MODEL_DIR)
    assert set(recorded) == {*SKILLS, UNKNOWN_TAG}
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    measured = measure_skills(model, AutoTokenizer.from_pretrained(MODEL_DIR), cases=50)
    worse = {tag: score for tag, score in measured.items() if score < recorded[tag] - 0.05}
    assert not worse, f"below the card: {worse}"
