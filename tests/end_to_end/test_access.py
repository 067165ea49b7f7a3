"""Where a real server starts without keys, what the first key changes, and the environment's admin key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx

from server.spawn import serving

ADMIN = "an-operator's-secret-of-tests"


def test_without_keys_it_does_not_start_where_others_can_reach_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "server.cli.main", "serve", "--host", "0.0.0.0", "--port", "0"]
    command += ["--data-dir", str(tmp_path / "data"), "--parity", "off"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("multilora: --host 0.0.0.0 can be reached by others and there are no API keys")
    assert "MULTILORA_ADMIN_KEY" in last
    assert "Traceback" not in done.stderr
    assert "multilora serves" not in done.stdout


def test_the_first_key_shuts_the_door_and_a_restart_keeps_it_shut(tmp_path: Path) -> None:
    arguments, log = ["--data-dir", str(tmp_path / "data")], tmp_path / "log"
    with serving(arguments, log) as url:
        assert "multilora: no API keys: whoever can connect to 127.0.0.1" in log.read_text()
        assert httpx.get(f"{url}/v1/models").status_code == 200
        asked = {"name": "boss", "scopes": ["use"]}
        locked_out = httpx.post(f"{url}/v1/keys", json=asked)
        assert (locked_out.status_code, locked_out.json()["error"]["code"]) == (400, "first_key_not_operator")
        made = httpx.post(f"{url}/v1/keys", json={"name": "boss", "scopes": ["operator"]}).json()
        assert "every request needs one" in made["notice"]
        assert httpx.get(f"{url}/v1/models").status_code == 401
        headers = {"authorization": f"Bearer {made['secret']}"}
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
        key = httpx.post(f"{url}/v1/keys", json=asked, headers=headers).json()
        assert "notice" not in key
        assert httpx.delete(f"{url}/v1/keys/{made['id']}", headers=headers).json()["state"] == "revoked"
        assert httpx.get(f"{url}/v1/keys", headers=headers).status_code == 401
        assert httpx.get(f"{url}/v1/models", headers={"x-api-key": key["secret"]}).status_code == 200

    with serving([*arguments, "--host", "0.0.0.0"], log, environment={"MULTILORA_ADMIN_KEY": ADMIN}) as url:
        assert "no API keys" not in log.read_text()
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 401
        assert httpx.get(f"{url}/v1/models", headers={"x-api-key": key["secret"]}).status_code == 200
        listed = httpx.get(f"{url}/v1/keys", headers={"x-api-key": ADMIN}).json()["data"]
        assert [(entry["name"], entry["state"]) for entry in listed] == [
            ("boss", "revoked"),
            ("boss", "valid"),
        ]
        assert httpx.get(f"{url}/health").status_code == 200
        assert "notice" not in listed[0]
    assert ADMIN not in log.read_text()
    assert key["secret"] not in log.read_text()
