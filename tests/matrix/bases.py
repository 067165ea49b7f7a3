"""The bases of the matrix: each tiny and random, as PEFT trains on it and as its engine serves it.

All parameters are numbers that bfloat16 holds, so that a base served in bfloat16 is the very same base.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.delta import AdapterWeights
from adapters.residency import Residency
from adapters.weights import base_weights
from server.engine.base import ServedModel
from server.engine.core import EngineConfig, EngineCore
from server.engine.encoder.core import EncoderCore
from server.engine.request import Request
from server.engine.seq2seq.core import Seq2SeqCore
from server.engine.seq2seq.model import Seq2SeqModel
from server.engine.seq2seq.target import Target
from tests.kit import AMPLE, Answers, Letters, ask, collect, preload
from tests.server.engine.encoder import stand as encoders
from tests.server.engine.seq2seq.stand import START, make_t5
from tests.tiny import make_model

LABELS = 5
_SIZES = EngineConfig(
    max_model_len=48, kv_blocks=512, block_size=8, max_batch_tokens=4096, max_running=128, prefix_cache=False
)
Load = Callable[[str], AdapterWeights]


@dataclass(frozen=True)
class Served:
    """What one request got: its tokens, and `(rows, width)` logits of every row that was computed for it."""

    tokens: list[int]
    logits: Tensor


class Base(ABC):
    """One base. `task` is PEFT's name of what adapters of it do; `stock` is the model that PEFT wraps."""

    task: str
    prompts = 2
    """How many of the matrix's prompts are run."""
    stock: Any

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder

    @abstractmethod
    def serve(self, dtype: torch.dtype) -> Any:
        """The base in serving form."""

    @abstractmethod
    def run(
        self, model: Any, load: Load, owners: Mapping[str, str | None], prompt: Sequence[int], tokens: int
    ) -> dict[str, Served]:
        """Answers to `prompt` with each owner's adapter (a digest, or None), all in one mixed batch."""

    @abstractmethod
    def logits(self, model: Any, prompt: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """The rows of `Served.logits` by a stock forward of `model`, where `tokens` is the answer."""

    def in_bfloat16(self, model: Any) -> Any:
        """A copy of `stock`, or of what PEFT made of it; of the angles of positions nothing is rounded."""
        model = copy.deepcopy(model)
        for module in model.modules():
            for name, own in (*module._parameters.items(), *module._buffers.items()):
                if own is not None and own.is_floating_point() and "inv_freq" not in name:
                    own.data = own.data.bfloat16()
        return model

    def weights(self, model: Any) -> Callable[[str], Tensor]:
        """The base's parameters, for the registry."""
        return base_weights(model.model, model.linears)


class Decoder(Base):
    task = "CAUSAL_LM"

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name, folder)
        self.stock = _rounded(make_model(name))

    def serve(self, dtype: torch.dtype) -> ServedModel:
        model = copy.deepcopy(self.stock) if dtype == torch.float32 else self.in_bfloat16(self.stock)
        return ServedModel(model, name="base", digest=self.name)

    def run(
        self, model: Any, load: Load, owners: Mapping[str, str | None], prompt: Sequence[int], tokens: int
    ) -> dict[str, Served]:
        core = EngineCore(model, Letters(), _residency(model, load), _SIZES)
        rows: dict[str, list[Tensor]] = {}
        run = core.runner.run

        def watched(plan: Any) -> Any:
            logits, scored = run(plan)
            for each in scored:
                own = logits[each.start : each.stop].float().clone()
                rows.setdefault(each.sequence.request.request_id, []).append(own)
            return logits, scored

        core.runner.run = watched  # type: ignore[method-assign]
        requests = [
            replace(
                ask(name, prompt, digest, max_tokens=tokens, prompt_logprobs=0),
                invocation=load(digest).invocation if digest else (),
            )
            for name, digest in owners.items()
        ]
        answers = _answers(core, requests)
        return {name: Served(answers[name].tokens, torch.cat(rows[name])) for name in owners}

    def logits(self, model: Any, prompt: Sequence[int], tokens: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(input_ids=torch.tensor([[*prompt, *tokens[:-1]]])).logits[0]
        return logits


class EncoderDecoder(Base):
    task = "SEQ_2_SEQ_LM"
    prompts = 6  # each gives few rows, many of them alike

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name, folder)
        self.stock = make_t5(name)
        for module_name, module in self.stock.named_modules():
            if module_name.endswith(".q"):  # as T5 begins: its attention does not scale
                module.weight.data *= self.stock.config.d_kv**-0.5
        _rounded(self.stock)

    def serve(self, dtype: torch.dtype) -> Seq2SeqModel:
        model = copy.deepcopy(self.stock) if dtype == torch.float32 else self.in_bfloat16(self.stock)
        return Seq2SeqModel(model, name="base", digest=self.name)

    def in_bfloat16(self, model: Any) -> Any:
        model = super().in_bfloat16(model)
        model.set_attn_implementation("sdpa")  # as it is loaded; eager attention rounds more
        return model

    def run(
        self, model: Any, load: Load, owners: Mapping[str, str | None], prompt: Sequence[int], tokens: int
    ) -> dict[str, Served]:
        core = Seq2SeqCore(model, Letters(), _residency(model, load), _SIZES)
        rows: dict[str, list[Tensor]] = {}
        decode = core._decode

        def watched(targets: list[Target]) -> Tensor:
            logits = decode(targets)
            for target, row in zip(targets, logits, strict=True):
                rows.setdefault(target.request.request_id, []).append(row[None].float().clone())
            return logits

        core._decode = watched  # type: ignore[method-assign]
        requests = [ask(name, prompt, digest, max_tokens=tokens) for name, digest in owners.items()]
        answers = _answers(core, requests)
        return {name: Served(answers[name].tokens, torch.cat(rows[name])) for name in owners}

    def logits(self, model: Any, prompt: Sequence[int], tokens: Sequence[int]) -> Tensor:
        source, target = torch.tensor([list(prompt)]), torch.tensor([[START, *tokens[:-1]]])
        with torch.inference_mode():
            logits: Tensor = model(input_ids=source, decoder_input_ids=target).logits[0]
        return logits


