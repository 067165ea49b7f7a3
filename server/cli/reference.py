"""What of the operator's guide and of the page on the command line comes from the code.

python -m server.cli.reference docs/operations.md docs/cli.md      writes it between its markers

A test fails when the page has others than the code gives.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from adapters.tier import LoadedAdapter
from server.cli.exits import MEANINGS
from server.cli.main import build_parser
from server.cli.serve import choices
from server.engine.stats import EngineStats, MergeStats
from server.metrics import Metrics
from server.settings import ENV_PREFIX, Settings, flags


def settings_table() -> str:
    """Each setting: flag, environment variable, default, meaning."""
    rows = ["| Flag | Environment variable | Default | Meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        words = choices(name).replace("|", ", ")
        meaning = f"{field.description}{f': {words}' if words else ''}"
        flag = f"`--{name.replace('_', '-')}`" if name in flags() else ""
        variable = f"{ENV_PREFIX}{name.upper()}"
        rows.append(f"| {flag} | `{variable}` | {_default(name)} | {meaning} |")
    return "\n".join(rows)


def _default(name: str) -> str:
    field = Settings.model_fields[name]
    if field.default_factory is not None:
        return (field.default_factory.__doc__ or "").rstrip(".")
    if field.annotation is bool:
        return "on" if field.default else "off"
    return "" if field.default in (None, ()) else f"`{field.default}`"


def metrics_table() -> str:
    """Each metric of `/metrics` as Prometheus names it: kind, labels, meaning."""
    metrics = Metrics(_nothing_yet, "base", 1)
    metrics.count("base", "success")
    metrics.tenant_label("default")
    metrics.tenant_prompts.labels("default")
    metrics.tenant_tokens.labels("default")
    metrics.uploads.labels("created")
    metrics.refused_keys.labels("missing")
    metrics.pooled.labels("embed")
    metrics.startup.labels("imports")
    metrics.training_jobs.labels("succeeded")
    metrics.training_running.labels("train")
    rows = ["| Metric | Kind | Labels | Meaning |", "|---|---|---|---|"]
    for family in metrics.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        shown = ", ".join(f"`{label}`" for label in labels)
        rows.append(f"| `{name}` | {family.type} | {shown} | {family.documentation} |")
    return "\n".join(rows)


def _nothing_yet() -> EngineStats:
    return EngineStats(
        running=0,
        waiting=0,
        kv_blocks_used=0,
        kv_blocks_total=0,
        prefix_queries=0,
        prefix_hits=0,
        preemptions=0,
        prompt_tokens=0,
        generated_tokens=0,
        steps=0,
        step_seconds=0.0,
        step_parts={"schedule": 0.0},
        adapters_running=(),
        adapters_waiting=(),
        adapters_device=0,
        adapters_host=0,
        adapter_bytes_device=0,
        adapter_bytes_host=0,
        adapter_budget_bytes=0,
        adapter_loads=0,
        adapter_evictions=0,
        adapter_load_seconds=0.0,
        merge=MergeStats("digest"),
        healthy=True,
        adapters_loaded=(LoadedAdapter("digest", "device", 8, True),),
    )


def commands_help() -> str:
    """What each command says to `--help`; the flags of `serve` are the settings."""
    blocks = []
    for parser in _commands(build_parser()):
        if parser.prog != "multilora serve":
            blocks.append(f"### `{parser.prog}`\n\n```text\n{_help(parser)}\n```")
    return "\n\n".join(blocks)


def _commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Those without commands below them, in order."""
    below = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    if not below:
        yield parser
    for choice in below:
        for command in choice.values():
            yield from _commands(command)


def _help(parser: argparse.ArgumentParser) -> str:
    """The same on every terminal."""
    parser.formatter_class = partial(argparse.HelpFormatter, width=WIDTH)
    return parser.format_help().rstrip()


def exits_table() -> str:
    """Each exit code: what it means."""
    rows = (f"| {code.value} | {meaning} |" for code, meaning in MEANINGS.items())
    return "\n".join(["| Code | Meaning |", "|---|---|", *rows])


WIDTH = 110
Tables = Mapping[str, Callable[[], str]]
TABLES: Tables = {"settings": settings_table, "metrics": metrics_table}
COMMANDS: Tables = {"exits": exits_table, "commands": commands_help}
PAGES = {"cli.md": COMMANDS}
"""Pages that have others than `TABLES`."""


def fill(text: str, tables: Tables = TABLES) -> str:
    """`text` with each table between `<!-- NAME:begin -->` and `<!-- NAME:end -->`.

    Raises:
        ValueError: a pair of markers is missing.
    """
    for name, table in tables.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        parts = re.split(f"{re.escape(begin)}.*?{re.escape(end)}", text, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(f"expected {begin} ... {end} once, found it {len(parts) - 1} times")
        text = f"{parts[0]}{begin}\n{table()}\n{end}{parts[1]}"
    return text


def main(arguments: Sequence[str]) -> None:
    """Rewrite the pages that are named."""
    for page in map(Path, arguments):
        page.write_text(fill(page.read_text(), PAGES.get(page.name, TABLES)))


if __name__ == "__main__":
    main(sys.argv[1:])
