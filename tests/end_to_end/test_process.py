"""The process itself: exit codes, one clear line for what is wrong, drains, merges, restarts."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from server.spawn import serving, start_server, stop_server
from tests.tiny import make_adapter, make_model
from training.base import ADAPTERS_DIR, MODEL_DIR
from training.tasks import make_examples, prompt_for

ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def multilora(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def ask(url: str, model: str, **fields: object) -> httpx.Response:
    body = {"model": model, "prompt": prompt_for("garden"), "temperature": 0, "max_tokens": 32, **fields}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=60)


def wait_for(happens: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_answer_finish_and_exits_0(tmp_path: Path, number: signal.Signals) -> None:
    process, url = start_server(
        ["--port", "0", "--data-dir", str(tmp_path / "data")], tmp_path / "log", environment=ENVIRONMENT
    )
    answers: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: answers.append(ask(url, "base", max_tokens=400, ignore_eos=True))
    )
    asking.start()
    time.sleep(0.3)
    process.send_signal(number)
    assert process.wait(60) == 0
    asking.join()
    assert answers[0].status_code == 200
    assert answers[0].json()["usage"]["completion_tokens"] == 400
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_while_it_drains_it_answers_health_and_refuses_new_work(tmp_path: Path) -> None:
    process, url = start_server(
        ["--port", "0", "--data-dir", str(tmp_path / "data")], tmp_path / "log", environment=ENVIRONMENT
    )
    body = {"model": "base", "prompt": "a", "max_tokens": 450, "ignore_eos": True, "stream": True, "n": 8}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        process.terminate()
        wait_for(lambda: httpx.get(f"{url}/health").status_code == 503)
        assert httpx.get(f"{url}/health").json()["status"] == "draining"
        late = ask(url, "base")
        assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert process.wait(60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_what_a_drain_does_not_wait_for_ends_with_an_error(tmp_path: Path) -> None:
    arguments = ["--port", "0", "--data-dir", str(tmp_path / "data"), "--drain-seconds", "0.1"]
    process, url = start_server(arguments, tmp_path / "log", environment=ENVIRONMENT)
    body = {"model": "base", "prompt": "a", "max_tokens": 450, "ignore_eos": True, "stream": True, "n": 8}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        process.terminate()
        assert "shutting down" in [line for line in lines if line][-1]
    assert process.wait(60) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_an_upload_that_never_ends_does_not_stop_it_from_stopping(tmp_path: Path) -> None:
    arguments = ["--port", "0", "--data-dir", str(tmp_path / "data"), "--drain-seconds", "0.1"]
    process, url = start_server(arguments, tmp_path / "log", environment=ENVIRONMENT)
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
        client.sendall(
            b"POST /v1/adapters HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        )
        wait_for(lambda: any((tmp_path / "data" / "uploads").glob("*")))
        assert stop_server(process) == 0
    assert not any((tmp_path / "data" / "uploads").glob("*"))
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.alone
def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    process, url = start_server(
        ["--port", "0", "--data-dir", str(tmp_path / "data")], tmp_path / "log", environment=ENVIRONMENT
    )
    body = {"model": "base", "prompt": "a", "max_tokens": 450, "ignore_eos": True, "stream": True, "n": 8}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()  # as a temporary it would close the connection
        next(lines)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: httpx.get(f"{url}/health").status_code == 503)
        process.send_signal(signal.SIGINT)
        assert process.wait(1) == 130
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.alone
def test_an_idle_server_ends_promptly(tmp_path: Path) -> None:
    process, url = start_server(
        ["--port", "0", "--data-dir", str(tmp_path / "data")], tmp_path / "log", environment=ENVIRONMENT
    )
    with httpx.Client() as client:  # its connection stays open
        assert client.get(f"{url}/health").status_code == 200
        started = time.monotonic()
        assert stop_server(process) == 0
        assert time.monotonic() - started < 3  # half a second where nothing else runs


def test_a_client_that_leaves_frees_what_it_held(tmp_path: Path) -> None:
    with serving(["--data-dir", str(tmp_path / "data")], tmp_path / "log", environment=ENVIRONMENT) as url:
        body = {"model": "base", "prompt": "a", "max_tokens": 450, "ignore_eos": True, "stream": True, "n": 4}
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as response:
            next(response.iter_lines())
        wait_for(lambda: "multilora_requests_running 0.0" in httpx.get(f"{url}/metrics").text)


def test_uploads_survive_kill_9(tmp_path: Path) -> None:
    arguments = ["--port", "0", "--data-dir", str(tmp_path / "data")]
    process, url = start_server(arguments, tmp_path / "log", environment=ENVIRONMENT)
    files = {
        "config": (ADAPTERS_DIR / "shout" / "adapter_config.json").read_bytes(),
        "weights": (ADAPTERS_DIR / "shout" / "adapter_model.safetensors").read_bytes(),
    }
    assert httpx.post(f"{url}/v1/adapters", data={"name": "kept"}, files=files).status_code == 201
    process.kill()
    process.wait()
    process, url = start_server(arguments, tmp_path / "log", environment=ENVIRONMENT)
    assert ask(url, "kept").json()["choices"][0]["text"] == "GARDEN!!!"
    assert stop_server(process) == 0


def test_merged_serving_answers_as_the_adapter_and_leaves_the_base_alone(tmp_path: Path) -> None:
    arguments = ["--data-dir", str(tmp_path / "data"), "--adapter", f"shout={ADAPTERS_DIR / 'shout'}"]
    arguments += ["--adapter", f"spell={ADAPTERS_DIR / 'spell'}", "--merge", "shout"]
    with serving(arguments, tmp_path / "log", environment=ENVIRONMENT) as url:
        assert ask(url, "shout").json()["choices"][0]["text"] == "GARDEN!!!"
        assert ask(url, "spell").json()["choices"][0]["text"] == "G-A-R-D-E-N"
        assert ask(url, "base").json()["choices"][0]["text"] == "garden"


def test_merge_writes_a_plain_model_folder(tmp_path: Path) -> None:
    done = multilora(
        "merge",
        *(
            "--model",
            str(MODEL_DIR),
            "--adapter",
            str(ADAPTERS_DIR / "shout"),
            "--output",
            str(tmp_path / "out"),
        ),
    )
    assert done.returncode == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    case = make_examples("shout", 1, split="held-out")[0]
    inputs = tokenizer(case.prompt, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    assert (
        tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True) == case.completion
    )


def test_what_can_not_be_served_is_one_clear_line(tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path / "no-tokenizer")
    adapter = make_adapter(make_model("llama"), tmp_path / "adapter", 0)
    cases = {
        ("--model", str(tmp_path / "nowhere")): "there is no such folder",
        ("--model", str(tmp_path / "no-tokenizer")): "tokenizer",
        ("--model", str(adapter)): "is an adapter, not a base model",
        ("--adapter", f"a={adapter}"): "another base",
        ("--merge", "nobody"): "no adapter 'nobody'",
        ("--max-model-len", "1000000"): "at most",
    }
    # All in one process: importing torch takes longer than what is tested.
    serve = ("serve", "--port", "0", "--data-dir")
    commands = [[*serve, str(tmp_path / str(place)), *case] for place, case in enumerate(cases)]
    code = "import sys, server.cli.main as cli; [print('exit', cli.main(c), file=sys.stderr) for c in %r]"
    done = subprocess.run(
        [sys.executable, "-c", code % commands], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    *answers, rest = done.stderr.split("exit 1\n")
    assert rest == ""
    for said, says in zip(answers, cases.values(), strict=True):
        last = said.strip().splitlines()[-1]
        assert last.startswith("multilora: ")
        assert says in last


def test_a_wrong_setting_is_exit_code_2(tmp_path: Path) -> None:
    done = multilora("serve", "--port", "99999")
    assert done.returncode == 2
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_known_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = multilora("serve", "--port", str(port), "--model", "nowhere")
    assert done.returncode == 1
    assert f"can't listen on 127.0.0.1:{port}" in done.stderr
