"""Jobs that train together end as each does alone, whatever becomes of the others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.joint.stand import data, make_base
from training.events import Event, Finished, Progress, Saved
from training.folder import RunFolder
from training.joint import JointJob, train_together
from training.joint import together as module
from training.joint.passes import run_pass
from training.report.curves import read_events
from training.run import RunResult, TrainingData, TrainingError, course, train
from training.spec import LoraSpec, TrainSpec

SPECS = {
    "plain": TrainSpec(
        LoraSpec(rank=4, alpha=8), steps=24, batch_size=4, learning_rate=2e-3, evaluate_every=12
    ),
    "long": TrainSpec(
        LoraSpec(rank=2, alpha=3, method="rslora", target_modules=("q_proj", "down_proj")),
        steps=30,
        batch_size=3,
        accumulation=3,
        learning_rate=1e-3,
        schedule="linear",
        weight_decay=0.1,
        save_every=15,
        seed=2,
    ),
    "dropped": TrainSpec(
        LoraSpec(rank=8, alpha=8, dropout=0.2), epochs=2, batch_size=4, learning_rate=1e-3, seed=3
    ),
    "steep": TrainSpec(
        LoraSpec(rank=3), steps=9, batch_size=6, learning_rate=0.1, optimizer="sgd", schedule="constant"
    ),
}
DATA = {name: data(number, validation=4 if name == "plain" else 0) for number, name in enumerate(SPECS)}


@pytest.fixture(scope="module", autouse=True)
def undrawn() -> Iterator[None]:
    """Curves have their own tests, and take longer to draw than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(course, "draw", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def alone(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunResult]:
    """Each by itself: the oracle, on transformers' Trainer and PEFT's own layers."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: train(spec, base, DATA[name], folder / name) for name, spec in SPECS.items()}


def jobs(folder: Path, names: Sequence[str] = tuple(SPECS), **options: Any) -> list[JointJob]:
    return [JointJob(name, SPECS[name], DATA[name], folder / name, **options) for name in names]


def check(found: Any, expected: RunResult) -> None:
    """The same run: float32 sums in another order, and nothing else."""
    assert isinstance(found, RunResult), found
    assert (found.steps, found.reason, found.complete) == (expected.steps, expected.reason, True)
    assert found.losses == pytest.approx(expected.losses, rel=1e-6, abs=1e-6)
    assert found.trained_tokens == expected.trained_tokens
    assert found.trainable_parameters == expected.trainable_parameters
    assert found.total_parameters == expected.total_parameters
    theirs, ours = (load_file(each.folder / "adapter_model.safetensors") for each in (expected, found))
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=2e-5)


def test_each_job_is_as_it_is_alone(base: Path, alone: dict[str, RunResult], tmp_path: Path) -> None:
    told: dict[str, list[Event]] = {name: [] for name in SPECS}
    done = train_together(base, jobs(tmp_path), lambda job, event: told[job].append(event))

    assert list(done) == list(SPECS)
    for name, expected in alone.items():
        check(done[name], expected)
        assert files(tmp_path / name) == files(expected.folder)
        config = "adapter_config.json"
        assert (tmp_path / name / config).read_bytes() == (expected.folder / config).read_bytes()
        before = list(read_events(RunFolder(expected.folder).events))
        assert list(map(type, told[name])) == list(map(type, before))
        assert told[name] == list(read_events(RunFolder(tmp_path / name).events))
        for own, theirs in zip(progress(told[name]), progress(before), strict=True):
            assert own.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-4)
            assert (own.learning_rate, own.token_accuracy) == (theirs.learning_rate, theirs.token_accuracy)
            assert own.trained_tokens == theirs.trained_tokens
    plain = done["plain"]
    assert isinstance(plain, RunResult)
    looked, expected_look = plain.evaluation, alone["plain"].evaluation
    assert looked is not None
    assert expected_look is not None
    assert looked.loss == pytest.approx(expected_look.loss, rel=1e-5)
    assert looked.samples == expected_look.samples


def files(folder: Path) -> list[str]:
    """Without what has the time in its name."""
    found = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if "tensorboard" not in name)


def progress(events: Sequence[Event]) -> list[Progress]:
    return [event for event in events if isinstance(event, Progress)]


def test_passes_of_few_tokens_change_nothing(base: Path, alone: dict[str, RunResult], tmp_path: Path) -> None:
    done = train_together(base, jobs(tmp_path, ["plain", "dropped", "steep"]), most_tokens=120)
    for name, result in done.items():
        check(result, alone[name])


def test_a_base_with_dropout_of_its_own(tmp_path: Path) -> None:
    """GPT-2 stores its weights transposed, and drops a tenth by itself while it trains."""
    base = make_base(tmp_path / "base", "gpt2")
    names = ["plain", "dropped"]
    specs = {name: TrainSpec(SPECS[name].lora, steps=8, batch_size=4, learning_rate=1e-3) for name in names}
    done = train_together(
        base, [JointJob(name, specs[name], DATA[name], tmp_path / "together" / name) for name in names]
    )
    for name in names:
        check(done[name], train(specs[name], base, DATA[name], tmp_path / "alone" / name))


def test_a_job_that_diverges_ends_alone(base: Path, alone: dict[str, RunResult], tmp_path: Path) -> None:
    """Its numbers overflow in shared passes; the others have the losses that they have without it."""
    wild = TrainSpec(
        LoraSpec(rank=4), steps=20, batch_size=4, learning_rate=1e22, optimizer="sgd", schedule="constant"
    )
    bad = JointJob("wild", wild, DATA["plain"], tmp_path / "wild")
    others = jobs(tmp_path, ["plain", "dropped"])
    done = train_together(base, [others[0], bad, others[1]])

    assert isinstance(done["wild"], TrainingError)
    assert done["wild"].code == "diverged"
    assert "at step" in str(done["wild"])
    assert "lower the learning rate" in str(done["wild"])
    assert not (tmp_path / "wild" / "adapter_config.json").exists()
    for name in ("plain", "dropped"):
        check(done[name], alone[name])


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none_reaches_no_neighbour(
    base: Path, alone: dict[str, RunResult], tmp_path: Path, number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0

    def planted(model: Any, parts: Any, chance: Any) -> Any:
        nonlocal count
        count += 1
        if count == 5:
            for part in parts:
                if part.job == "long":
                    with torch.no_grad():
                        next(iter(part.adapter.deltas.values())).b[0, 0] = number
        return run_pass(model, parts, chance)

    monkeypatch.setattr(module, "run_pass", planted)
    done = train_together(base, jobs(tmp_path, ["plain", "long", "dropped"]))
    assert isinstance(done["long"], TrainingError)
    assert "at step 2" in str(done["long"])  # its second step begins with the fourth pass
    for name in ("plain", "dropped"):
        check(done[name], alone[name])


def test_gradients_that_overflow_under_a_good_loss_take_no_step(
    base: Path, alone: dict[str, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planted(model: Any, parts: Any, chance: Any) -> Any:
        found = run_pass(model, parts, chance)
        for each in found:
            if each.part.job == "long":
                loss: Any = each.loss
                loss.register_hook(lambda gradient: gradient * float("inf"))
        return found

    monkeypatch.setattr(module, "run_pass", planted)
    done = train_together(base, jobs(tmp_path, ["plain", "long"]))
    assert isinstance(done["long"], TrainingError)
    assert "a gradient is nan at step 1" in str(done["long"])
    check(done["plain"], alone["plain"])


@pytest.mark.parametrize("how", ["together", "by itself"])
def test_a_job_is_stopped_alone_and_gone_on_with(
    base: Path, alone: dict[str, RunResult], tmp_path: Path, how: str
) -> None:
    steps: dict[str, int] = {}

    def note(job: str, event: Event) -> None:
        if isinstance(event, Progress):
            steps[job] = event.step

    names = ["plain", "dropped"]
    done = train_together(
        base, jobs(tmp_path, names), note, lambda: {"dropped"} if steps.get("dropped", 0) >= 5 else ()
    )
    check(done["plain"], alone["plain"])
    stopped = done["dropped"]
    assert isinstance(stopped, RunResult)
    assert (stopped.complete, stopped.reason, stopped.steps) == (False, "stopped", 6)
    told = list(read_events(RunFolder(tmp_path / "dropped").events))
    assert [type(event) for event in told[-2:]] == [Saved, Finished]

    if how == "together":
        (other,) = jobs(tmp_path / "more", ["steep"])
        rest = train_together(base, [other, *jobs(tmp_path, ["dropped"], resume=True)])
        check(rest["steep"], alone["steep"])
        resumed = rest["dropped"]
    else:
        resumed = train(SPECS["dropped"], base, DATA["dropped"], tmp_path / "dropped", resume=True)
    check(resumed, alone["dropped"])


def test_a_run_alone_goes_on_among_others(base: Path, alone: dict[str, RunResult], tmp_path: Path) -> None:
    told = 0

    def soon() -> bool:
        nonlocal told
        told += 1
        return told == 5

    train(SPECS["dropped"], base, DATA["dropped"], tmp_path / "dropped", stop=soon)
    done = train_together(base, jobs(tmp_path, ["plain", "dropped"], resume=True))
    for name in ("plain", "dropped"):
        check(done[name], alone[name])


def test_whoever_listens_badly_ends_one_job_alone(
    base: Path, alone: dict[str, RunResult], tmp_path: Path
) -> None:
    def report(job: str, event: Event) -> None:
        if job == "plain" and isinstance(event, Saved):
            raise OSError("the disk is full")

    done = train_together(base, jobs(tmp_path, ["plain", "steep"]), report)
    assert isinstance(done["plain"], OSError)
    check(done["steep"], alone["steep"])
    again = train_together(base, jobs(tmp_path, ["plain"], resume=True))
    check(again["plain"], alone["plain"])


def test_memory_that_runs_out_makes_passes_smaller(
    base: Path, alone: dict[str, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def small(model: Any, parts: Any, chance: Any) -> Any:
        sizes.append(len(parts))
        found = run_pass(model, parts, chance)
        if len(parts) > 1:
            raise torch.OutOfMemoryError("no more")
        return found

    monkeypatch.setattr(module, "run_pass", small)
    done = train_together(base, jobs(tmp_path, ["plain", "dropped"]))
    assert sizes.count(2) <= 3
    for name in ("plain", "dropped"):
        check(done[name], alone[name])


def test_memory_too_small_for_one(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(module, "run_pass", never)
    done = train_together(base, jobs(tmp_path, ["plain", "dropped"]))
    for result in done.values():
        assert isinstance(result, TrainingError)
        assert result.code == "out_of_memory"


def test_what_is_asked_wrongly_is_refused_alone(
    base: Path, alone: dict[str, RunResult], tmp_path: Path
) -> None:
    (good,) = jobs(tmp_path, ["steep"])
    wrong = {
        "nothing": JointJob("nothing", SPECS["plain"], TrainingData([]), tmp_path / "a"),
        "dora": JointJob("dora", TrainSpec(LoraSpec(method="dora")), DATA["plain"], tmp_path / "b"),
        "there": JointJob("there", SPECS["plain"], DATA["plain"], alone["plain"].folder),
        "where": JointJob(
            "where", TrainSpec(LoraSpec(target_modules=("nowhere",))), DATA["plain"], tmp_path / "c"
        ),
    }
    done = train_together(base, [*wrong.values(), good])
    reasons = {"nothing": "no examples", "dora": "dora", "there": "finished adapter", "where": "nowhere"}
    for name, reason in reasons.items():
        assert isinstance(done[name], ValueError)
        assert reason in str(done[name])
    check(done["steep"], alone["steep"])


def test_names_and_folders_are_of_one_job(base: Path, tmp_path: Path) -> None:
    (one,) = jobs(tmp_path, ["plain"])
    with pytest.raises(ValueError, match="two jobs have the same id"):
        train_together(base, [one, JointJob("plain", one.spec, one.data, tmp_path / "x")])
    with pytest.raises(ValueError, match="two jobs have the same folder"):
        train_together(base, [one, JointJob("other", one.spec, one.data, one.folder)])


def test_precisions_and_checkpointing_side_by_side(base: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"steps": 2, "batch_size": 4}
    specs = {
        "bfloat16": TrainSpec(precision="bfloat16", **common),
        "checkpointing": TrainSpec(gradient_checkpointing=True, **common),
    }
    asked = [JointJob(name, spec, DATA["plain"], tmp_path / name) for name, spec in specs.items()]
    twins = [JointJob(f"{job.id} too", job.spec, job.data, tmp_path / f"{job.id}-too") for job in asked]
    done = train_together(base, [*asked, *twins])
    for job in asked:
        expected = train(job.spec, base, job.data, tmp_path / "alone" / job.id)
        for name in (job.id, f"{job.id} too"):
            result = done[name]
            assert isinstance(result, RunResult), result
            within = 2e-2 if job.id == "bfloat16" else 1e-6
            assert result.losses == pytest.approx(expected.losses, rel=within)


def test_a_job_goes_on_from_an_adapter(base: Path, alone: dict[str, RunResult], tmp_path: Path) -> None:
    parent = alone["steep"].folder
    spec = TrainSpec(SPECS["steep"].lora, steps=4, batch_size=4, learning_rate=1e-3)
    done = train_together(
        base,
        [JointJob("next", spec, DATA["steep"], tmp_path / "next", parent=parent), *jobs(tmp_path, ["steep"])],
    )
    check(done["next"], train(spec, base, DATA["steep"], tmp_path / "alone", parent=parent))
    record = json.loads(RunFolder(tmp_path / "next").spec.read_text())
    assert record["parent_sha256"]
