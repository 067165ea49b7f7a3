"""PEFT and transformers in process: plain `generate` of the base, and PEFT's own mixed batch.

Run as `python -m bench.peers.peft_generate JOB.json`; prints one JSON line.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any


def main(job: dict[str, Any]) -> dict[str, list[float]]:
    """Generated tokens per second of each repeat, by measure."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    dtype = getattr(torch, job["dtype"])
    model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=dtype).eval()
    batch, prompt, new = job["batch"], job["prompt_tokens"], job["new_tokens"]
    ids = torch.randint(3, model.config.vocab_size, (batch, prompt))

    def rate(run: Any, **extra: Any) -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            run.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                **extra,
            )
        return float(batch * new / (time.perf_counter() - started))

    rate(model)
    base = [rate(model) for _ in range(job["repeats"])]
    folders = [Path(folder) for folder in job["adapters"]]
    mixed = PeftModel.from_pretrained(model, str(folders[0]), adapter_name="a0", autocast_adapter_dtype=False)
    for index, folder in enumerate(folders[1:], 1):
        mixed.load_adapter(str(folder), adapter_name=f"a{index}", autocast_adapter_dtype=False)
    mixed.eval()
    names = [f"a{row % len(folders)}" for row in range(batch)]
    rate(mixed, adapter_names=names)
    return {
        "generate": base,
        "mixed": [rate(mixed, adapter_names=names) for _ in range(job["repeats"])],
    }


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
