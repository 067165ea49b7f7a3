"""Starting and ending vLLM's server, on a stand-in."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import httpx
import pytest

from bench.peers.vllm_environment import PeerUnavailable
from bench.peers.vllm_server import vllm_serving

SERVER = """#!{python}
import http.server, json, os, subprocess, sys
arguments = sys.argv[1:]
worker = subprocess.Popen(["sleep", "600"])
keep = ("VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS", "LD_PRELOAD")
facts = {{"arguments": arguments, "worker": worker.pid, "env": {{k: os.environ.get(k) for k in keep}}}}

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(facts).encode())

http.server.HTTPServer(("127.0.0.1", int(arguments[arguments.index("--port") + 1])), Handler).serve_forever()
"""


def stand_in(folder: Path, text: str) -> Path:
    path = folder / "bin" / "python"
    path.parent.mkdir()
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_the_server_and_its_workers_live_as_long_as_the_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    python = stand_in(tmp_path, SERVER.format(python=sys.executable))
    adapters = {"a0": tmp_path / "x", "a1": tmp_path / "y"}
    with vllm_serving(python, tmp_path, adapters, 16, "float32", tmp_path / "log") as url:
        facts = json.loads(httpx.get(f"{url}/facts").text)

    words = facts["arguments"]
    assert words[words.index("--max-loras") + 1] == "2"
    assert words[words.index("--max-lora-rank") + 1] == "16"
    assert words[-2:] == [f"a0={tmp_path / 'x'}", f"a1={tmp_path / 'y'}"]
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert facts["env"]["OMP_NUM_THREADS"] is None  # vLLM binds threads itself
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{url}/facts")
    assert not Path(f"/proc/{facts['worker']}/cmdline").exists() or not (
        Path(f"/proc/{facts['worker']}/cmdline").read_bytes()
    )


def test_a_server_that_ends_at_once_is_unavailable(tmp_path: Path) -> None:
    python = stand_in(tmp_path, "#!/bin/sh\necho RuntimeError: no kernel\nexit 1\n")
    with (
        pytest.raises(PeerUnavailable, match="RuntimeError: no kernel"),
        vllm_serving(python, tmp_path, {}, 16, "float32", tmp_path / "log"),
    ):
        pass
