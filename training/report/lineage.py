"""The file that tells the registry where an adapter comes from; see `adapters/registry/lineage.py`."""

from __future__ import annotations

import json
import math
from pathlib import Path

from adapters.registry.lineage import LINEAGE_FILE, UNQUANTIZED, lineage_object, parse_lineage
from adapters.registry.records import DataFile, Lineage
from training.report.curves import Curves
from training.report.origin import Origin, evaluation, figures


def write_lineage(folder: Path, origin: Origin, curves: Curves) -> None:
    """Write `lineage.json` beside the adapter's files.

    Raises:
        InvalidAdapter: something in `origin` that the registry would refuse, such as a digest that is none.
    """
    found = evaluation(origin, curves)
    scores = {} if found is None else figures(found)
    if curves.finished is not None:
        scores["training_loss"] = curves.finished.loss
    lineage = Lineage(
        parent=origin.parent,
        parent_digest=origin.parent_digest,
        job=origin.job,
        data=tuple(DataFile(name, sha256) for name, sha256 in origin.files),
        scores=tuple((name, score) for name, score in scores.items() if math.isfinite(score)),
    )
    quantization = "nf4" if origin.spec.lora.method == "qlora" else UNQUANTIZED
    written = {"quantization": quantization, **lineage_object(lineage)}
    parse_lineage(written)
    (folder / LINEAGE_FILE).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
