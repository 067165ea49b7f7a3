"""What `multilora check` finds: all that an adapter does on a base, and how far it is from PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adapters.base import BaseKind
from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.checkpoint.config import parse_config
from adapters.checkpoint.derived import Derived
from adapters.checkpoint.digest import content_digest
from adapters.checkpoint.labels import labels_beside, parse_labels
from adapters.checkpoint.plan import plan_adapter
from adapters.checkpoint.reader import AdapterReader
from adapters.checkpoint.safetensors_file import read_header
from adapters.checkpoint.values import check_values
from adapters.delta import AdapterWeights, EmbeddingDelta, ModuleDelta
from adapters.errors import InvalidAdapter
from adapters.limits import AdapterLimits
from adapters.weights import base_weights
from server.engine import loading
from server.engine.base import ServedModel
from server.engine.encoder.loading import load_encoder
from server.engine.encoder.model import EncoderModel
from server.engine.seq2seq.model import Seq2SeqModel
from server.proof.process import PeftProcess
from server.proof.prover import Prover

_MODELS: dict[BaseKind, Any] = {
    "decoder": ServedModel,
    "encoder": EncoderModel,
    "encoder-decoder": Seq2SeqModel,
}
_COLUMNS = ("what", "module", "count", "rank", "scale", "beside A and B")


def check_adapter(source: str, adapter: Path, dtype: str = "auto") -> dict[str, Any]:
    """The report, as JSON has it. A proof that fails is in it, with the status `refused`.

    Args:
        source: the base, a folder or a hub id. `adapter`: a folder as PEFT saves it.
        dtype: what to serve and to compare in.

    Raises:
        UnsupportedModel, AdapterError: one of the two can't be served; the message says why.
        OSError: a file can't be read.
    """
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (adapter / file).is_file():
            raise InvalidAdapter(f"{adapter} holds no {file}")
    folder = loading.resolve_folder(source)
    model, tokenizer, kind = _load(source, folder, dtype)
    text, weights = (adapter / CONFIG_FILE).read_bytes(), adapter / WEIGHTS_FILE
    size = weights.stat().st_size
    limits = AdapterLimits(max_rank=2**20, max_file_bytes=size)
    labels = labels_beside(adapter, text)
    named = parse_labels(labels) if labels is not None else ()
    plan = plan_adapter(parse_config(text, limits), read_header(weights, limits), model.spec)
    digest = content_digest(plan.config, weights, limits, named)
    derived = Derived(base_weights(model.model, model.linears))
    read = AdapterReader(plan, weights, derived).read(digest, named, limits.max_rank)
    check_values(read, model.dtype)
    process = PeftProcess(folder, kind, model.spec.quantization)
    try:
        proof = asdict(Prover(model, tokenizer, process)(adapter, read))
    except InvalidAdapter as error:
        proof = {"status": "refused", "reason": str(error)}
    finally:
        process.close()
    return {
        "adapter": str(adapter),
        "digest": digest,
        "base": source,
        "base_digest": model.spec.digest,
        "dtype": kind,
        "variant": plan.config.variant,
        "task": read.task,
        "labels": list(read.labels),
        "invocation": list(read.invocation),
        "size": size,
        "parameters": plan.parameters,
        "modules": [*_modules(read)],
        "proof": proof,
    }


def as_table(report: dict[str, Any]) -> str:
    """The same for a terminal."""
    rows = [_COLUMNS, *(_row(module) for module in report["modules"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    head = [
        f"{report['adapter']} on {report['base']} in {report['dtype']}",
        f"{report['variant']}, {report['task'] or 'no task'}, {report['parameters']} numbers, "
        f"{report['size'] / 2**20:.2f} MiB, digest {report['digest'][:12]}",
    ]
    if report["labels"]:
        head.append(f"labels: {', '.join(report['labels'])}")
    if report["invocation"]:
        head.append(f"acts from its invocation tokens on: {' '.join(map(str, report['invocation']))}")
    return "\n".join([*head, "", *table, "", _verdict(report["proof"])])


def _load(source: str, folder: Path, dtype: str) -> tuple[Any, Any, str]:
    """The base in serving form on the CPU, as PEFT's side is; its tokenizer, and the name of its type."""
    config = loading.load_config(folder)
    device = loading.choose_device("cpu")
    kind = loading.base_kind(config)
    chosen = loading.choose_dtype(dtype, config, device)
    stock: Any
    if kind == "encoder":
        stock = load_encoder(folder, config, chosen, device)
    else:
        stock = loading.load_model(
            folder, config, chosen, device, loading.choose_quantization("none", config)
        )
    tokenizer = loading.load_tokenizer(folder)
    name = source.rstrip("/").rpartition("/")[2]
    model = _MODELS[kind](stock, name=name, digest=loading.base_digest(folder), source=source)
    return model, tokenizer, next(word for word, known in loading.DTYPES.items() if known == model.dtype)


def _modules(adapter: AdapterWeights) -> Iterator[dict[str, Any]]:
    """What there is, modules of one name in all layers together."""
    groups: dict[tuple[str, str], list[tuple[int | None, float | None, tuple[str, ...]]]] = {}
    for name, delta in adapter.deltas.items():
        groups.setdefault(("linear", _last(name)), []).append((delta.rank, delta.scale, _terms(delta)))
    for name, table in adapter.embeddings.items():
        rank = None if table.a is None else table.a.shape[0]
        groups.setdefault(("embedding", _last(name)), []).append((rank, table.scale, _rows(table)))
    for name, experts in adapter.experts.items():
        groups.setdefault(("experts", _last(name)), []).append((experts.a.shape[1], experts.scale, ()))
    for name, parameters in adapter.replaced.items():
        groups.setdefault(("replaced", _last(name)), []).append((None, None, tuple(parameters)))
    for name, tensor in adapter.head.items():
        groups.setdefault(("head", name), []).append((None, None, ("x".join(map(str, tensor.shape)),)))
    for (what, module), found in groups.items():
        ranks, scales, terms = zip(*found, strict=True)
        yield {
            "what": what,
            "module": module,
            "count": len(found),
            "ranks": sorted({rank for rank in ranks if rank is not None}),
            "scales": sorted({scale for scale in scales if scale is not None}),
            "beside": sorted({term for each in terms for term in each}),
        }


def _terms(delta: ModuleDelta) -> tuple[str, ...]:
    terms = {"magnitude": delta.magnitude, "shift": delta.shift, "input scale": delta.input_scale}
    return tuple(name for name, tensor in terms.items() if tensor is not None)


def _rows(table: EmbeddingDelta) -> tuple[str, ...]:
    return () if table.ids is None else (f"{len(table.ids)} trained tokens",)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _row(module: dict[str, Any]) -> tuple[str, ...]:
    ranks = ", ".join(map(str, module["ranks"])) or "-"
    scales = ", ".join(f"{scale:.4g}" for scale in module["scales"]) or "-"
    beside = ", ".join(module["beside"]) or "-"
    return module["what"], module["module"], str(module["count"]), ranks, scales, beside


def _verdict(proof: dict[str, Any]) -> str:
    if proof["status"] == "proved":
        kl = proof["kl_from_base"]
        moved = "" if kl is None else f", {kl:.3g} nats from the base"
        return f"proved: at most {proof['max_logit_difference']:.3g} off PEFT{moved}"
    return f"{proof['status'].replace('_', ' ')}: {proof['reason']}"
