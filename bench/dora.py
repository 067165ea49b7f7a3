"""What DoRA's magnitudes cost in a mixed batch: the decode step in process, of LoRA and of DoRA adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.child import run_child
from bench.floor import time_decode
from bench.rounds import Case, Figures, Rounds, run_rounds
from bench.setting import Bench

ADAPTERS = 8
_ADAPTER_BYTES = 1 << 32
LORA, DORA, BOTH = "8 LoRA adapters", "8 DoRA adapters", "4 LoRA and 4 DoRA adapters"
KINDS: dict[str, list[str]] = {"base": [], LORA: ["lora"], DORA: ["dora"], BOTH: ["lora", "dora"]}


def measure_dora(bench: Bench) -> Rounds:
    """Each case has one request for each of `ADAPTERS` adapters, or as many of the base."""
    job = {
        "settings": {
            "model": str(bench.base),
            "dtype": bench.dtype,
            "data_dir": str(bench.folder / "data-dora"),
        },
        "rank": bench.rank,
        "prompt_tokens": bench.prompt_tokens,
        "vocabulary": bench.vocabulary,
        "repeats": bench.repeats,
    }
    return Rounds(**run_child("dora", job, bench.folder))


def digests(kinds: Sequence[str]) -> list[str | None]:
    """Of the adapters of a case, evenly of these kinds; None is the base."""
    if not kinds:
        return [None]
    return [f"{kinds[number % len(kinds)]}-{number}" for number in range(ADAPTERS)]


def inside(job: dict[str, Any]) -> dict[str, Any]:
    """The rounds, as a dictionary; runs in the child."""
    from adapters.residency import Residency
    from server.engine.core import EngineCore
    from server.launch import load
    from server.settings import Settings

    settings = {**job["settings"], "data_dir": Path(job["settings"]["data_dir"])}
    loaded = load(Settings(**settings))
    model = loaded.model
    residency = Residency(
        lambda digest: random_adapter(model.spec.linears, job["rank"], digest),
        model.batch.place,
        model.device,
        _ADAPTER_BYTES,
        _ADAPTER_BYTES,
    )
    core = EngineCore(model, loaded.tokenizer, residency, loaded.core.config, frozenset())

    def decode(kinds: Sequence[str]) -> Case:
        def run(number: int) -> Figures:
            return time_decode(
                core, ADAPTERS, job["prompt_tokens"], job["vocabulary"], number, digests(kinds)
            )

        return run

    return asdict(run_rounds({name: decode(kinds) for name, kinds in KINDS.items()}, job["repeats"]))


def random_adapter(linears: Any, rank: int, digest: str) -> Any:
    """`AdapterWeights` on all of `linears` but the head, in bfloat16; with magnitudes near 1 for `dora-*`."""
    import torch

    from adapters.delta import AdapterWeights, ModuleDelta

    generator = torch.Generator().manual_seed(sum(digest.encode()))

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator)

    deltas = {
        name: ModuleDelta(
            (normal(rank, shape.in_features) / shape.in_features**0.5).bfloat16(),
            (normal(shape.out_features, rank) * 0.02).bfloat16(),
            2.0,
            1 + normal(shape.out_features) / 10 if digest.startswith("dora") else None,
        )
        for name, shape in linears.items()
        if name != "lm_head"
    }
    return AdapterWeights(digest, deltas)
