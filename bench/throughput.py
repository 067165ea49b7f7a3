"""Generated tokens per second over HTTP: base, 1, 8 and 32 adapters, and the peers beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.load import median
from bench.peers.peft_generate import peft_cases
from bench.peers.vllm_environment import VERSION, PeerUnavailable, prepare
from bench.peers.vllm_server import vllm_serving
from bench.rounds import Case, Rounds, run_rounds, say, values
from bench.setting import WIDE, Bench, threads

ADAPTERS = 32
VLLM_BASE, BESIDE_VLLM = "vLLM: base", "base, beside vLLM"
VLLM_BASE_LORA, VLLM_MIXED = "vLLM: base, LoRA on", "vLLM: 8 adapters"
_MIXED = 8
_DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True, slots=True)
class Models:
    """What the clients of one case ask for: the base, or adapters in turn."""

    clients: int
    adapters: int

    def __call__(self) -> list[list[str]]:
        names = [f"a{index}" for index in range(self.adapters)] or ["base"]
        return [[names[client % len(names)]] for client in range(self.clients)]


def http_cases(clients: int) -> dict[str, Models]:
    """The cases by name."""
    return {
        "base": Models(clients, 0),
        "1 adapter": Models(clients, 1),
        "8 adapters": Models(clients, _MIXED),
        "base, 32 clients": Models(WIDE, 0),
        "8 adapters, 32 clients": Models(WIDE, _MIXED),
        "32 adapters, 32 clients": Models(WIDE, ADAPTERS),
    }


def measure_throughput(bench: Bench) -> Rounds:
    """Our server, PEFT in process and (with `bench.vllm`) vLLM's, in the same rounds."""
    done = Rounds()
    with bench.serving("throughput", bench.adapters(ADAPTERS)) as url:
        ours = {name: bench.http_case(url, models()) for name, models in http_cases(bench.clients).items()}
        vllm = _choose_vllm(bench, done)
        _beside_vllm(bench, ours["base"], vllm, done)
        with ExitStack() as stack:
            cases = dict(ours)
            cases |= stack.enter_context(_vllm_with_adapters(bench, vllm, done))
            for peft_dtype in _DTYPES:
                cases |= stack.enter_context(_peft(bench, peft_dtype))
            done.add(run_rounds(cases, bench.repeats, patience=bench.patience))
    return done


def measure_merged(bench: Bench) -> Rounds:
    """One adapter merged into a copy of the base, and the base on that same server."""
    with bench.serving("merged", bench.adapters(1), "--merge", "a0") as url:
        cases = {name: bench.http_case(url, [[name]] * bench.clients) for name in ("base", "a0")}
        return run_rounds({"base": cases["base"], "merged": cases["a0"]}, bench.repeats)


def measure_single(bench: Bench) -> Rounds:
    """One request alone, on the base and with one adapter."""
    with bench.serving("single", bench.adapters(1)) as url:
        cases = {name: bench.http_case(url, [[name] * 3]) for name in ("base", "a0")}
        return run_rounds({"base": cases["base"], "1 adapter": cases["a0"]}, bench.repeats)


def _choose_vllm(bench: Bench, done: Rounds) -> tuple[Path, str] | None:
    """vLLM's Python and the type in which its base is faster here, or None without vLLM.

    One repeat of each type tells, with LoRA support: without it the server compiles the model for minutes.
    """
    if bench.vllm is None:
        return None
    rates: dict[str, float] = {}
    try:
        say("vLLM: preparing its environment")
        python = prepare(bench.vllm)
        for dtype in _DTYPES:
            say(f"vLLM: base in {dtype}")
            case = f"{VLLM_BASE_LORA}, {dtype}"
            log = bench.folder / f"vllm-{dtype}.log"
            with vllm_serving(python, bench.base, bench.adapters(_MIXED), bench.rank, dtype, log) as url:
                done.add(run_rounds({case: bench.http_case(url, Models(bench.clients, 0)())}, 1))
            rates[dtype] = median(values(done.cases, case, "tokens_per_second"))
    except PeerUnavailable as error:
        _skip(error, done)
        return None
    faster = max(rates, key=lambda dtype: rates[dtype])
    done.notes.append(
        f"vLLM {VERSION} in {faster}, its faster type here; `{VLLM_BASE}` is without LoRA support"
    )
    return python, faster


def _beside_vllm(bench: Bench, base: Case, vllm: tuple[Path, str] | None, done: Rounds) -> None:
    """Our base and vLLM's, without LoRA support in vLLM."""
    if vllm is None:
        return
    python, dtype = vllm
    say("vLLM: base, LoRA off")
    log = bench.folder / "vllm-base.log"
    try:
        with vllm_serving(python, bench.base, {}, bench.rank, dtype, log) as url:
            theirs = bench.http_case(url, Models(bench.clients, 0)())
            done.add(run_rounds({BESIDE_VLLM: base, VLLM_BASE: theirs}, bench.repeats))
    except PeerUnavailable as error:
        _skip(error, done)


def _skip(error: PeerUnavailable, done: Rounds) -> None:
    say(f"skipped: {error}")
    done.notes.append(f"skipped: {error}")


@contextmanager
def _vllm_with_adapters(
    bench: Bench, vllm: tuple[Path, str] | None, done: Rounds
) -> Iterator[dict[str, Case]]:
    """The cases of a vLLM server with all adapters in memory; none if there is no such server."""
    if vllm is None:
        yield {}
        return
    python, dtype = vllm
    log = bench.folder / "vllm-adapters.log"
    with ExitStack() as stack:
        adapters = bench.adapters(_MIXED)
        try:
            server = vllm_serving(python, bench.base, adapters, bench.rank, dtype, log)
            url = stack.enter_context(server)
        except PeerUnavailable as error:
            _skip(error, done)
            yield {}
            return
        yield {
            VLLM_BASE_LORA: bench.http_case(url, Models(bench.clients, 0)()),
            VLLM_MIXED: bench.http_case(url, Models(bench.clients, _MIXED)()),
        }


@contextmanager
def _peft(bench: Bench, dtype: str) -> Iterator[dict[str, Case]]:
    job = {
        "base": str(bench.base),
        "adapters": [str(folder) for folder in bench.adapters(_MIXED).values()],
        "dtype": dtype,
        "batch": bench.clients,
        "prompt_tokens": bench.prompt_tokens,
        "new_tokens": bench.new_tokens,
        "threads": threads(),
    }
    with peft_cases(job, bench.folder / f"peft-{dtype}.json") as cases:
        yield {f"PEFT: {name}, {dtype}": case for name, case in cases.items()}
