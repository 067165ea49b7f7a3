"""Exit codes of the commands, and the error that carries one. Scripts rely on them: see docs/cli.md."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """What a command ends with."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_ALLOWED = 4
    NOT_FOUND = 5
    CONFLICT = 6
    TRY_LATER = 75
    INTERRUPTED = 130
    BROKEN_PIPE = 141


MEANINGS = {
    Exit.DONE: "done",
    Exit.FAILED: "refused by the server, or failed; the reason is one line on stderr",
    Exit.USAGE: "wrong command line",
    Exit.UNREACHABLE: "the server can't be reached, or the connection broke",
    Exit.NOT_ALLOWED: "not allowed: the key is missing, wrong or lacks a scope, or a quota is used up",
    Exit.NOT_FOUND: "no such adapter, version, alias, tenant, key, file or job",
    Exit.CONFLICT: "contradicts what is stored, such as a revision that has changed since",
    Exit.TRY_LATER: "the server is busy, over a rate or stopping: try again later",
    Exit.INTERRUPTED: "interrupted with Ctrl-C",
    Exit.BROKEN_PIPE: "whoever read the output has gone",
}


class Failed(Exception):
    """Ends the command: `str(error)` is one line for its user.

    Attributes:
        code: what the command exits with.
        passing: the same call may succeed in a moment.
    """

    def __init__(self, message: str, code: Exit = Exit.FAILED, *, passing: bool = False) -> None:
        super().__init__(message)
        self.code, self.passing = code, passing
