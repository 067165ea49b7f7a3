"""A run against a loop by hand, its loss over a step, its end, and what it leaves alone."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training.run.stand import SPEC, Told, data, make_base, same_files, weights
from training.data import IGNORE, TextExample, encode
from training.events import Advised, Evaluated, Finished, Progress, Saved, Started, event_to_json
from training.folder import RunFolder
from training.methods import load_base
from training.report.curves import Curves, read_events
from training.run import Order, RunResult, TrainingData, TrainingError, train
from training.run.prepare import Work, prepare
from training.run.record import files_digest
from training.run.trainer import Supervised
from training.spec import LoraSpec, TaskName, TrainSpec

DRY = replace(SPEC, lora=LoraSpec(rank=4, alpha=8), warmup=0.3)


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than these runs, and has tests of its own."""
    monkeypatch.setattr("training.run.course.draw", lambda *_, **__: None)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def by_hand(base: Path, spec: TrainSpec, given: TrainingData) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of a plain loop over PEFT's model, in whole batches."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = encode(given.train, tokenizer, "CAUSAL_LM", spec.max_length).rows
    stock = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(spec.seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=spec.lora.dropout)
    model = get_peft_model(stock, config)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=spec.learning_rate, weight_decay=0)
    torch.manual_seed(spec.seed)
    model.train()
    losses = []
    effective = spec.batch_size * spec.accumulation
    order = Order(len(rows), effective, spec.seed)
    steps = spec.steps or 0
    warmup = round(spec.warmup * steps)
    for step in range(steps):
        batch = [rows[index] for index in order.step(step)[0]]
        width = max(len(row.ids) for row in batch)
        ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in batch])
        mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in batch])
        labels = torch.tensor([row.labels + [IGNORE] * (width - len(row.ids)) for row in batch])
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, spec.max_grad_norm)
        rise = min(1, (step + 1) / (warmup + 1))
        fall = 0.02 + 0.98 * 0.5 * (1 + numpy.cos(numpy.pi * step / steps))
        optimizer.param_groups[0]["lr"] = spec.learning_rate * rise * fall
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize(("accumulation", "dropout"), [(1, 0.0), (1, 0.1), (2, 0.0)])
def test_it_is_what_a_loop_by_hand_does(
    accumulation: int, dropout: float, base: Path, tmp_path: Path
) -> None:
    lora = replace(DRY.lora, dropout=dropout)
    spec = replace(DRY, lora=lora, batch_size=4 // accumulation, accumulation=accumulation)
    losses, wanted = by_hand(base, spec, data())
    result = train(spec, base, data(), tmp_path / "run")
    assert result.losses == pytest.approx(losses, abs=1e-6)
    found = weights(result.folder)
    assert len(found) == len(wanted) == 28
    for name, value in wanted.items():
        torch.testing.assert_close(found[name.replace(".default", "")], value, atol=1e-6, rtol=1e-5)


def first_step(base: Path, folder: Path, task: TaskName, batch_size: int, accumulation: int) -> RunResult:
    """One step of plain gradient descent: it moves the weights by their gradient."""
    spec = TrainSpec(
        LoraSpec(rank=2, alpha=4),
        task=task,
        steps=1,
        batch_size=batch_size,
        accumulation=accumulation,
        optimizer="sgd",
        learning_rate=1.0,
        schedule="constant",
        warmup=0,
        max_grad_norm=1e9,
    )
    return train(spec, base, data(task, rows=8), folder)


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS"])
def test_accumulated_gradients_are_those_of_the_whole_batch(task: TaskName, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", task)
    whole = first_step(base, tmp_path / "whole", task, 8, 1)
    parts = first_step(base, tmp_path / "parts", task, 2, 4)
    assert parts.losses == pytest.approx(whole.losses, abs=1e-6)
    assert parts.trained_tokens == whole.trained_tokens
    found, wanted = weights(parts.folder), weights(whole.folder)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)
    assert max(float(value.abs().max()) for name, value in wanted.items() if "lora_B" in name) > 1e-4


def test_the_loss_of_a_step_is_not_the_mean_of_its_passes_means(base: Path, tmp_path: Path) -> None:
    """Rows of unequal lengths: the test above could fail."""
    rows = encode(data(rows=8).train, AutoTokenizer.from_pretrained(base), "CAUSAL_LM", 64).rows
    model, _ = load_base(base, DRY)
    means = []
    for indexes in Order(8, 2, 0, 4).step(0):
        sums, count = 0.0, 0
        for row in (rows[index] for index in indexes):
            logits = model(input_ids=torch.tensor([row.ids])).logits[0, :-1]
            sums += float(cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="sum"))
            count += sum(label != IGNORE for label in row.labels[1:])
        means.append(sums / count)
    result = first_step(base, tmp_path / "run", "CAUSAL_LM", 2, 4)
    assert abs(result.losses[0] - sum(means) / 4) > 1e-3


