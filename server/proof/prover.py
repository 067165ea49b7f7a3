"""The parity proof of one adapter before it is published: the batched path against PEFT, on a few prompts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from adapters.base import BaseSpec
from adapters.delta import AdapterWeights
from adapters.errors import AdapterError, InvalidAdapter, ProofUnavailable
from adapters.registry.proof import Proof
from server.engine.loading import context_length
from server.engine.request import EngineError
from server.proof.measure import Parity, compare
from server.proof.probes import POSITIONS, probe_prompts
from server.proof.process import OracleRows, Unavailable
from server.proof.served import Rows, served_rows
from server.proof.subject import HEADS, Subject, subject_of

log = logging.getLogger(__name__)
Run = Callable[[Callable[[], Rows]], Rows]
"""Runs a function where and when the model may be used."""


class Oracle(Protocol):
    """The part of `PeftProcess` that a proof needs."""

    def rows(
        self, adapter: Path, subject: Subject, prompts: Sequence[Sequence[int]], positions: int
    ) -> OracleRows: ...

    def close(self) -> None: ...


def at_once(function: Callable[[], Rows]) -> Rows:
    """A `Run` for who has the model for itself."""
    return function()


class Prover:
    """Compares adapters with PEFT; see `adapters.registry.proof.Prove`.

    Attributes:
        run: how the batched path is reached; a server sets its engine's thread.
    """

    def __init__(self, model: Any, tokenizer: Any, oracle: Oracle, *, required: bool = False) -> None:
        """
        Args:
            model: the served base: a `ServedModel`, `EncoderModel` or `Seq2SeqModel`.
            required: refuse what can't be compared.
        """
        self.run: Run = at_once
        self._model, self._tokenizer, self._oracle = model, tokenizer, oracle
        self._required = required

    def __call__(self, folder: Path, adapter: AdapterWeights) -> Proof:
        """The proof of the adapter in `folder`, read as `adapter`.

        Raises:
            InvalidAdapter: the two differ by more than rounding explains, or there is no proof for such an
                adapter, and one is required.
            ProofUnavailable: PEFT's side failed, and a proof is required.
        """
        why_not = not_covered(self._model.spec, adapter)
        if why_not is not None:
            if self._required:
                raise InvalidAdapter(f"--parity require: {why_not}, so that nothing was proved")
            return Proof("not_covered", why_not)
        started = time.perf_counter()
        try:
            parity = self.measure(folder, adapter)
        except Unavailable as error:
            log.warning("adapter %s is not proved: %s", adapter.digest[:12], error)
            if self._required:
                raise ProofUnavailable(f"--parity require: the proof is not available: {error}") from error
            return Proof("unavailable", str(error))
        log.info(
            "adapter %s is off by %.2g from PEFT (at most %.2g), %.1f s",
            *(adapter.digest[:12], parity.difference, parity.limit(self._model.dtype)),
            time.perf_counter() - started,
        )
        refuse_difference(parity, self._model.spec, self._model.dtype)
        return Proof("proved", None, parity.difference, parity.kl)

    def measure(self, folder: Path, adapter: AdapterWeights) -> Parity:
        """The numbers.

        Raises:
            Unavailable: one of the two sides has no logits.
            InvalidAdapter: it has no place in this model, or its values don't fit.
        """
        model = self._model
        subject = subject_of(model.spec, adapter)
        tables = [rows for rows, _ in model.spec.embeddings.values()] if subject.kind == "decoder" else []
        vocabulary = min([model.vocab_size, *tables])
        prompts = probe_prompts(self._tokenizer, vocabulary, adapter, context_length(model.model.config))
        theirs = self._oracle.rows(folder, subject, prompts, POSITIONS)
        placed = model.batch.place(adapter).to(model.device)
        ours: list[Rows] = []
        try:
            for prompt in prompts:
                ours.append(self.run(partial(served_rows, model, placed, subject, prompt, POSITIONS)))
            base, adapted = zip(*ours, strict=True)
            return compare(base, adapted, theirs.base, theirs.adapter, distributes=subject.distributes)
        except AdapterError:
            raise
        except (EngineError, RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise Unavailable(f"the probe failed in the engine: {reason}") from error

    def close(self) -> None:
        """End PEFT's process."""
        self._oracle.close()


def not_covered(spec: BaseSpec, adapter: AdapterWeights) -> str | None:
    """Why there is no comparison for such an adapter on such a base; None if there is one."""
    if spec.kind == "decoder" and adapter.task in HEADS and not adapter.head:
        return f"it is for {adapter.task} and brings no head, so that there is nothing to compare"
    return None


def refuse_difference(parity: Parity, spec: BaseSpec, dtype: torch.dtype) -> None:
    """Raise `InvalidAdapter` if the difference is not rounding.

    In 16 bits rounding alone may send a token to another expert: with experts, half of the positions count.
    """
    routed = bool(spec.experts) and dtype != torch.float32
    off, limit = parity.typical if routed else parity.difference, parity.limit(dtype)
    if not off <= limit:
        kind = str(dtype).removeprefix("torch.")
        raise InvalidAdapter(
            f"the parity proof failed: served in {kind}, the adapter's logits differ by {off:.3g} from "
            f"PEFT's, where {limit:.3g} would be rounding (PEFT's reach {parity.scale:.3g}, the adapter "
            f"changes them by up to {parity.effect:.3g}, and the base alone is off by "
            f"{parity.base_difference:.2g})"
        )
