"""`multilora combine`: write the combination of several LoRA adapters as one PEFT folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags, and what the command does."""
    parser.add_argument(
        "output", metavar="OUT", type=Path, help="folder to write; must not exist or be empty"
    )
    parser.add_argument(
        "adapters",
        metavar="ADAPTER[:WEIGHT]",
        nargs="+",
        help="a PEFT folder, or the name of a published or shipped adapter, and its weight (1)",
    )
    parser.add_argument(
        "--method",
        default="linear",
        help="linear, cat, svd, ties, dare_linear, dare_ties, magnitude_prune; the last four also as ..._svd",
    )
    parser.add_argument("--density", type=float, help="share of the values that pruning keeps")
    parser.add_argument("--rank", type=int, help="rank of the result, for svd and ..._svd")
    parser.add_argument("--seed", type=int, default=0, help="of what dare_... drops by chance")
    parser.add_argument("--majority-sign", default="total", help="how ties elects: total or frequency")
    parser.add_argument("--data-dir", type=Path, help="the server's, where published adapters are")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Combine and save. Returns 0, or 1 with the reason printed."""
    from adapters.errors import AdapterError
    from training.combine import CombineError, How, combine

    try:
        how = How(
            arguments.method, arguments.density, arguments.rank, arguments.seed, arguments.majority_sign
        )
        inputs = [parse_input(text, arguments.data_dir) for text in arguments.adapters]
        combine(inputs, arguments.output, how)
    except (CombineError, AdapterError, OSError) as error:
        print(f"multilora: {error}", file=sys.stderr)
        return 1
    print(f"wrote {arguments.output}")
    return 0


def parse_input(text: str, data_dir: Path | None = None) -> tuple[Path, float]:
    """`FOLDER:0.5` or `NAME`: the folder, and the weight, 1 unless there is one.

    Raises:
        AdapterNotFound: nothing has this name.
    """
    place, colon, number = text.rpartition(":")
    try:
        place, weight = (place, float(number)) if colon else (text, 1.0)
    except ValueError:  # a colon of the path
        place, weight = text, 1.0
    return _folder(place, data_dir), weight


def _folder(place: str, data_dir: Path | None) -> Path:
    from adapters.errors import AdapterNotFound
    from training.base import shipped_adapters

    if Path(place).is_dir():
        return Path(place)
    if data_dir is not None and (data_dir / "registry.sqlite3").is_file():
        published = _published(place, data_dir)
        if published is not None:
            return published
    if place in shipped_adapters():
        return shipped_adapters()[place]
    where = "" if data_dir is None else f", nor published in {data_dir}"
    raise AdapterNotFound(f"{place}: no such folder, and no shipped adapter{where}")


def _published(ref: str, data_dir: Path) -> Path | None:
    """The files of `name` (its newest version), `name@3` or `tenant/...`; a server may run meanwhile."""
    from adapters.registry.catalog import Catalog

    catalog = Catalog(data_dir / "registry.sqlite3")
    try:
        found = [version for version in catalog.live() if ref in (version.full_name, version.ref)]
    finally:
        catalog.close()
    return data_dir / "adapters" / found[-1].digest if found else None


VERBS = {"combine": add_flags}
