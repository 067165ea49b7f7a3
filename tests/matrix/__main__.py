"""`python -m tests.matrix [FAMILY ...]`: measure the matrix and write its tables into `docs/variants.md`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers.utils import logging

from tests.matrix.cells import measure
from tests.matrix.families import FAMILIES
from tests.matrix.page import PAGE, fill
from tests.matrix.results import read_results, write_results
from tests.matrix.variants import VARIANTS


def main(arguments: list[str] | None = None) -> int:
    """Measure the families that are named, or all; the exit code is 1 if a cell is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("family", nargs="*", choices=[[], *FAMILIES], help="default: all")
    names = parser.parse_args(arguments).family or [*FAMILIES]
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    results = read_results()
    failed = []
    for name in names:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(name, VARIANTS, Path(folder))
        write_results(results)
        failed += [f"{name}, {variant}: {cell}" for variant, cell in results[name].items() if not cell.holds]
        print(f"{name}: {time.perf_counter() - started:.1f} seconds", flush=True)
    PAGE.write_text(fill(PAGE.read_text(), read_results()))
    print("\n".join(failed) or f"wrote {PAGE}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
