"""`multilora merge`: arguments in, exit code and one line out."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.errors import InvalidAdapter
from server import export
from server.cli.main import main
from server.engine.loading import UnsupportedModel

ARGUMENTS = ["merge", "--model", "m", "--adapter", "a", "--output", "o"]


def test_arguments_reach_the_export(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[object, ...]] = []
    monkeypatch.setattr(export, "export_merged", lambda *given: seen.append(given))

    assert main([*ARGUMENTS, "--dtype", "float16"]) == 0
    assert seen == [("m", Path("a"), Path("o"), "float16")]
    assert capsys.readouterr().out == "wrote o\n"


@pytest.mark.parametrize(
    "error", [UnsupportedModel("no model"), InvalidAdapter("bad tensor"), FileExistsError("not empty")]
)
def test_failures_are_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(*given: object) -> None:
        raise error

    monkeypatch.setattr(export, "export_merged", fail)
    assert main(ARGUMENTS) == 1
    assert capsys.readouterr().err == f"multilora: {error}\n"


@pytest.mark.parametrize("missing", ["--model", "--adapter", "--output"])
def test_all_three_are_required(missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    place = ARGUMENTS.index(missing)
    with pytest.raises(SystemExit) as caught:
        main(ARGUMENTS[:place] + ARGUMENTS[place + 2 :])
    assert caught.value.code == 2
    assert missing in capsys.readouterr().err
