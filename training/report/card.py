"""The model card of a result: what it is, what it was trained on and how, how well it does, how to use it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from training.events import Evaluated, Sample
from training.folder import RunFolder
from training.report.curves import Curves
from training.report.origin import Origin, evaluation, figures
from training.report.snippet import loading
from training.spec import TrainSpec, spec_to_json

CARD_FILE = "README.md"
_PIPELINES = {
    "CAUSAL_LM": "text-generation",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
}
_MOST_CHARS = 1000
"""Of a sample's prompt or answer."""
_LONGEST_NAME = 63
_LEFT_OPEN = {
    "modules_to_save": "none",
    "layers": "all",
    "rank_pattern": "none",
    "alpha_pattern": "none",
    "steps": "by epochs",
    "evaluate_every": "ten times a run",
    "save_every": "with each evaluation",
    "patience": "none: no early end",
}
"""What a setting without a value means."""

_CARD = """---
{front}
---

# {name}

{kind} on `{base}`, trained by Multilora.

| | |
|---|---|
{summary}

## How well it does

{results}

## Data

{data}

## How it was trained

{how}

| setting | value |
|---|---|
{spec}

## How to use it

With PEFT:

```python
{snippet}
```

On a Multilora server that serves `{base}`:

```bash
{command}
```
"""


def write_card(folder: Path, origin: Origin, curves: Curves) -> None:
    """Write `README.md` beside the adapter's files, with PEFT's front matter for the hub."""
    spec, found = origin.spec, evaluation(origin, curves)
    name = folder.resolve().name
    text = _CARD.format(
        front=_front(origin),
        name=name,
        command=f"multilora push {_publishable(name)} {shlex.quote(f'path/to/{name}')}",
        kind=_kind(spec),
        base=origin.base,
        summary=_table(_summary(origin, curves)),
        results=_results(folder, found, curves),
        data=_data(origin, curves),
        how=_how(origin, curves),
        spec=_table(_settings(spec)),
        snippet=loading(folder, origin, found),
    )
    (folder / CARD_FILE).write_text(text, encoding="utf-8")


def _publishable(name: str) -> str:
    """A name that the registry takes."""
    found = re.sub("[^a-z0-9._-]+", "-", name.lower()).strip("._-")[:_LONGEST_NAME]
    return found or "my-adapter"


def _front(origin: Origin) -> str:
    from huggingface_hub import ModelCardData

    tags = [f"base_model:adapter:{origin.base}", "lora", "multilora", "transformers"]
    if origin.spec.objective == "dpo":
        tags.append("dpo")
    pipeline = _PIPELINES[origin.spec.task]
    data = ModelCardData(
        base_model=origin.base, library_name="peft", pipeline_tag=pipeline, tags=sorted(tags)
    )
    front: str = data.to_yaml()
    return front.strip()


def _kind(spec: TrainSpec) -> str:
    what = {"dpo": "preferences (DPO)", "supervised": f"the task {spec.task}"}[spec.objective]
    return f"A `{spec.lora.method}` adapter of rank {spec.lora.rank} for {what}"


def _summary(origin: Origin, curves: Curves) -> dict[str, str]:
    started, finished = curves.started, curves.finished
    step = origin.step or (curves.progress[-1].step if curves.progress else 0)
    found = {"optimizer steps": f"{step:,}"}
    if started is not None:
        share = started.trainable_parameters / started.total_parameters
        found["trained parameters"] = (
            f"{started.trainable_parameters:,} of {started.total_parameters:,} ({share:.2%})"
        )
        found["rows to train on"] = f"{started.train_rows:,}"
        found["rows to evaluate on"] = f"{started.validation_rows:,}"
    if finished is not None:
        found["trained tokens"] = f"{finished.trained_tokens:,}"
        found["training loss at the end"] = f"{finished.loss:.4f}"
        found["time"] = f"{finished.seconds:,.0f} s"
    return found


def _results(folder: Path, found: Evaluated | None, curves: Curves) -> str:
    parts = []
    if found is None:
        parts.append(
            "There were no validation rows: nothing here says how it does on rows that it never saw."
        )
    else:
        parts.append(f"On the validation rows, after step {found.step}:")
        numbers = {name: f"{value:.4f}" for name, value in figures(found).items()}
        parts.append("| figure | value |\n|---|---|\n" + _table(numbers))
    run = RunFolder(folder)
    if run.curve.is_file():
        parts.append(f"![loss, scores and learning rate over the steps]({run.curve.relative_to(folder)})")
    if found is not None and found.samples:
        parts.append("What it says to some of them:")
        parts += [_shown(sample) for sample in found.samples]
    return "\n\n".join(parts)


def _shown(sample: Sample) -> str:
    texts = {"prompt": sample.prompt, "wanted": sample.wanted, "answer": sample.answer}
    shown = "\n".join(f"{name + ':':8}{_cut(text)}" for name, text in texts.items())
    ticks = max([2, *(len(found) for found in re.findall("`+", shown))]) + 1  # a sample can't end the block
    return f"{'`' * ticks}text\n{shown}\n{'`' * ticks}"


def _cut(text: str) -> str:
    text = text.rstrip("\n")
    return text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]} …"


def _data(origin: Origin, curves: Curves) -> str:
    started = curves.started
    counts = "Rows were not counted."
    if started is not None:
        counts = (
            f"{started.train_rows:,} rows to train on, {started.validation_rows:,} held out for evaluation."
        )
    if not origin.files:
        return f"{counts} They came from memory, not from files."
    files = {name: f"`{sha256}`" for name, sha256 in origin.files}
    return f"{counts}\n\n| file | SHA-256 |\n|---|---|\n{_table(files)}"


def _how(origin: Origin, curves: Curves) -> str:
    spec = origin.spec
    reason = curves.finished.reason if curves.finished is not None else "done"
    ended = {"early_stopped": " It ended early: the validation loss no longer fell."}.get(reason, "")
    begun = f" It went on from `{origin.parent}`." if origin.parent else ""
    of_base = "kept in NF4" if spec.lora.method == "qlora" else f"in {spec.precision}"
    return (
        f"The base was frozen and {of_base}. Each step took {spec.effective_batch} rows.{begun}{ended} "
        "The same settings, data and base give the same adapter."
    )


def _settings(spec: TrainSpec) -> dict[str, str]:
    flat: dict[str, object] = spec_to_json(spec)
    lora = flat.pop("lora")
    assert isinstance(lora, dict)
    if spec.objective != "dpo":
        del flat["beta"]
    return {name: _value(value) or _LEFT_OPEN[name] for name, value in (lora | flat).items()}


def _value(value: object) -> str:
    """Empty for what was left open."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {each}" for name, each in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
