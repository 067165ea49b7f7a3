"""Law 7: no pickle is ever opened and no foreign code is ever run: nothing in the product could."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for room in ("adapters", "server", "training") for path in (ROOT / room).rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "torch.load", "torch.jit.load", "np.load", "numpy.load", "__import__"}


def _faults(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS:
            yield ast.unparse(node.func)
        elif isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            yield from {ast.unparse(node.value)} - {"False"}


def test_there_are_sources_to_look_at() -> None:
    assert len(SOURCES) > 40


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_can_open_a_pickle_or_run_foreign_code(path: Path) -> None:
    assert list(_faults(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "code", ["import pickle", "from pickle import load", "torch.load(x)", "eval(x)", "f(trust_remote_code=y)"]
)
def test_the_look_would_see_it(code: str) -> None:
    assert list(_faults(ast.parse(code)))
