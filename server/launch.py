"""From settings to a running server: load, prove, publish, listen, drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from adapters.base import BaseKind
from adapters.batch.batched import BatchSizes
from adapters.blobs.blobs import open_blobs
from adapters.checkpoint.variants.common import BaseWeights
from adapters.errors import AdapterError
from adapters.limits import AdapterLimits
from adapters.merge import build_merged
from adapters.mixture import Mixtures
from adapters.registry.records import AdapterVersion
from adapters.registry.registry import Registry
from adapters.residency import Residency
from adapters.weights import base_weights
from server.access.principal import Access
from server.access.start import Unprotected, check_early, check_start
from server.api.app import create_app
from server.api.context import ServerContext
from server.engine import loading
from server.engine.base import ServedModel
from server.engine.core import EngineCore
from server.engine.encoder.core import EncoderCore
from server.engine.encoder.loading import load_encoder
from server.engine.encoder.model import EncoderModel
from server.engine.engine import Engine
from server.engine.loading import UnsupportedModel
from server.engine.merging import Merger
from server.engine.seq2seq.core import Seq2SeqCore
from server.engine.seq2seq.model import Seq2SeqModel
from server.heartbeat import beat
from server.jobs.service import open_service
from server.proof.process import PeftProcess
from server.proof.prover import Prover
from server.settings import GIB, MIB, Settings
from server.sizing import DoesNotFit, engine_config
from server.startup import Startup
from server.supervision import supervised
from training.base import BASE_NAME, MODEL_DIR

log = logging.getLogger(__name__)
_LAST_BYTES_SECONDS = 1
_KINDS: dict[BaseKind, tuple[Any, Any]] = {
    "decoder": (ServedModel, EngineCore),
    "encoder": (EncoderModel, EncoderCore),
    "encoder-decoder": (Seq2SeqModel, Seq2SeqCore),
}
"""The serving form of a base, and the core that runs it, by what it does."""
INTERRUPTED = 130
"""The shell's code for Ctrl-C."""


class StartError(Exception):
    """The server can't start, and why, in one line."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A base and everything needed to serve it. `startup` is what loading it took.

    `model` and `core` are of the types that suit the base's kind, as `_KINDS` has them.
    """

    model: Any
    tokenizer: Any
    core: Any
    registry: Registry
    mixtures: Mixtures
    startup: Startup
    prover: Prover | None


def load(settings: Settings, startup: Startup | None = None) -> Loaded:
    """Load and prove the base, open the registry, publish `--adapter`s, merge if asked.

    Raises:
        StartError: with the reason in one line.
    """
    try:
        check_early(settings)
        return _load(settings, startup or Startup())
    except (UnsupportedModel, AdapterError, Unprotected, DoesNotFit) as error:
        raise StartError(str(error)) from error


