"""DPO: losses by TRL's trainer are those of the formula written out, and answers that are preferred win."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from tests.training.methods.stand import Decoder, QuantizedDecoder, Trained, distance, logits, with_peft
from training.base import MODEL_DIR
from training.data import IGNORE, Pair, Preference, TextExample, Tokens
from training.events import Evaluated
from training.methods import load_base, save, trainable_state, wrap
from training.preferences import collate_pairs, make_preference_trainer, measure_pairs, reference
from training.run import Order, TrainingData, train
from training.run.state import load_state
from training.spec import LoraSpec, TrainSpec

STEPS = 6
SPEC = TrainSpec(
    LoraSpec(rank=2, alpha=4.0, target_modules=("q_proj", "v_proj")),
    objective="dpo",
    beta=0.3,
    steps=STEPS,
    batch_size=3,
    accumulation=2,
    learning_rate=1e-2,
    warmup=0.0,
    schedule="constant",
)


class Losses(TrainerCallback):  # type: ignore[misc]
    """What each step told; it may end the run."""

    def __init__(self, trainer: Any, last: int = STEPS) -> None:
        self.trainer, self.last = trainer, last
        self.losses: list[float] = []
        trainer.add_callback(self)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.losses.append(float(self.trainer.numbers.loss))
        control.should_training_stop = state.global_step == self.last


def pairs(count: int = 7) -> list[Pair]:
    """One prompt each with two answers of their own lengths; in one, part of the answer does not count."""
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> list[int]:
        return torch.randint(3, 96, (length,), generator=generator).tolist()

    made = []
    for index in range(count):
        prompt, chosen, rejected = draw(4 + index % 3), draw(5), draw(3 + index % 2)
        rows = [Tokens(prompt + answer, [IGNORE] * len(prompt) + answer) for answer in (chosen, rejected)]
        made.append(Pair(rows[0], rows[1]))
    made[1].chosen.labels[-2] = IGNORE
    return made


ROWS = pairs()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Decoder("llama", tmp_path_factory.mktemp("preferences")).path


def begin(base: Path, spec: TrainSpec = SPEC, parent: Path | None = None) -> tuple[Any, Any]:
    torch.manual_seed(1)
    model, tokenizer = load_base(base, spec)
    return wrap(model, spec, (), STEPS, parent), tokenizer


def trainer_on(model: Any, tokenizer: Any, folder: Path, spec: TrainSpec = SPEC) -> Any:
    return make_preference_trainer(spec, model, tokenizer, ROWS, STEPS, folder)


def log_prob(model: Any, row: Tokens) -> Tensor:
    """Of the tokens that count, one after another."""
    logits = model(input_ids=torch.tensor([row.ids])).logits[0]
    places = [place for place, label in enumerate(row.labels) if label != IGNORE]
    total: Tensor = sum(
        (logits[place - 1].log_softmax(-1)[row.ids[place]] for place in places), torch.zeros(())
    )
    return total


def by_hand(policy: Any, start: Any, rows: list[Pair]) -> Tensor:
    losses = []
    for pair in rows:
        with torch.no_grad():
            before = log_prob(start, pair.chosen) - log_prob(start, pair.rejected)
        now = log_prob(policy, pair.chosen) - log_prob(policy, pair.rejected)
        losses.append(-torch.log(torch.sigmoid(SPEC.beta * (now - before))))
    return torch.stack(losses).mean()


def run_by_hand(base: Path, parent: Path | None = None) -> list[float]:
    """Steps over the same pairs by a plain loop, each pair alone."""
    policy, _ = begin(base, parent=parent)
    before = copy.deepcopy(policy) if parent else load_base(base, SPEC)[0]
    optimizer = torch.optim.AdamW(
        [value for value in policy.parameters() if value.requires_grad], lr=1e-2, weight_decay=0.0
    )
    order = Order(len(ROWS), SPEC.batch_size, SPEC.seed, SPEC.accumulation)
    losses = []
    for step in range(STEPS):
        rows = [ROWS[row] for passed in order.step(step) for row in passed]
        loss = by_hand(policy, before, rows)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.parameters(), SPEC.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[float], Any, Path]:
    """The model, its losses, its tokenizer, and its folder."""
    folder = tmp_path_factory.mktemp("run")
    model, tokenizer = begin(base)
    told = Losses(trainer_on(model, tokenizer, folder))
    told.trainer.run(None)
    save(model, folder / "adapter", base_name="tiny", spec=SPEC)
    return model, told.losses, tokenizer, folder / "adapter"


def test_losses_are_those_of_the_formula(base: Path, run: Any) -> None:
    _, losses, _, _ = run
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses == pytest.approx(run_by_hand(base), abs=1e-5)
    assert losses[-1] < 0.5


def test_what_is_preferred_wins(base: Path, run: Any) -> None:
    trained, _, tokenizer, _ = run
    fresh, _ = begin(base)
    before, after = measure_pairs(fresh, ROWS, SPEC, tokenizer), measure_pairs(trained, ROWS, SPEC, tokenizer)
    assert before.loss == pytest.approx(math.log(2), abs=1e-6)
    plain, _ = load_base(base, SPEC)
    assert after.loss == pytest.approx(float(by_hand(trained, plain, ROWS).detach()), abs=1e-5)
    assert (after.metric, after.score) == ("reward_accuracy", 1.0)


def test_the_adapter_loads_in_plain_peft(base: Path, run: Any) -> None:
    trained, _, _, folder = run
    loaded = with_peft(base, Trained(trained, folder, SPEC))
    assert distance(logits(loaded, "CAUSAL_LM"), logits(trained, "CAUSAL_LM")) == 0
    assert all(".ref." not in name for name in load_file(folder / "adapter_model.safetensors"))


def test_a_resumed_run_ends_with_the_same_bytes(base: Path, run: Any, tmp_path: Path) -> None:
    trained, losses, tokenizer, _ = run
    first, _ = begin(base)
    half = Losses(trainer_on(first, tokenizer, tmp_path), last=2)
    half.trainer.run(None)
    half.trainer.save_state(tmp_path / "state", {})
    second, _ = begin(base)
    rest = Losses(trainer_on(second, tokenizer, tmp_path))
    rest.trainer.run(load_state(tmp_path / "state"))
    assert [*half.losses, *rest.losses] == losses
    same_state(trainable_state(second), trainable_state(trained))


def test_an_adapter_to_go_on_from_is_what_is_compared_with(base: Path, run: Any, tmp_path: Path) -> None:
    _, _, tokenizer, folder = run
    model, _ = begin(base, parent=folder)
    before = logits(model.eval(), "CAUSAL_LM")
    told = Losses(trainer_on(model, tokenizer, tmp_path), last=3)
    assert measure_pairs(model, ROWS, SPEC, tokenizer).loss == pytest.approx(math.log(2), abs=1e-6)
    told.trainer.run(None)
    assert told.losses == pytest.approx(run_by_hand(base, folder)[:3], abs=1e-5)
    assert told.losses[0] == pytest.approx(math.log(2), abs=1e-6)
    with reference(model.eval()):
        assert distance(logits(model, "CAUSAL_LM"), before) == 0
    assert distance(logits(model, "CAUSAL_LM"), before) > 0.01
    assert {
        name for name, value in model.named_parameters() if value.requires_grad and ".ref." in name
    } == set()
    save(model, tmp_path / "adapter", base_name="tiny", spec=SPEC)
    assert (
        distance(logits(with_peft(base, Trained(model, tmp_path / "adapter", SPEC)), "CAUSAL_LM"), before)
        > 0.01
    )


def test_on_a_quantised_base_weights_stay_exact(tmp_path: Path) -> None:
    spec = replace(SPEC, lora=replace(SPEC.lora, method="qlora"))
    base = QuantizedDecoder("llama", tmp_path / "base").path
    model, tokenizer = begin(base, spec)
    before = {name: value.clone() for name, value in trainable_state(model).items()}
    told = Losses(trainer_on(model, tokenizer, tmp_path / "run", spec), last=3)
    same_state(trainable_state(model), before)  # TRL rounds them to bfloat16
    told.trainer.run(None)
    assert told.losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert told.losses[2] < told.losses[0]


def test_both_answers_of_a_pair_are_in_one_batch() -> None:
    batch = collate_pairs([Pair(Tokens([5, 6, 7], [IGNORE, 6, 7]), Tokens([5, 9], [IGNORE, 9]))], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["completion_mask"].tolist() == [[0, 1, 1], [0, 1, 0]]


def same_state(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_whole_run_tells_and_publishes_what_it_learned(base: Path, tmp_path: Path) -> None:
    words = ("river", "cat", "stone", "lamp", "tree", "house")
    rows = [Preference(f"do: {word}\n", word.upper(), word[::-1]) for word in words]
    spec = replace(SPEC, steps=8, learning_rate=3e-2)
    events: list[Any] = []
    result = train(spec, MODEL_DIR, TrainingData(rows[:4], rows[4:]), tmp_path, report=events.append)
    told = [event for event in events if isinstance(event, Evaluated)]
    assert (told[-1].metric, told[-1].score) == ("reward_accuracy", 1.0)
    assert told[-1].loss < 0.4
    assert result.losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert result.trained_tokens > 0
    assert (tmp_path / "adapter_model.safetensors").is_file()


def test_rows_that_are_no_preferences_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="example 1 is no preference: DPO wants a chosen and a rejected"):
        train(SPEC, MODEL_DIR, TrainingData([TextExample("a", "b")]), tmp_path)
    supervised = replace(SPEC, objective="supervised")
    with pytest.raises(ValueError, match="Preference rows: they are for the objective dpo"):
        train(supervised, MODEL_DIR, TrainingData([Preference("a", "b", "c")]), tmp_path)
