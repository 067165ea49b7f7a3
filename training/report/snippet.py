"""The lines of Python with which plain PEFT loads a result."""

from __future__ import annotations

import json
from pathlib import Path

from training.base import BASE_NAME
from training.events import Evaluated
from training.report.origin import Origin

_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
}
_GENERATIVE = ("CAUSAL_LM", "SEQ_2_SEQ_LM")


def loading(folder: Path, origin: Origin, found: Evaluated | None) -> str:
    """Python that loads the adapter in `folder`; for a task that generates, it also asks for an answer."""
    spec = origin.spec
    name = _CLASSES[spec.task]
    quantized = spec.lora.method == "qlora"
    imports = [name, "AutoTokenizer", *(["BitsAndBytesConfig"] if quantized else [])]
    options = [f"dtype=torch.{spec.precision}"]
    if quantized:
        compute = f"bnb_4bit_compute_dtype=torch.{spec.precision}"
        nf4 = f'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", {compute})'
        options.append(f"quantization_config={nf4}")
    if spec.task not in _GENERATIVE:
        labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        options.append(f"num_labels={len(labels)}")
    shipped = origin.base == BASE_NAME
    lines = [
        "import torch",
        "from peft import PeftModel",
        f"from transformers import {', '.join(sorted(imports))}",
        *(["from training.base import MODEL_DIR as base"] if shipped else [f"\nbase = {origin.base!r}"]),
        "",
        "tokenizer = AutoTokenizer.from_pretrained(base)",
        f"model = {name}.from_pretrained(base, {', '.join(options)})",
        f"model = PeftModel.from_pretrained(model, {json.dumps(f'path/to/{folder.resolve().name}')}).eval()",
    ]
    if spec.task in _GENERATIVE:
        prompt = found.samples[0].prompt if found is not None and found.samples else "Hello"
        lines += [
            f'inputs = tokenizer({prompt!r}, return_tensors="pt").to(model.device)',
            "answer = model.generate(**inputs, max_new_tokens=64)[0]",
            "print(tokenizer.decode(answer, skip_special_tokens=True))",
        ]
    return "\n".join(lines)