def _load(settings: Settings, startup: Startup) -> Loaded:
    folder = loading.resolve_folder(settings.model or str(MODEL_DIR))
    config = loading.load_config(folder)
    encodes = loading.base_kind(config) == "encoder"
    quantization = loading.choose_quantization(settings.quantization, config)
    model_type, core_type = _KINDS[loading.base_kind(config)]
    merges = settings.merge is not None or settings.auto_merge != "off"
    if merges and core_type is not EngineCore:
        raise StartError(f"{config.model_type} is no decoder: --merge and --auto-merge are not for it")
    # The hash takes as long as the weights take to be read, and leaves the interpreter to others.
    with ThreadPoolExecutor(1) as beside:
        hashed = beside.submit(loading.base_digest, folder)
        device = loading.choose_device(settings.device)
        dtype = loading.choose_dtype(settings.dtype, config, device)
        tokenizer = loading.load_tokenizer(folder)
        if encodes:
            stock: Any = load_encoder(folder, config, dtype, device)
        else:
            stock = loading.load_model(folder, config, dtype, device, quantization)
        digest = hashed.result()
    end_tokens = () if encodes else (loading.end_tokens(stock, tokenizer),)
    source = settings.model or BASE_NAME
    name = settings.served_model_name or (source.rstrip("/").split("/")[-1] if settings.model else "base")
    sizes = BatchSizes(settings.max_running, settings.max_adapter_rank)
    startup.lap("base")
    model = model_type(stock, name=name, digest=digest, source=source, sizes=sizes)
    startup.lap("proof")
    weights = base_weights(model.model, model.linears)
    registry = _registry(settings, model, weights)
    check_start(Access(registry.keys, settings.admin_key), settings.host)
    prover = _prover(settings, folder, model, tokenizer)
    if prover is not None:
        registry.prove = prover
    published = [_publish(registry, entry) for entry in settings.adapter]
    decoder = () if encodes else (tokenizer,)
    mixtures = Mixtures(registry.load, int(settings.adapter_memory_gb * GIB))
    residency = _residency(settings, mixtures, model)
    core = core_type(model, *decoder, residency, engine_config(settings, config, model), *end_tokens)
    if settings.merge:
        merged = registry.resolve(settings.merge)
        nbytes = build_merged(model.linears.values(), registry.load(merged.digest))
        core.runner.merged_digest = merged.digest
        log.info("merged %s into a copy of the base (%.1f MiB)", merged.ref, nbytes / MIB)
    if settings.auto_merge != "off":
        budget = int(settings.merge_memory_gb * GIB)
        core.merger = Merger(model, registry.load, settings.auto_merge, budget)
    for version in published:
        core.residency.warm(version.digest)
    startup.lap("adapters")
    return Loaded(model, tokenizer, core, registry, mixtures, startup, prover)


def _prover(settings: Settings, folder: Path, model: Any, tokenizer: Any) -> Prover | None:
    """It starts nothing until there is an adapter to prove."""
    if settings.parity == "off":
        return None
    dtype = next(name for name, kind in loading.DTYPES.items() if kind == model.dtype)
    quantization = model.spec.quantization
    process = PeftProcess(folder, dtype, quantization, idle_seconds=settings.parity_idle_seconds)
    return Prover(model, tokenizer, process, required=settings.parity == "require")


def _publish(registry: Registry, entry: str) -> AdapterVersion:
    """Publish one `NAME=PATH`."""
    name, _, path = entry.partition("=")
    version, _ = registry.publish_folder(name, Path(path).expanduser(), source="--adapter")
    log.info("serving adapter %s (%s)", version.ref, version.digest[:12])
    return version


def _registry(settings: Settings, model: Any, weights: BaseWeights) -> Registry:
    """On this machine alone, or on a database and a store that servers have together."""
    cache = None if settings.blob_cache_gb is None else int(settings.blob_cache_gb * GIB)
    blobs = open_blobs(settings.data_dir, settings.blob_url, cache)
    return Registry(
        settings.data_dir,
        model.spec,
        _limits(settings),
        model.dtype,
        weights,
        database_url=settings.database_url,
        blobs=blobs,
    )


def _limits(settings: Settings) -> AdapterLimits:
    return AdapterLimits(
        max_rank=settings.max_adapter_rank,
        max_file_bytes=settings.max_adapter_mb * MIB,
        max_adapters=settings.max_adapters,
        max_memory_bytes=int(settings.adapter_memory_gb * GIB),
    )


def _residency(settings: Settings, mixtures: Mixtures, model: Any) -> Residency:
    return Residency(
        mixtures.load,
        model.batch.place,
        model.device,
        int(settings.adapter_memory_gb * GIB),
        int(settings.host_adapter_memory_gb * GIB),
    )


def listen(settings: Settings) -> socket.socket:
    """Bind before anything is loaded, so that a taken port is known at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((settings.host, settings.port))
    except OSError as error:
        sock.close()
        raise StartError(f"can't listen on {settings.host}:{settings.port}: {error.strerror}") from error
    return sock


class _Uvicorn(uvicorn.Server):
    """Uvicorn that goes on listening after the first signal, until `should_exit`; the second one ends it all.

    Signals are not raised again, so that a drained process exits with 0.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.asked_to_stop = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.asked_to_stop.is_set():
            os._exit(INTERRUPTED)  # whatever hangs; nothing needs tidying, as after kill -9
        self.asked_to_stop.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


