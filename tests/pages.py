"""The project's pages as tests read them: code blocks, commands, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Curl:
    """One curl command of a page: what it would send."""

    method: str
    path: str
    body: str | None


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of one language."""
    return [code for found, code in _BLOCK.findall(text) if found == language]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command in the bash blocks."""
    for block in blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


def curls(text: str) -> Iterator[Curl]:
    for words in commands(text):
        if words[0] == "curl":
            url = next(word for word in words if word.startswith("http://127.0.0.1:8000/"))
            body = words[words.index("-d") + 1] if "-d" in words else None
            method = "POST" if body or "-F" in words else "GET"
            if "-X" in words:
                method = words[words.index("-X") + 1]
            yield Curl(method, url.removeprefix("http://127.0.0.1:8000"), body)


def links(text: str) -> list[str]:
    """The targets of links to files of this repository."""
    return [target for target in _LINK.findall(text) if "://" not in target]
