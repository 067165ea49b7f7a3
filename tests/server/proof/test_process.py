"""PEFT's process comes when it is needed, and whatever happens to it is told in one line."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from server.proof import process as module
from server.proof.process import PeftProcess, Unavailable
from server.proof.subject import Subject
from tests.kit import full_logits
from tests.server.proof.stand import Stand
from tests.tiny import peft_model

GENERATES = Subject("decoder", "CAUSAL_LM")
PROMPTS = ((5, 9, 17, 33), (41, 8, 77, 2, 50))


def test_logits_are_those_of_transformers_and_peft(stand: Stand, process: PeftProcess) -> None:
    folder = stand.adapter("plain")
    answer = process.rows(folder, GENERATES, PROMPTS, 2)
    oracle = peft_model(stand.stock, folder)
    for prompt, base, adapted in zip(PROMPTS, answer.base, answer.adapter, strict=True):
        assert torch.allclose(base, full_logits(stand.stock, prompt)[-2:], atol=1e-5)
        assert torch.allclose(adapted, full_logits(oracle, prompt)[-2:], atol=1e-5)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_changes_its_base_changes_nobody_elses(init: str, stand: Stand, process: PeftProcess) -> None:
    before = process.rows(stand.adapter("plain"), GENERATES, PROMPTS, 2)
    process.rows(
        stand.adapter(init, init_lora_weights=init, target_modules=["q_proj"]), GENERATES, PROMPTS, 2
    )
    process.rows(stand.adapter("biased", bias="lora_only", target_modules=["q_proj"]), GENERATES, PROMPTS, 2)
    after = process.rows(stand.adapter("plain"), GENERATES, PROMPTS, 2)
    for first, second in ((before.base, after.base), (before.adapter, after.adapter)):
        assert all(map(torch.equal, first, second))


def test_an_adapter_that_peft_refuses_does_not_end_it(
    stand: Stand, process: PeftProcess, tmp_path: Path
) -> None:
    process.rows(stand.adapter("plain"), GENERATES, PROMPTS, 2)
    running = process.pid
    with pytest.raises(Unavailable, match="PEFT could not run it: "):
        process.rows(tmp_path, GENERATES, PROMPTS, 2)
    assert process.pid == running


def test_one_that_is_killed_midway_is_told_and_replaced(stand: Stand, process: PeftProcess) -> None:
    process.rows(stand.adapter("plain"), GENERATES, PROMPTS, 2)
    doomed = process.pid
    assert doomed is not None
    os.kill(doomed, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (doomed, signal.SIGKILL)).start()
    with pytest.raises(Unavailable, match="the process that runs PEFT ended: "):
        process.rows(stand.adapter("plain"), GENERATES, PROMPTS, 2)
    assert process.pid is None
    assert len(process.rows(stand.adapter("plain"), GENERATES, PROMPTS, 2).base) == 2
    assert process.pid not in (None, doomed)


def test_one_that_hangs_is_killed(stand: Stand, process: PeftProcess) -> None:
    process.rows(stand.adapter("plain"), GENERATES, PROMPTS, 2)
    hung = process.pid
    assert hung is not None
    os.kill(hung, signal.SIGSTOP)
    process.answer_seconds = 0.2
    try:
        with pytest.raises(Unavailable, match="PEFT gave no answer within 0 s"):
            process.rows(stand.adapter("plain"), GENERATES, PROMPTS, 2)
    finally:
        process.answer_seconds = module.ANSWER_SECONDS
    with pytest.raises(ProcessLookupError):
        os.kill(hung, 0)


def test_one_that_is_idle_ends_by_itself(stand: Stand) -> None:
    process = PeftProcess(stand.base, "float32", idle_seconds=0.2)
    process.rows(stand.adapter("plain"), GENERATES, PROMPTS, 2)
    deadline = time.monotonic() + 20
    while process.pid is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.close()
    with pytest.raises(Unavailable, match="the server is shutting down"):
        process.rows(stand.adapter("plain"), GENERATES, PROMPTS, 2)


def test_nothing_is_started_without_peft_or_memory(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    process = PeftProcess(stand.base, "float32")
    monkeypatch.setattr(module, "free_memory", lambda: 100)
    with pytest.raises(
        Unavailable, match=r"a second base, for PEFT, takes about 0\.0 GiB; 0\.0 GiB are free"
    ):
        process.rows(stand.adapter("plain"), GENERATES, PROMPTS, 2)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="PEFT is not installed"):
        process.rows(stand.adapter("plain"), GENERATES, PROMPTS, 2)
    assert process.pid is None


def test_a_base_that_is_gone_is_told(stand: Stand, tmp_path: Path) -> None:
    process = PeftProcess(tmp_path, "float32")
    with pytest.raises(Unavailable, match=r"PEFT could not run it: UnsupportedModel: .*no config\.json"):
        process.rows(stand.adapter("plain"), GENERATES, PROMPTS, 2)
    process.close()