def test_the_same_again_gives_the_same_bytes(base: Path, tmp_path: Path) -> None:
    one = train(SPEC, base, data(), tmp_path / "one")
    random.seed(5)
    torch.manual_seed(5)
    two = train(SPEC, base, data(), tmp_path / "two")
    other = train(replace(SPEC, seed=1), base, data(), tmp_path / "other")
    assert same_files(one.folder, two.folder)
    assert one.losses == two.losses
    assert other.losses != one.losses


def test_what_is_told_is_kept(base: Path, tmp_path: Path) -> None:
    told = Told()
    result = train(SPEC, base, data(validation=3), tmp_path / "run", report=told)
    run = RunFolder(result.folder)
    assert [event_to_json(event) for event in read_events(run.events)] == [event_to_json(e) for e in told]
    assert isinstance(told[0], Started)
    assert isinstance(told[-1], Finished)
    assert [event.step for event in told.of(Progress)] == list(range(1, 8))
    assert [event.step for event in told.of(Evaluated)] == [3, 6, 7]
    assert [event.step for event in told.of(Saved)] == [3, 6, 7] == run.steps()
    assert (told[0].train_rows, told[0].validation_rows) == (10, 3)
    assert result.evaluation == told.of(Evaluated)[-1]
    last = told.of(Progress)[-1]
    assert (last.seconds_left, last.trained_tokens) == (0, result.trained_tokens)
    assert all(event.tokens_per_second > 0 and event.gradient_norm > 0 for event in told.of(Progress))
    assert all(0 <= event.token_accuracy <= 1 for event in told.of(Progress))


def test_plain_peft_loads_each_checkpoint_and_the_result(base: Path, tmp_path: Path) -> None:
    run = RunFolder(train(SPEC, base, data(), tmp_path / "run").folder)
    ids = torch.tensor([[5, 6, 7]])
    stock = AutoModelForCausalLM.from_pretrained(base)
    plain = stock(input_ids=ids).logits
    logits = []
    for folder in (run.checkpoint(3), run.checkpoint(7), run.path):
        again = AutoModelForCausalLM.from_pretrained(base)
        logits.append(PeftModel.from_pretrained(again, folder).eval()(input_ids=ids).logits)
    assert torch.equal(logits[1], logits[2])
    assert not torch.equal(logits[0], logits[1])
    assert float((logits[2] - plain).detach().abs().max()) > 1e-2