class Encoder(Base):
    """Its adapters label tokens; the labels that their own heads give are the answer's tokens."""

    task = "TOKEN_CLS"

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name, folder)
        encoders.save_base(name, "TOKEN_CLS", folder, LABELS)
        self.stock = _rounded(encoders.CLASSES["TOKEN_CLS"].from_pretrained(folder)).requires_grad_(False)
        self.stock.save_pretrained(folder)

    def serve(self, dtype: torch.dtype) -> Any:
        return encoders.serve(self.folder, dtype)

    def run(
        self, model: Any, load: Load, owners: Mapping[str, str | None], prompt: Sequence[int], tokens: int
    ) -> dict[str, Served]:
        core = EncoderCore(model, _residency(model, load), _SIZES)
        requests = [encoders.ask(name, prompt, "token_classify", digest) for name, digest in owners.items()]
        answers = _answers(core, requests)
        logits = {name: torch.tensor(answers[name].vectors) for name in owners}
        return {name: Served(own.argmax(-1).tolist(), own) for name, own in logits.items()}

    def logits(self, model: Any, prompt: Sequence[int], tokens: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(input_ids=torch.tensor([list(prompt)])).logits[0]
        return logits


def _rounded(model: Any) -> Any:
    """`model`, each parameter the nearest that bfloat16 holds."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model


def _residency(model: Any, load: Load) -> Residency:
    return Residency(load, model.batch.place, model.device, AMPLE, AMPLE)


def _answers(core: Any, requests: Sequence[Request]) -> Answers:
    """What the core answers. All adapters are in memory first, so that one step has them all."""
    answers: Answers = {}
    try:
        preload(core, *{request.adapter for request in requests if request.adapter is not None})
        for request in requests:
            core.submit(request)
        while core.busy:
            collect(answers, core.step())
        core.check()
    finally:
        core.close()
    for name, answer in answers.items():
        assert answer.error is None, (name, answer.error)
    return answers
