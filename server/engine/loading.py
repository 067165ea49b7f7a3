"""From a path or hub id to a checked, frozen base model."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from adapters.base import BaseKind
from adapters.batch.linear import has_fast_bfloat16
from adapters.quantized import Quantization, hold_quantized

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_DYNAMIC_ROPE = ("dynamic", "longrope")
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_QUANTIZERS = ("bitsandbytes", "accelerate")
_SEQ2SEQ_TYPES = ("t5", "mt5", "umt5")
_T5_SOURCE = 512  # tokens that T5 was trained with, where a config does not say
_ROBERTA_TYPES = ("roberta", "xlm-roberta", "camembert")
_ENCODER_TYPES = ("bert", *_ROBERTA_TYPES, "deberta", "deberta-v2", "distilbert", "electra")


class UnsupportedModel(Exception):
    """This base can't be served, and why, in one line."""


def resolve_folder(source: str) -> Path:
    """The folder of a local path, or of a hub id after downloading its configuration and safetensors."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UnsupportedModel(f"--model {source}: there is no such folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub client raises many kinds; all mean the same to the operator
        reason = str(error).strip().splitlines()[0]
        raise UnsupportedModel(
            f"--model {source}: no such folder, and the hub did not give it: {reason}"
        ) from error


def base_digest(folder: Path) -> str:
    """Hex SHA-256 over config and weights: the identity of a base, whatever its path or load type."""
    config = json.loads((folder / "config.json").read_text())
    for volatile in ("_name_or_path", "transformers_version", "torch_dtype", "dtype"):
        config.pop(volatile, None)
    hasher = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    files = sorted(folder.glob("*.safetensors"))
    with ThreadPoolExecutor(4) as pool:
        for path, digest in zip(files, pool.map(_file_digest, files), strict=True):
            hasher.update(path.name.encode() + b"\0" + digest)
    return hasher.hexdigest()


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UnsupportedModel("--device cuda: torch sees no GPU here")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def choose_dtype(name: str, config: Any, device: torch.device) -> torch.dtype:
    """`auto` is the checkpoint's own type, save what a CPU is slow at: float16, and emulated bfloat16.

    T5 was trained in bfloat16, and its activations grow too large for float16.
    """
    seq2seq = base_kind(config) == "encoder-decoder"
    if seq2seq and name == "float16":
        raise UnsupportedModel(
            f"--dtype float16: {config.model_type} overflows in it; use bfloat16 or float32"
        )
    if name != "auto":
        return DTYPES[name]
    stored = getattr(config, "dtype", None) or torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if stored == torch.float32 or seq2seq else stored
    half = stored in (torch.bfloat16, torch.float16)
    return torch.bfloat16 if half and has_fast_bfloat16() else torch.float32


def load_config(folder: Path) -> Any:
    """The model's configuration, refused where this server would answer wrongly."""
    if (folder / "adapter_config.json").is_file():
        raise UnsupportedModel(f"{folder} is an adapter, not a base model; pass it with --adapter NAME=PATH")
    if not (folder / "config.json").is_file():
        raise UnsupportedModel(f"{folder}: no config.json; is this a model folder?")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError) as error:
        raise UnsupportedModel(f"{folder}: {str(error).splitlines()[0]}") from error
    if not list(folder.glob("*.safetensors")):
        raise UnsupportedModel(
            f"{folder}: no *.safetensors; pickle checkpoints are never opened, convert it first"
        )
    refuse_unsupported(config)
    return config


def base_kind(config: Any) -> BaseKind:
    """What a base with this configuration does; see `BaseSpec`."""
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    encodes = config.model_type in _ENCODER_TYPES and not getattr(config, "is_decoder", False)
    return "encoder" if encodes else "decoder"


def refuse_unsupported(config: Any) -> None:
    """Raise `UnsupportedModel` for what no engine here can express."""
    if config.is_encoder_decoder and config.model_type not in _SEQ2SEQ_TYPES:
        raise UnsupportedModel(
            f"{config.model_type} is an encoder-decoder model; of these only the T5 family is served "
            f"({', '.join(_SEQ2SEQ_TYPES)})"
        )
    unknown = set(getattr(config, "layer_types", None) or ()) - _KNOWN_LAYERS
    if unknown:
        raise UnsupportedModel(
            f"{config.model_type} has layers of type {sorted(unknown)}, which are not served yet"
        )
    stored_quantization(config)


def stored_quantization(config: Any) -> Quantization | None:
    """How the checkpoint itself is quantised.

    Raises:
        UnsupportedModel: in a way that is not served.
    """
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    fields = found if isinstance(found, dict) else found.to_dict()
    method = str(getattr(fields.get("quant_method"), "value", fields.get("quant_method")))
    if method != "bitsandbytes" and not (fields.get("load_in_4bit") or fields.get("load_in_8bit")):
        raise UnsupportedModel(
            f"this checkpoint is quantised with {method}; only bitsandbytes' nf4, fp4 and int8 are served: "
            "take the checkpoint that is not quantised, with --quantization nf4"
        )
    if fields.get("load_in_8bit"):
        return "int8"
    return "nf4" if fields.get("bnb_4bit_quant_type") == "nf4" else "fp4"


