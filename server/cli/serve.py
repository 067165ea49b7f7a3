"""`multilora serve`: its flags are the fields of `Settings`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Literal, get_args, get_origin

from pydantic import ValidationError

from server.cli.threads import set_threads
from server.settings import ENV_PREFIX, Settings, flags, unknown_variables


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag for each setting, and what the command does."""
    for name, field in flags().items():
        flag = f"--{name.replace('_', '-')}"
        text = (field.description or "").replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
            )
        elif get_origin(field.annotation) is tuple:
            metavar = "NAME=PATH" if name == "adapter" else "NAME"
            parser.add_argument(flag, action="append", metavar=metavar, default=argparse.SUPPRESS, help=text)
        else:
            shown = "" if field.default is None or field.is_required() else f" (default: {field.default})"
            if field.default_factory is not None or "default:" in text:
                shown = ""
            parser.add_argument(
                flag, default=argparse.SUPPRESS, metavar=choices(name) or name.upper(), help=text + shown
            )
    parser.set_defaults(run=run)


def choices(name: str) -> str:
    """`auto|cpu|cuda` for a setting that takes one of a few words, else nothing."""
    annotation = Settings.model_fields[name].annotation
    return "|".join(get_args(annotation)) if get_origin(annotation) is Literal else ""


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal. Returns 0 after a drain, 1 when the server can't start, 2 for a wrong setting."""
    given = {name: value for name, value in vars(arguments).items() if name in flags()}
    for variable in unknown_variables(os.environ):
        print(f"multilora: warning: {variable} is ignored: there is no such setting", file=sys.stderr)
    try:
        settings = Settings(**given)
    except ValidationError as error:
        for problem in error.errors():
            name = str(problem["loc"][0]) if problem["loc"] else ""
            setting = f"--{name.replace('_', '-')}" if name in flags() else f"{ENV_PREFIX}{name.upper()}"
            said = problem["msg"].removeprefix("Value error, ")
            print(f"multilora: {setting}: {said}", file=sys.stderr)
        return 2
    set_threads(settings.threads)
    from server import launch  # torch reads the thread settings when it is imported

    try:
        launch.serve(settings)
    except launch.StartError as error:
        print(f"multilora: {error}", file=sys.stderr)
        return 1
    return 0


VERBS = {"serve": add_flags}