@pytest.mark.parametrize("bias", ["none", "lora_only"])
def test_the_base_stays_as_it_is(bias: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `bias` PEFT trains the biases of the copy in memory; its weights and the files stay."""
    base = make_base(tmp_path / "base", bias=True)
    before = files_digest(base)
    seen: list[Work] = []

    def kept(*given: Any) -> Work:
        seen.append(prepare(*given))
        return seen[-1]

    monkeypatch.setattr("training.run.run.prepare", kept)
    lora = LoraSpec(rank=2, alpha=4, bias=bias)  # type: ignore[arg-type]
    train(replace(SPEC, lora=lora), base, data(), tmp_path / "run")
    pristine = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    prefix, trained = "base_model.model.", 0
    for name, value in seen[0].model.state_dict().items():
        plain = name.removeprefix(prefix).replace(".base_layer", "")
        if plain in pristine:
            same = torch.equal(value, pristine[plain])
            trained += not same
            assert same or (bias == "lora_only" and plain.endswith(".bias")), name
    assert bool(trained) == (bias == "lora_only")
    assert files_digest(base) == before


def test_the_caller_s_random_numbers_are_left_alone(base: Path, tmp_path: Path) -> None:
    before = random.getstate(), torch.random.get_rng_state(), numpy.random.get_state()[1].tolist()  # type: ignore[index]
    train(replace(SPEC, steps=1), base, data(), tmp_path / "run")
    assert random.getstate() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    assert numpy.random.get_state()[1].tolist() == before[2]  # type: ignore[index]


@pytest.mark.parametrize("rate", [1e30, 1e12])
def test_a_diverging_run_publishes_nothing_but_has_a_curve(
    rate: float, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Curves] = []
    monkeypatch.setattr("training.run.course.draw", lambda curves, *_, **__: drawn.append(curves))
    wild = replace(SPEC, optimizer="sgd", learning_rate=rate, warmup=0, max_grad_norm=1e30)
    with pytest.raises(
        TrainingError, match=r"at step \d+, at a learning rate of .* lower the learning"
    ) as seen:
        train(wild, base, data(), tmp_path / "run")
    assert seen.value.code == "diverged"
    assert not (tmp_path / "run" / "adapter_config.json").exists()
    (curves,) = drawn
    assert len(curves.progress) >= 1
    assert curves.finished is None


def test_gradients_that_overflow_under_a_good_loss_take_no_step(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Supervised.compute_loss

    def planted(*given: Any, **options: Any) -> Any:
        loss: Any = good(*given, **options)
        loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    monkeypatch.setattr(Supervised, "compute_loss", planted)
    with pytest.raises(TrainingError, match="a gradient is nan at step 1"):
        train(SPEC, base, data(), tmp_path / "run")


def test_memory_that_runs_out_is_told(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("training.run.trainer.Supervised.compute_loss", full)
    with pytest.raises(TrainingError, match="memory ran out at batch_size 2, max_length 512") as seen:
        train(SPEC, base, data(), tmp_path / "run")
    assert seen.value.code == "out_of_memory"


def test_early_stopping_keeps_the_best(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {1: 5.0, 2: 3.0, 3: 4.0, 4: 3.5, 5: 1.0}
    monkeypatch.setattr(
        "training.run.course.evaluate",
        lambda *given, **_: Evaluated(given[-1], losses[given[-1]], None, "exact_match", 0.0),
    )
    spec = replace(SPEC, evaluate_every=1, save_every=5, patience=2)
    result = train(spec, base, data(validation=2), tmp_path / "run")
    assert (result.reason, result.complete, result.steps, result.best_step) == ("early_stopped", True, 4, 2)
    run = RunFolder(result.folder)
    assert run.steps() == [1, 2, 4]
    assert same_files(run.path, run.checkpoint(2))
    again = train(spec, base, data(validation=2), tmp_path / "run", resume=True)
    assert (again.reason, again.steps, again.best_step) == ("early_stopped", 4, 2)


def test_what_can_t_be_trained_is_told_before_anything_is(base: Path, tmp_path: Path) -> None:
    for spec, given, said in (
        (SPEC, TrainingData([]), "there are no examples to train on"),
        (replace(SPEC, patience=2), data(), "patience needs validation data"),
        (
            replace(SPEC, max_length=2),
            TrainingData([TextExample("abcdef", "x")]),
            "there is nothing to train on",
        ),
        (
            replace(SPEC, lora=LoraSpec(target_modules=("c_attn",))),
            data(),
            "target_modules c_attn: not among",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            train(spec, base, given, tmp_path / "run")
    assert not (tmp_path / "run" / "adapter_config.json").exists()


def test_rows_that_are_left_out_are_told(base: Path, tmp_path: Path) -> None:
    told = Told()
    given = TrainingData([*data().train, TextExample("a" * 30, "b")])
    train(replace(SPEC, max_length=30, steps=1), base, given, tmp_path / "run", report=told)
    advice = told.of(Advised)[0]
    assert (advice.step, advice.kind) == (0, "skipped")
    assert advice.message.startswith("1 of 11 training rows are left out (row 11: ")


def test_two_at_once_in_one_folder_are_refused(base: Path, tmp_path: Path) -> None:
    def again(event: object) -> None:
        if isinstance(event, Started):
            with pytest.raises(ValueError, match="another process trains in"):
                train(SPEC, base, data(), tmp_path / "run")

    train(replace(SPEC, steps=1), base, data(), tmp_path / "run", report=again)
