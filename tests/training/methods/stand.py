"""Tiny bases on disk for each task, adapters trained on them by each method, and what the server answers."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoTokenizer

from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.checkpoint.reader import read_adapter
from adapters.delta import AdapterWeights
from adapters.weights import base_weights
from server.engine.request import PoolingRequest
from tests.kit import LIMITS, Family, ask, engine_core, run_all
from tests.matrix.bases import EncoderDecoder, Served
from tests.quantized import save_model as save_quantizable
from tests.quantized import serve as serve_quantized
from tests.server.engine.encoder import stand as encoders
from tests.tiny import VOCAB
from training.base import MODEL_DIR
from training.methods import load_base, save, step_hook, wrap
from training.methods.adalora import LEAST_STEPS
from training.spec import LoraSpec, TaskName, TrainSpec

RATE = 3e-2
LABELS = ("bad", "good", "odd")
PROMPT = [7, 20, 33, 8, 54, 90, 12]
ANSWER = (5, 71, 18)
Batch = dict[str, Tensor]


def batches(task: TaskName, count: int = 3, seed: int = 0) -> list[Batch]:
    """Random rows with some padding; the labels are what the task has."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randint(3, VOCAB, shape, generator=generator)

    made = []
    for _ in range(count):
        ids = draw(4, 11)
        mask = torch.ones_like(ids)
        mask[0, 8:] = 0
        labels = {
            "CAUSAL_LM": ids.masked_fill(mask == 0, -100),
            "SEQ_2_SEQ_LM": draw(4, 6),
            "SEQ_CLS": draw(4) % len(LABELS),
            "TOKEN_CLS": (ids % len(LABELS)).masked_fill(mask == 0, -100),
        }[task]
        made.append({"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask, "labels": labels})
    return made


@dataclass(frozen=True)
class Trained:
    """A run's model at its end, in evaluation mode, and the folder that it was saved to."""

    model: Any
    folder: Path
    spec: TrainSpec


def spec_for(task: TaskName = "CAUSAL_LM", **lora: Any) -> TrainSpec:
    steps = LEAST_STEPS if lora.get("method") == "adalora" else 4
    return TrainSpec(LoraSpec(**{"rank": 4, "alpha": 8.0, **lora}), task=task, steps=steps)


def begin(base: Path, spec: TrainSpec, parent: Path | None = None, seed: int = 0) -> Any:
    """The wrapped model, ready to train."""
    torch.manual_seed(seed)
    model, _ = load_base(base, spec, LABELS if spec.task.endswith("CLS") else ())
    return wrap(model, spec, batches(spec.task), spec.total_steps(0), parent)


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=RATE)


def train_on(
    model: Any, spec: TrainSpec, optimizer: torch.optim.Optimizer, first: int = 1, last: int | None = None
) -> list[float]:
    """Steps `first` to `last`, or to the end, as a run takes them. Returns the losses."""
    after = step_hook(model, spec)
    rows = batches(spec.task)
    losses = []
    model.train()
    for step in range(first, (last or spec.total_steps(0)) + 1):
        loss = model(**rows[step % len(rows)]).loss
        loss.backward()
        optimizer.step()
        if after is not None:
            after(step)
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def train(base: Path, folder: Path, spec: TrainSpec, parent: Path | None = None) -> Trained:
    """A whole run."""
    model = begin(base, spec, parent)
    train_on(model, spec, optimizer_of(model))
    save(model, folder, base_name="tiny", spec=spec)
    return Trained(model, folder, spec)


def with_peft(base: Path, trained: Trained) -> Any:
    """The folder as plain PEFT loads it on the base as it is; a new head is drawn anew."""
    torch.manual_seed(99)
    pristine, _ = load_base(base, trained.spec, LABELS if trained.spec.task.endswith("CLS") else ())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*adapter keys")  # that are missing, or too many
        return PeftModel.from_pretrained(pristine, trained.folder).eval()


def logits(model: Any, task: TaskName, answer: Sequence[int] = ANSWER) -> Tensor:
    """`(rows, width)` of the prompt, or of the answer where there is a decoder for it."""
    more = {"decoder_input_ids": torch.tensor([[0, *answer[:-1]]])} if task == "SEQ_2_SEQ_LM" else {}
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.tensor([PROMPT]), **more).logits
    return found[0] if found.dim() == 3 else found


