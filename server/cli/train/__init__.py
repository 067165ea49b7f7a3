"""`multilora train`: from a file of examples to an adapter, on this machine.

Each sub-verb is a module of this folder with `add_flags(parser)`, which adds its flags and sets `run`. It is
imported only when it is asked for; what is heavy, it imports in its functions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Any

SUBVERBS = {
    "check": "find every error in a file of training examples",
    "preview": "show rows token by token, with what of them is trained",
    "run": "train an adapter; Ctrl-C saves, and --resume goes on",
    "sweep": "train all combinations of ranks, alphas and rates together, and compare them",
    "plan": "show what a run would be: choices with reasons, memory, time",
}
"""Each sub-verb, which is also the name of its module, and what it is for."""


class _Late(argparse.ArgumentParser):
    """Gets its flags from its module when it is used first."""

    _module: str | None = None

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        self._fill()
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        self._fill()
        return super().format_help()

    def _fill(self) -> None:
        module, self._module = self._module, None
        if module is not None:
            import_module(f"server.cli.train.{module}").add_flags(self)


def add_train(parser: argparse.ArgumentParser) -> None:
    verbs: Any = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Late)
    for verb, text in SUBVERBS.items():
        description = text[0].upper() + text[1:] + "."
        verbs.add_parser(verb, help=text, description=description, allow_abbrev=False)._module = verb


VERBS = {"train": add_train}