def serve(settings: Settings) -> None:
    """Load, listen until a signal, drain. Prints the URL when ready.

    Raises:
        StartError: it can't start.
    """
    startup = Startup()
    startup.lap("imports")
    sock = listen(settings)
    with sock:
        loaded = load(settings, startup)
        # What is loaded stays: the collector looks through it no more, neither in pauses while requests run
        # nor for a whole second at the exit.
        gc.collect()
        gc.freeze()
        asyncio.run(_serve(settings, loaded, sock))


async def _serve(settings: Settings, loaded: Loaded, sock: socket.socket) -> None:
    engine = Engine(loaded.core)
    loaded.registry.on_unused = engine.forget
    if loaded.prover is not None:
        loaded.prover.run = lambda function: engine.between_steps(lambda core: function()).result()
    context = ServerContext(
        settings=settings,
        base=loaded.model.spec,
        tokenizer=loaded.tokenizer,
        engine=engine,
        registry=loaded.registry,
        mixtures=loaded.mixtures,
        started=time.time(),
        training=open_service(settings, loaded.registry, loaded.model.spec.digest),
    )
    app = create_app(context)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_LAST_BYTES_SECONDS,  # `_drain` has waited for the answers
        lifespan="on",
    )
    server = _Uvicorn(config)
    base = str(Path(settings.model or MODEL_DIR).expanduser())
    async with _running(engine, loaded.prover), supervised(context, loaded.registry, base) as stop_training:
        beside = [
            asyncio.create_task(_announce(server, settings, context, sock, loaded.startup)),
            asyncio.create_task(_drain(server, settings, context, engine, stop_training)),
            asyncio.create_task(beat(context.metrics.loop_lag.observe)),
        ]
        await server.serve(sockets=[sock])
        for task in beside:
            task.cancel()
    loaded.registry.close()


@asynccontextmanager
async def _running(engine: Engine, prover: Prover | None) -> AsyncIterator[None]:
    engine.start()
    try:
        yield
    finally:
        if prover is not None:
            prover.close()
        await engine.drain(0)


async def _announce(
    server: _Uvicorn, settings: Settings, context: ServerContext, sock: socket.socket, startup: Startup
) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    startup.lap("listen")
    for part, seconds in startup.parts.items():
        context.metrics.startup.labels(part).set(seconds)
    log.info("ready after %.1f s: %s", startup.seconds, startup)
    kind = context.base.kind
    what = context.base.name if kind == "decoder" else f"{context.base.name} (an {kind})"
    print(
        f"multilora serves {what} and {len(context.registry.list())} adapter versions "
        f"after {startup.seconds:.1f} s at {local_url(settings.host, sock.getsockname()[1])}",
        flush=True,
    )
    if (notice := check_start(context.access, settings.host)) is not None:
        print(f"multilora: {notice}", flush=True)


def local_url(host: str, port: int) -> str:
    """An address that can be opened on this machine: "all addresses" is none."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _drain(
    server: _Uvicorn,
    settings: Settings,
    context: ServerContext,
    engine: Engine,
    stop_training: Callable[[], None],
) -> None:
    """From the first signal to the last answer of the requests that run by then.

    The socket stays open meanwhile: load balancers see `/health` turn, and latecomers a 503 instead of a
    refused connection. What has not ended in time ends with an error, and a client that does not even read
    that, or never ends its upload, is cut off.
    """
    await server.asked_to_stop.wait()
    context.draining = True
    stop_training()
    running = set(server.server_state.tasks)
    if running and (await asyncio.wait(running, timeout=settings.drain_seconds))[1]:
        await engine.drain(0)
        if (await asyncio.wait(running, timeout=_LAST_BYTES_SECONDS))[1]:
            for connection in list(server.server_state.connections):
                connection.transport.abort()
    server.should_exit = True
