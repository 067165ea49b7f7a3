"""Good adapters are proved with their numbers, wrong ones refused, and nothing is claimed without PEFT."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.delta import AdapterWeights
from adapters.errors import InvalidAdapter, ProofUnavailable
from adapters.registry.proof import Proof
from adapters.registry.registry import Registry
from server.proof.process import OracleRows, PeftProcess, Unavailable
from server.proof.prover import Prover, not_covered
from server.proof.served import served_rows
from server.proof.subject import Subject
from tests.kit import LIMITS
from tests.server.proof.stand import Stand, Words, doubled
from tests.tiny import peft_model

INVOKED = [11, 12, 13]
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "r": 8, "target_modules": ["q_proj", "down_proj"]},
    "olora": {"init_lora_weights": "olora", "target_modules": ["q_proj", "v_proj"]},
    "pissa": {"init_lora_weights": "pissa", "target_modules": ["q_proj", "v_proj"]},
    "alora": {"alora_invocation_tokens": INVOKED, "target_modules": ["q_proj", "v_proj"]},
    "tokens": {"trainable_token_indices": [40, 41], "target_modules": ["q_proj"]},
    "biases": {"bias": "lora_only", "lora_bias": False, "target_modules": ["q_proj"]},
}


class Silent:
    """PEFT has no answer."""

    def rows(
        self, adapter: Path, subject: Subject, prompts: Sequence[Sequence[int]], positions: int
    ) -> OracleRows:
        raise Unavailable("the process that runs PEFT ended: killed")

    def close(self) -> None:
        """Nothing to end."""


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_served_right_is_proved(name: str, stand: Stand, process: PeftProcess) -> None:
    folder = stand.adapter(name, **CONFIGS[name])
    proof = Prover(stand.model, Words(), process)(folder, stand.read(folder))

    assert proof.status == "proved", proof
    assert proof.reason is None
    assert 0 <= (proof.max_logit_difference or 0.0) < 1e-3
    assert (proof.kl_from_base or 0.0) > 1e-4


def test_the_divergence_is_that_of_pefts_own_distributions(stand: Stand, process: PeftProcess) -> None:
    folder = stand.adapter("plain")
    seen: list[Sequence[Sequence[int]]] = []

    class Watched(Silent):
        def rows(
            self, adapter: Path, subject: Subject, prompts: Sequence[Sequence[int]], positions: int
        ) -> OracleRows:
            seen.append(prompts)
            return process.rows(adapter, subject, prompts, positions)

    proof = Prover(stand.model, Words(), Watched())(folder, stand.read(folder))
    kls = []
    for prompt in seen[0]:
        with torch.no_grad():
            ids = torch.tensor([list(prompt)])
            p, q = (
                model(input_ids=ids).logits[0, -4:].double().log_softmax(-1)
                for model in (peft_model(stand.stock, folder), stand.stock)
            )
        kls.append(torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1))
    assert proof.kl_from_base == pytest.approx(float(torch.cat(kls).mean()), rel=1e-4)


def _without_one_module(adapter: AdapterWeights) -> AdapterWeights:
    return replace(adapter, deltas=dict(list(adapter.deltas.items())[1:]))


def _with_half_the_scale(adapter: AdapterWeights) -> AdapterWeights:
    return replace(adapter, deltas={n: replace(d, scale=d.scale / 2) for n, d in adapter.deltas.items()})


def _with_nothing(adapter: AdapterWeights) -> AdapterWeights:
    return replace(adapter, deltas={n: replace(d, scale=0.0) for n, d in adapter.deltas.items()})


@pytest.mark.parametrize("wrong", [_without_one_module, _with_half_the_scale, _with_nothing])
def test_what_would_be_served_wrong_is_refused(wrong: Any, stand: Stand, process: PeftProcess) -> None:
    folder = stand.adapter("plain")
    with pytest.raises(
        InvalidAdapter, match=r"the parity proof failed: served in float32, the adapter's logits differ by"
    ):
        Prover(stand.model, Words(), process)(folder, wrong(stand.read(folder)))


def test_files_that_are_not_what_was_read_are_refused(
    stand: Stand, process: PeftProcess, tmp_path: Path
) -> None:
    folder = stand.adapter("plain")
    other = doubled(folder, tmp_path / "other")
    with pytest.raises(InvalidAdapter, match="the parity proof failed"):
        Prover(stand.model, Words(), process)(other, stand.read(folder))


def test_without_pefts_answer_nothing_is_claimed(stand: Stand) -> None:
    folder = stand.adapter("plain")
    adapter = stand.read(folder)
    reason = "the process that runs PEFT ended: killed"
    assert Prover(stand.model, Words(), Silent())(folder, adapter) == Proof("unavailable", reason)
    with pytest.raises(ProofUnavailable, match=f"--parity require: .*{reason}"):
        Prover(stand.model, Words(), Silent(), required=True)(folder, adapter)


def test_an_engine_that_fails_proves_nothing(stand: Stand, process: PeftProcess) -> None:
    def broken(function: object) -> Any:
        raise RuntimeError("out of memory\nmore")

    prover = Prover(stand.model, Words(), process)
    prover.run = broken
    folder = stand.adapter("plain")
    expected = Proof("unavailable", "the probe failed in the engine: out of memory")
    assert prover(folder, stand.read(folder)) == expected


def test_numbers_that_are_none_are_refused(stand: Stand, process: PeftProcess) -> None:
    prover = Prover(stand.model, Words(), process)
    prover.run = lambda function: (function()[0], torch.full_like(function()[1], math.nan))
    folder = stand.adapter("plain")
    with pytest.raises(InvalidAdapter, match="differ by nan"):
        prover(folder, stand.read(folder))


def test_what_is_not_covered_says_so(stand: Stand) -> None:
    adapter = stand.read(stand.adapter("plain"))
    assert not_covered(stand.model.spec, adapter) is None
    headless = replace(adapter, task="SEQ_CLS")
    reason = "it is for SEQ_CLS and brings no head, so that there is nothing to compare"
    folder = stand.adapter("plain")
    assert Prover(stand.model, Words(), Silent())(folder, headless) == Proof("not_covered", reason)
    with pytest.raises(InvalidAdapter, match="--parity require: it is for SEQ_CLS and brings no head"):
        Prover(stand.model, Words(), Silent(), required=True)(folder, headless)


def test_a_registry_keeps_what_was_proved_and_nothing_that_was_refused(
    stand: Stand, process: PeftProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Registry(tmp_path, stand.model.spec, LIMITS, None, stand.model.weight) as registry:
        registry.prove = Prover(stand.model, Words(), process)
        proved, _ = registry.publish_folder("good", stand.adapter("plain"))
        assert proved.proof.status == "proved"

        monkeypatch.setattr(
            "server.proof.prover.served_rows",
            lambda *given: tuple(1.1 * logits for logits in served_rows(*given)),
        )
        with pytest.raises(InvalidAdapter, match="the parity proof failed"):
            registry.publish_folder("good", stand.adapter("dora", use_dora=True))
        assert registry.list() == (proved,)
        assert registry.publish_folder("good", stand.adapter("plain")) == (proved, False)

        registry.prove = Prover(stand.model, Words(), Silent())
        unproved, _ = registry.publish_folder("other", stand.adapter("dora", use_dora=True))
        assert unproved.proof.status == "unavailable"
    with Registry(tmp_path, stand.model.spec, LIMITS) as registry:
        assert registry.list() == (proved, unproved)
