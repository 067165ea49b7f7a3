"""The same on a GPU, or with Triton's interpreter where there is none."""

from __future__ import annotations

import copy

import torch

from adapters.batch.batched import BatchSizes
from adapters.batch.cuda.batch import CudaBatch
from server.engine.seq2seq.model import Seq2SeqModel
from tests.kit import ask, prompts
from tests.server.engine.seq2seq.conftest import MakeFamily
from tests.server.engine.seq2seq.stand import run_all, seq2seq_core


def test_kernels_answer_as_peft_does_alone(seq2seq: MakeFamily, gpu: torch.device) -> None:
    flan = seq2seq("flan")
    stock, sizes = copy.deepcopy(flan.stock).to(gpu), BatchSizes(8, 16)
    model = Seq2SeqModel(stock, name="base", digest="d", sizes=sizes, make_batch=CudaBatch)
    cases = [*zip(("qv", "ff", None, "head"), prompts(5, 9, 3, 1), strict=True)]
    with seq2seq_core(flan, model=model) as core:
        answers = run_all(
            core, [ask(str(i), source, name, max_tokens=4) for i, (name, source) in enumerate(cases)]
        )
    for i, (name, source) in enumerate(cases):
        assert answers[str(i)].tokens == flan.expected(name, source, 4), name
