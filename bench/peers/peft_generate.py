"""PEFT and transformers in process: plain `generate` of the base, and PEFT's own mixed batch.

Run as `python -m bench.peers.peft_generate JOB.json`. It prints a line when ready; for each line
`CASE NEW_TOKENS` on standard input it generates once and prints `{"tokens_per_second": ...}`.
"""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.rounds import WARM, Case, Figures

CASES = ("generate", "mixed")
_WARM_TOKENS = 4


@contextmanager
def peft_cases(job: dict[str, Any], path: Path) -> Iterator[dict[str, Case]]:
    """The cases of one worker process, which lives as long as the `with`.

    Args:
        job: `base`, `adapters` (folders), `dtype`, `batch`, `prompt_tokens`, `new_tokens`, `threads`.
        path: where to write the job for the worker.
    """
    path.write_text(json.dumps(job))
    worker = subprocess.Popen(
        [sys.executable, "-m", "bench.peers.peft_generate", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def answer() -> Any:
        assert worker.stdout is not None
        line = worker.stdout.readline()
        if not line:
            raise RuntimeError(f"the PEFT worker ended with {worker.wait()}")
        return json.loads(line)

    def case(name: str) -> Case:
        def run(number: int) -> Figures:
            assert worker.stdin is not None
            worker.stdin.write(f"{name} {_WARM_TOKENS if number == WARM else job['new_tokens']}\n")
            worker.stdin.flush()
            figures: Figures = answer()
            return figures

        return run

    try:
        answer()
        yield {name: case(name) for name in CASES}
    finally:
        worker.kill()
        worker.wait()


def main(job: dict[str, Any]) -> None:
    """Load everything, then generate as asked."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_pretrained(job["base"], dtype=getattr(torch, job["dtype"])).eval()
    # PEFT replaces modules: its model gets modules of its own over the same weights.
    shared = copy.deepcopy(plain, {id(tensor): tensor for tensor in plain.parameters()})
    folders = job["adapters"]
    mixed = PeftModel.from_pretrained(shared, folders[0], adapter_name="a0", autocast_adapter_dtype=False)
    for index, folder in enumerate(folders[1:], 1):
        mixed.load_adapter(folder, adapter_name=f"a{index}", autocast_adapter_dtype=False)
    mixed.eval()
    names = [f"a{row % len(folders)}" for row in range(job["batch"])]
    models: dict[str, tuple[Any, dict[str, Any]]] = {
        "generate": (plain, {}),
        "mixed": (mixed, {"adapter_names": names}),
    }
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        name, tokens = line.split()
        model, extra = models[name]
        ids = torch.randint(3, plain.config.vocab_size, (job["batch"], job["prompt_tokens"]))
        started = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=int(tokens),
                min_new_tokens=int(tokens),
                do_sample=False,
                pad_token_id=0,
                **extra,
            )
        rate = job["batch"] * int(tokens) / (time.perf_counter() - started)
        print(json.dumps({"tokens_per_second": rate}), flush=True)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    main(json.loads(Path(sys.argv[1]).read_text()))
