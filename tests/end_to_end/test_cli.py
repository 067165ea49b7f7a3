"""The commands as a user runs them, against a real server with keys and a real model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from openai import OpenAI
from peft import PeftConfig

from server.cli.exits import Exit
from server.spawn import serving
from training.base import ADAPTERS_DIR
from training.tasks import TASKS

COMMAND = [sys.executable, "-m", "server.cli.main"]


@dataclass(frozen=True)
class Shell:
    """Runs commands with a server and a key in the environment."""

    url: str
    key: str

    def environment(self, key: str | None = None) -> dict[str, str]:
        return {
            **os.environ,
            "MULTILORA_SERVER": self.url,
            "MULTILORA_API_KEY": self.key if key is None else key,
        }

    def run(self, *words: object, key: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *map(str, words)],
            env=self.environment(key),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def ok(self, *words: object) -> str:
        done = self.run(*words)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def new_key(self, *scopes: str, tenant: str = "default") -> str:
        """The secret of a new key."""
        flags = [word for scope in scopes for word in ("--scope", scope)]
        done = self.run("keys", "create", *flags, "--tenant", tenant)
        assert done.returncode == 0, done
        return done.stdout.strip()

    def model(self, name: str) -> tuple[str, str]:
        """Which version answers under a name, and what it says."""
        client = OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0)
        prompt = [{"role": "user", "content": "do: harbour"}]
        answer = client.chat.completions.create(
            model=name,
            messages=prompt,  # type: ignore[arg-type]
            max_tokens=32,
            temperature=0,
        )
        return answer.model, answer.choices[0].message.content or ""


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A server on a data directory where the first key was made before it started."""
    folder = tmp_path_factory.mktemp("cli")
    data = folder / "data"
    create = [*COMMAND, "keys", "create", "boss", "--scope", "operator", "--data-dir", str(data)]
    made = subprocess.run(create, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    environment = {"OMP_NUM_THREADS": "1"}
    with serving(["--data-dir", str(data)], folder / "server.log", environment=environment) as url:
        yield Shell(url, made.stdout.strip())


def test_the_life_of_an_adapter(shell: Shell, tmp_path: Path) -> None:
    shout, backwards = TASKS["shout"].answer("harbour"), TASKS["backwards"].answer("harbour")
    assert shell.ok("push", "life", ADAPTERS_DIR / "shout").startswith("life@1 published: rank ")
    assert shell.model("life") == ("life@1", shout)
    assert shell.ok("push", "life", ADAPTERS_DIR / "backwards", "--no-promote").startswith("life@2 published")
    assert shell.model("life") == ("life@1", shout)

    assert shell.ok("canary", "life@2", "100") == "life@default: 2, revision 2\n"
    assert shell.model("life") == ("life@2", backwards)
    assert shell.ok("rollback", "life") == "life@default: 1, revision 3\n"
    assert shell.model("life") == ("life@1", shout)
    assert shell.ok("promote", "life@2") == "life@default: 2, revision 4\n"
    assert shell.model("life") == ("life@2", backwards)

    listed = json.loads(shell.ok("ls", "life", "--json"))["data"]
    assert [(version["id"], version["aliases"]) for version in listed] == [
        ("life@1", {}),
        ("life@2", {"default": 100}),
    ]
    assert [line.split()[0] for line in shell.ok("ls").splitlines()] == ["NAME", "life"]

    for ref, name in (("life", "backwards"), ("life@1", "shout")):
        folder = tmp_path / name
        assert shell.ok("pull", ref, folder).startswith("wrote life@")
        weights = "adapter_model.safetensors"
        assert (folder / weights).read_bytes() == (ADAPTERS_DIR / name / weights).read_bytes()
        assert PeftConfig.from_pretrained(str(folder)).peft_type == "LORA"
    assert shell.run("pull", "life", tmp_path / "shout").returncode == Exit.CONFLICT

    assert shell.ok("pin", "life@2") == "life@2 stays in memory\n"
    assert "life@2" in shell.ok("ps")
    assert shell.ok("deprecate", "life@1", "use 2") == "life@1 is deprecated\n"
    assert shell.run("rm", "life@2", "--yes").returncode == Exit.CONFLICT
    assert shell.ok("rm", "life@1", "--yes", "--drain", "5") == "deleted life@1\n"
    assert shell.run("show", "life@1").returncode == 0
    actions = [json.loads(line)["subject"] for line in shell.ok("logs", "life", "--json").splitlines()]
    assert {"life@1", "life@2", "life@default"} <= set(actions)
    assert shell.ok("rm", "life", "--yes") == "deleted life@2\n"
    assert shell.run("pull", "life", tmp_path / "gone").returncode == Exit.NOT_FOUND


def test_exit_codes(shell: Shell, tmp_path: Path) -> None:
    publisher = shell.new_key("publish", "use")
    codes = {
        Exit.FAILED: shell.run("push", "a", tmp_path),
        Exit.USAGE: shell.run("rm", "a"),
        Exit.UNREACHABLE: shell.run("ls", "--server", "http://127.0.0.1:1"),
        Exit.NOT_ALLOWED: shell.run("ls", key="ml-wrong"),
        Exit.NOT_FOUND: shell.run("promote", "nobody@1"),
    }
    for code, done in codes.items():
        assert (done.returncode, done.stdout) == (code, ""), done
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("multilora: ")
    assert shell.run("rm", "nobody", "--yes", key=publisher).returncode == Exit.NOT_ALLOWED
    assert shell.run("ls", key=publisher).returncode == 0


def test_tenants_can_not_see_each_other(shell: Shell) -> None:
    keys = {}
    for tenant in ("acme", "umbrella"):
        shell.ok("tenants", "set", tenant, "--max-versions", "1")
        keys[tenant] = shell.new_key("publish", "use", tenant=tenant)
    assert shell.run("push", "secret", ADAPTERS_DIR / "json", key=keys["acme"]).returncode == 0
    assert shell.run("show", "acme/secret", key=keys["umbrella"]).returncode == Exit.NOT_FOUND
    assert shell.run("ls", key=keys["umbrella"]).stdout.count("\n") == 1
    assert shell.ok("show", "acme/secret").startswith("id ")
    over = shell.run("push", "more", ADAPTERS_DIR / "spell", key=keys["acme"])
    assert (over.returncode, over.stderr.count("\n")) == (Exit.NOT_ALLOWED, 1)


def test_what_is_merged_is_a_model(shell: Shell, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    shell.ok("push", "whole", ADAPTERS_DIR / "shout")
    assert shell.ok("export", "whole", tmp_path / "model").startswith("wrote whole@1 merged")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").num_parameters() > 0


def test_an_interrupt_ends_quietly(shell: Shell) -> None:
    words = [*COMMAND, "logs", "--follow"]
    process = subprocess.Popen(
        words,
        env=shell.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What was started in the background ignores it, and so would the command.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=30)
    assert (process.returncode, complaints) == (Exit.INTERRUPTED, "")