def choose_quantization(name: str, config: Any) -> Quantization | None:
    """What `--quantization name` means for this checkpoint, which may be quantised already.

    Raises:
        UnsupportedModel: the two contradict each other, or there is nothing to quantise with.
    """
    stored = stored_quantization(config)
    asked = cast(Quantization, name) if name != "none" else None
    if stored is not None and asked not in (None, stored):
        raise UnsupportedModel(
            f"--quantization {asked}: this checkpoint is quantised already, as {stored}; leave the option out"
        )
    chosen = stored or asked
    if chosen is not None and base_kind(config) == "encoder":
        raise UnsupportedModel(
            f"{config.model_type} is an encoder, of which none is served quantised; take the checkpoint as "
            "it was trained, without --quantization"
        )
    if chosen is not None:
        missing = [name for name in _QUANTIZERS if importlib.util.find_spec(name) is None]
        if missing:
            raise UnsupportedModel(
                f"a base quantised as {chosen} needs {' and '.join(missing)}: pip install 'multilora[quant]'"
            )
    return chosen


def context_length(config: Any) -> int:
    """Most tokens that the model may see, from its configuration.

    Some rotary scalings change with the longest sequence of the batch: a row would depend on its
    neighbours. Such models are served up to the length at which the scaling begins. Of an encoder-decoder
    model it is source and target together, each as long as in training: its positions are relative, so that
    longer ones are possible. RoBERTa's positions begin behind that of the padding token.
    """
    if base_kind(config) == "encoder-decoder":
        return 2 * int(getattr(config, "n_positions", 0) or _T5_SOURCE)
    length = int(getattr(config, "max_position_embeddings", 0) or 2048)
    if config.model_type in _ROBERTA_TYPES:
        return length - int(config.pad_token_id) - 1
    rope = getattr(config, "rope_parameters", None) or {}
    variants = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    for variant in variants:
        if variant.get("rope_type") in _DYNAMIC_ROPE:
            original = variant.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            length = min(length, int(original or length))
    return length


_AUTO_CLASSES: dict[BaseKind, Any] = {
    "decoder": AutoModelForCausalLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
}


def load_model(
    folder: Path,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization | None = None,
) -> PreTrainedModel:
    """The model in evaluation mode with stock attention, frozen.

    `quantization`: what `choose_quantization` said; the output head stays as it is.

    Raises:
        UnsupportedModel: the weights can't be read, or are not all there.
    """
    if not hasattr(config, "use_cache"):
        config.use_cache = False
    auto_class = _AUTO_CLASSES[base_kind(config)]
    if quantization is None:
        model, missing = read_checkpoint(auto_class, folder, config, dtype)
        model = model.to(device)
    else:
        # Quantised tensor by tensor where it will stay, so that it is never there in full.
        options = quantizing(quantization, config, dtype, device)
        model, missing = read_checkpoint(auto_class, folder, config, dtype, **options)
        hold_quantized(model, dtype)
    refuse_missing(folder, missing)
    model.eval().requires_grad_(False)
    return model


def quantizing(
    quantization: Quantization, config: Any, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """What `from_pretrained` takes for it: transformers' own defaults, but for the type computed in."""
    options: dict[str, Any] = {"device_map": {"": device}}
    if stored_quantization(config) is None:
        four = quantization != "int8"
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=four,
            load_in_8bit=not four,
            bnb_4bit_quant_type=quantization if four else "nf4",
            bnb_4bit_compute_dtype=dtype,
        )
    return options


def read_checkpoint(
    auto_class: Any, folder: Path, config: Any, dtype: torch.dtype, **options: Any
) -> tuple[PreTrainedModel, frozenset[str]]:
    """The checkpoint in the class that `auto_class` chooses, and which of its parameters it does not have.

    `options`: what `from_pretrained` takes besides.

    Raises:
        UnsupportedModel: it can't be read.
    """
    try:
        model, found = auto_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except (ValueError, OSError, RuntimeError, KeyError, SafetensorError) as error:
        raise UnsupportedModel(f"{folder}: {str(error).strip().splitlines()[0]}") from error
    return model, frozenset(found["missing_keys"])


def refuse_missing(folder: Path, missing: frozenset[str]) -> None:
    """Raise `UnsupportedModel` if there are any: they would be random numbers."""
    if missing:
        raise UnsupportedModel(f"{folder}: its weights lack {len(missing)} tensors, such as {min(missing)}")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer beside the model."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise UnsupportedModel(
            f"{folder}: its tokenizer can't be loaded: {str(error).splitlines()[0]}"
        ) from error


def end_tokens(model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """The ids that end an answer, from the generation config, the config and the tokenizer."""
    ids: set[int] = set()
    sources = (getattr(model, "generation_config", None), model.config, tokenizer)
    for value in (getattr(source, "eos_token_id", None) for source in sources):
        if value is not None:
            ids.update(value if isinstance(value, list | tuple) else [value])
    return frozenset(ids)
