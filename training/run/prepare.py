"""From what a run was asked to all that it needs: model, adapter, rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.checkpoint.config import parse_config
from adapters.checkpoint.digest import content_digest
from adapters.errors import AdapterError
from adapters.limits import AdapterLimits
from training.base import BASE_NAME, MODEL_DIR
from training.data import (
    Encoded,
    EncodedPairs,
    Example,
    Pair,
    Tokens,
    encode,
    encode_pairs,
    label_names,
)
from training.evaluate import pad_token
from training.methods import load_base, wrap
from training.report.origin import Origin
from training.run.batches import collate
from training.run.order import Order
from training.run.record import base_digest, files_digest, make_record, rows_digest
from training.run.result import TrainingData
from training.spec import TrainSpec, require

_CALIBRATION = 32
"""Forward passes that LoRA-GA and EVA look at before the first step."""
_NAMED = 3


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base in memory. `name`: what configs say; `digest`: of its files."""

    name: str
    digest: str
    model: Any
    tokenizer: Any


@dataclass(frozen=True, slots=True)
class Work:
    """A run that is ready to begin.

    Attributes:
        rows, validation: encoded.
        record: what `training/run/record.py` keeps.
        origin: what the result's card and lineage tell.
        skipped: what to tell of rows that train on nothing; empty: there are none.
    """

    spec: TrainSpec
    base_name: str
    model: Any
    tokenizer: Any
    rows: Sequence[Any]
    validation: Sequence[Any]
    steps: int
    record: dict[str, Any]
    origin: Origin
    skipped: str


def prepare(spec: TrainSpec, base: str | Path, data: TrainingData, parent: Path | None) -> Work:
    """Load the base, encode the data, and put the adapter on. Torch's generator is left anywhere.

    Raises:
        ValueError: they do not fit together.
    """
    torch.manual_seed(spec.seed)  # a classifier's head may be new
    labels = _labels(data, parent)
    model, tokenizer = load_base(base, spec, labels)
    loaded = LoadedBase(base_name(base), base_digest(base, model), model, tokenizer)
    return prepare_on(loaded, spec, data, parent, labels)


def prepare_on(
    base: LoadedBase,
    spec: TrainSpec,
    data: TrainingData,
    parent: Path | None,
    labels: Sequence[str] = (),
) -> Work:
    """The same on a base that is there already; the adapter is put on it.

    Raises:
        ValueError: they do not fit together.
    """
    require(bool(data.train), "there are no examples to train on")
    require(spec.patience is None or bool(data.validation), "patience needs validation data to look at")
    tokenizer = base.tokenizer
    train = encode_rows(data.train, tokenizer, spec, labels)
    validation = encode_rows(data.validation, tokenizer, spec, labels)
    told = _skipped("training", train, len(data.train))
    require(bool(train.rows), f"there is nothing to train on: {told}")
    steps = spec.total_steps(len(train.rows))
    record = make_record(
        spec,
        base.name,
        base.digest,
        rows_digest(train.rows),
        rows_digest(validation.rows),
        None if parent is None else files_digest(parent),
    )
    order = Order(len(train.rows), spec.batch_size, spec.seed)
    pad = pad_token(tokenizer)
    calibration = (
        collate([_learned(train.rows[index]) for index in rows], pad, spec.task)
        for rows in islice(order.epoch(0), _CALIBRATION)
    )
    torch.manual_seed(spec.seed)
    model = wrap(base.model, spec, calibration, steps, parent)
    notes = [note for note in (told, _skipped("validation", validation, len(data.validation))) if note]
    return Work(
        spec,
        base.name,
        model,
        tokenizer,
        train.rows,
        validation.rows,
        steps,
        record,
        origin_of(spec, base.name, data.files, parent),
        "; ".join(notes),
    )


def encode_rows(
    examples: Sequence[Example], tokenizer: Any, spec: TrainSpec, labels: Sequence[str]
) -> Encoded | EncodedPairs:
    """As the objective takes them: rows of tokens, or pairs of them.

    Raises:
        ValueError: an example is not for it.
    """
    if spec.objective == "dpo":
        return encode_pairs(examples, tokenizer, spec.max_length)
    return encode(examples, tokenizer, spec.task, spec.max_length, labels)


def base_name(base: str | Path) -> str:
    """What a config says. The shipped base is named the same wherever it is installed."""
    return BASE_NAME if Path(base).resolve() == MODEL_DIR else str(base)


def origin_of(spec: TrainSpec, base: str, files: tuple[tuple[str, str], ...], parent: Path | None) -> Origin:
    """What a result comes from."""
    if parent is None:
        return Origin(spec, base, files)
    try:
        config = parse_config((parent / CONFIG_FILE).read_bytes(), AdapterLimits())
        digest = content_digest(config, parent / WEIGHTS_FILE, AdapterLimits(), _kept_labels(parent))
    except AdapterError:  # trained on all the same: PEFT reads more than the registry keeps
        return Origin(spec, base, files, parent=parent.name)
    return Origin(spec, base, files, parent=parent.name, parent_digest=digest)


def _labels(data: TrainingData, parent: Path | None) -> tuple[str, ...]:
    """Of the adapter to go on from, whose head has them in their order; else those of the data."""
    examples: list[Example] = [*data.train, *data.validation]
    return (() if parent is None else _kept_labels(parent)) or label_names(examples)


def _kept_labels(folder: Path) -> tuple[str, ...]:
    kept = folder / "labels.json"
    return tuple(json.loads(kept.read_text(encoding="utf-8"))) if kept.is_file() else ()


def _learned(row: Tokens | Pair) -> Tokens:
    """What a row wants to be said."""
    return row.chosen if isinstance(row, Pair) else row


def _skipped(what: str, encoded: Encoded | EncodedPairs, examples: int) -> str:
    """Which examples are left out, in one line."""
    if not encoded.skipped:
        return ""
    named = "; ".join(f"row {problem.line}: {problem.reason}" for problem in encoded.skipped[:_NAMED])
    count = len({problem.line for problem in encoded.skipped})
    more = "; and more" if len(encoded.skipped) > _NAMED else ""
    return f"{count} of {examples} {what} rows are left out ({named}{more})"
