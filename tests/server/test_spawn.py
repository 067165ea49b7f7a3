"""Server processes for demo, benchmarks and tests, on a stand-in for the server."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from server.spawn import serving, start_server, stop_server

READY = "print('multilora serves base at http://127.0.0.1:1234', flush=True)"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Python code that runs instead of the server; `sys.argv` is the server's."""
    code = tmp_path / "code.py"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S {code} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    return code


def test_the_url_comes_from_the_line_that_says_ready(program: Path, tmp_path: Path) -> None:
    program.write_text(f"import sys, time\nprint(sys.argv[1:])\n{READY}\ntime.sleep(60)")
    process, url = start_server(["--port", "0"], tmp_path / "log")
    assert url == "http://127.0.0.1:1234"
    assert "['-m', 'server.cli.main', 'serve', '--port', '0']" in (tmp_path / "log").read_text()
    assert stop_server(process) == -15


def test_a_server_that_ends_is_an_error_with_its_log(program: Path, tmp_path: Path) -> None:
    program.write_text("import sys\nsys.exit('multilora: no such folder')")
    with pytest.raises(RuntimeError, match="no such folder"):
        start_server([], tmp_path / "log")


def test_a_server_that_is_never_ready_is_killed(program: Path, tmp_path: Path) -> None:
    program.write_text(
        f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    )
    with pytest.raises(RuntimeError, match="did not start"):
        start_server([], tmp_path / "log", seconds=1)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_server_that_ignores_sigterm_is_killed(program: Path, tmp_path: Path) -> None:
    program.write_text(
        f"import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{READY}\ntime.sleep(60)"
    )
    process, _ = start_server([], tmp_path / "log")
    assert stop_server(process, seconds=0.2) == -9


def test_serving_takes_a_free_port_and_ends_with_the_block(program: Path, tmp_path: Path) -> None:
    program.write_text(
        f"import os, sys, time\nprint(os.environ['COLOUR'], sys.argv)\n{READY}\ntime.sleep(60)"
    )
    with serving(["--max-n", "2"], tmp_path / "log", environment={"COLOUR": "green"}) as url:
        assert url.endswith(":1234")
    log = (tmp_path / "log").read_text()
    assert "green" in log
    assert "'--port', '0', '--max-n', '2'" in log