def read(folder: Path, model: Any) -> AdapterWeights:
    """What the server's reader makes of the files; the digest is the folder's name."""
    return read_adapter(
        (folder / CONFIG_FILE).read_bytes(),
        folder / WEIGHTS_FILE,
        model.spec,
        LIMITS,
        digest=folder.name,
        base_weights=base_weights(model.model, model.linears),
    )


class Base(ABC):
    """One base in a folder, and its serving path."""

    path: Path

    @abstractmethod
    def __init__(self, name: str, folder: Path) -> None:
        """`name`: of a tiny model; it is saved below `folder`."""

    @abstractmethod
    def served(self, adapters: Mapping[str, Trained]) -> dict[str, Served]:
        """As `logits`, of all adapters in one mixed batch. Tokens: the greedy answer, if there is one."""


class Decoder(Base):
    """A decoder that generates, or classifies where its adapters do."""

    def __init__(self, name: str, folder: Path) -> None:
        self.family = Family(name, folder)
        self.path = _saved(self.family.stock, folder / "base")

    def model(self) -> Any:
        return self.family.model

    def served(self, adapters: Mapping[str, Trained]) -> dict[str, Served]:
        model = self.model()
        weights = {one.folder.name: read(one.folder, model) for one in adapters.values()}
        rows: dict[str, list[Tensor]] = {}
        with engine_core(self.family, load=weights.__getitem__, model=model) as core:
            run = core.runner.run

            def watched(plan: Any) -> Any:
                found, scored = run(plan)
                for each in scored:
                    rows.setdefault(each.sequence.request.request_id, []).append(
                        found[each.start : each.stop].float().clone()
                    )
                return found, scored

            core.runner.run = watched  # type: ignore[method-assign]
            answers = run_all(core, [_request(name, one) for name, one in adapters.items()])
        errors = {name: answer.error for name, answer in answers.items() if answer.error}
        assert not errors, errors
        vectors = {name: torch.tensor(answers[name].vectors) for name in adapters}
        return {
            name: Served(answers[name].tokens, torch.cat(rows[name]) if name in rows else vectors[name])
            for name in adapters
        }


class QuantizedDecoder(Decoder):
    """Another, served in NF4."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name, folder)
        self.path = _tokenizer(save_quantizable(folder / "base64"))

    def model(self) -> Any:
        return serve_quantized(self.path, "nf4")


class Seq2Seq(Base):
    def __init__(self, name: str, folder: Path) -> None:
        self.base = EncoderDecoder(name, folder)
        self.path = _saved(self.base.stock, folder / "base")

    def served(self, adapters: Mapping[str, Trained]) -> dict[str, Served]:
        model = self.base.serve(torch.float32)
        weights = {one.folder.name: read(one.folder, model) for one in adapters.values()}
        owners: dict[str, str | None] = {name: one.folder.name for name, one in adapters.items()}
        return self.base.run(model, weights.__getitem__, owners, PROMPT, 4)


class Encoder(Base):
    def __init__(self, name: str, folder: Path) -> None:
        self.path = encoders.save_base(name, "MASKED_LM", folder / "base")
        _tokenizer(self.path)

    def served(self, adapters: Mapping[str, Trained]) -> dict[str, Served]:
        model = encoders.serve(self.path)
        placed = {name: model.batch.place(read(one.folder, model)) for name, one in adapters.items()}
        requests = [_request(name, one, name) for name, one in adapters.items()]
        answers = encoders.answer(model, requests, placed)
        return {name: Served([], found) for name, found in zip(adapters, answers, strict=True)}


def _request(name: str, trained: Trained, digest: str | None = None) -> Any:
    digest = digest or trained.folder.name
    if trained.spec.task == "CAUSAL_LM":
        return ask(name, PROMPT, digest, max_tokens=1, prompt_logprobs=0)
    if trained.spec.task == "SEQ_CLS":
        return PoolingRequest(name, tuple(PROMPT), "classify", "last", digest)
    return PoolingRequest(name, tuple(PROMPT), "token_classify", "last", digest)


def _saved(stock: Any, folder: Path) -> Path:
    stock.save_pretrained(folder)
    return _tokenizer(folder)


def _tokenizer(folder: Path) -> Path:
    """Any will do: the rows are numbers already."""
    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(folder)
    return folder


def distance(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a part of the largest value (or of 1), as in the matrix of variants."""
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1))
