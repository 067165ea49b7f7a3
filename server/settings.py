"""Every setting of the server, in one typed class.

Each field is a flag of `multilora serve` (`max_model_len` is `--max-model-len`) and an environment variable
(`MULTILORA_MAX_MODEL_LEN`). A flag wins over the environment; an empty variable is one that is not set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from adapters.batch.native.switch import DISABLE

GIB = 1024**3
MIB = 1024**2
ENV_PREFIX = "MULTILORA_"
OF_CLIENTS = ("MULTILORA_SERVER", "MULTILORA_API_KEY")
"""What the commands that ask a server read; the server itself does not."""


def default_data_dir() -> Path:
    """`$XDG_DATA_HOME/multilora`, or `~/.local/share/multilora`."""
    root = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(root) / "multilora"


class Settings(BaseSettings):
    """Settings of one server process. Values are validated before anything is loaded."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    model: str | None = Field(
        None, description="base model: a folder or a hub id (default: the shipped base)"
    )
    adapter: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="NAME=PATH of an adapter folder to publish at start; repeat for more"
    )
    served_model_name: str | None = Field(
        None, description="the base's name in the API (default: from --model)"
    )
    merge: str | None = Field(
        None, description="adapter to serve merged into a copy of the base, at full speed"
    )
    auto_merge: Literal["off", "on", "auto"] = Field(
        "off",
        description="while one adapter alone is asked, run on a copy of the base with it merged: "
        "auto only if its steps are measurably faster",
    )
    merge_memory_gb: float = Field(4.0, gt=0, description="most memory for the copy of --auto-merge in GiB")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    allow_host: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="name by which the server may be asked besides localhost and --host; repeat for more"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="type of the weights"
    )
    quantization: Literal["none", "nf4", "int8"] = Field(
        "none", description="keep the base's linear layers quantised, through bitsandbytes"
    )
    threads: int = Field(0, ge=0, description="CPU threads for the model; 0 chooses")
    max_model_len: int | None = Field(None, ge=8, description="most tokens of prompt and answer together")
    max_batch_tokens: int | None = Field(
        None, ge=16, description="most tokens in one forward pass (default: 512 on CPU, 4096 on a GPU)"
    )
    max_running: int = Field(64, ge=1, description="most sequences that run at once")
    max_waiting: int = Field(1024, ge=1, description="most sequences that wait; one more is a 429")
    kv_cache_gb: float | None = Field(
        None, gt=0, description="memory for the KV cache in GiB (default: chosen)"
    )
    block_size: int = Field(16, ge=1, le=256, description="tokens in one KV block")
    prefix_cache: bool = Field(True, description="reuse the KV of equal prompt beginnings")
    adapter_memory_gb: float = Field(
        1.0, gt=0, description="memory for adapters in GiB; the least recently used leave first"
    )
    host_adapter_memory_gb: float = Field(
        4.0, gt=0, description="with a GPU: memory for adapters on the host in GiB, ready to be copied"
    )
    admin_key: SecretStr | None = Field(
        None,
        exclude=True,
        description="an operator's API key that is not stored; with it every request needs a key",
    )
    share_kv: bool = Field(False, description="let tenants reuse one another's cached prompt beginnings")
    data_dir: Path = Field(default_factory=default_data_dir, description="where uploaded adapters are kept")
    database_url: str | None = Field(
        None,
        description="where servers keep their registry together, such as postgresql://user@host/name; with a "
        "password rather in the variable (default: a file in the data directory)",
    )
    blob_url: str | None = Field(
        None,
        description="where servers keep the files of adapters together, such as s3://bucket/prefix or "
        "file:///mnt/adapters (default: in the data directory)",
    )
    blob_cache_gb: float | None = Field(
        None, gt=0, description="with --blob-url: most room for copies in the data directory in GiB"
    )
    adapter_dir: Path | None = Field(
        None, description="folder that /v1/load_lora_adapter may read from (default: none, the route refuses)"
    )
    max_adapter_rank: int = Field(256, ge=1, description="largest rank that an adapter may have")
    max_adapter_mb: int = Field(2048, ge=1, description="largest adapter file in MiB")
    max_adapters: int = Field(100_000, ge=1, description="most live adapter versions")
    max_body_mb: int = Field(8, ge=1, description="largest JSON request body in MiB")
    max_n: int = Field(16, ge=1, description="most answers to one prompt, and most prompts in one request")
    max_inputs: int = Field(
        2048, ge=1, description="most inputs in one request for embeddings or classification"
    )
    max_logprobs: int = Field(20, ge=0, description="most alternatives to report for each token")
    parity: Literal["on", "off", "require"] = Field(
        "on",
        description="compare each new adapter with PEFT's own forward before it is published; takes seconds, "
        "and memory for a second base in a process of its own; require refuses what can't be compared",
    )
    parity_idle_seconds: float = Field(
        300.0,
        gt=0,
        description="without a publication for so long, PEFT's process ends and gives its memory back",
    )
    training: bool = Field(True, description="take fine-tuning jobs and train them")
    max_training_file_mb: int = Field(512, ge=1, description="largest training file in MiB")
    max_training_files_gb: float = Field(
        20.0, gt=0, description="most bytes of training files of all tenants together, in GiB"
    )
    training_device: Literal["auto", "cpu"] = Field(
        "auto", description="where jobs train; cpu leaves a GPU to requests"
    )
    training_threads: int = Field(
        0, ge=0, description="CPU threads of a training job; 0: half of the cores, and one at least"
    )
    training_memory_gb: float | None = Field(
        None,
        gt=0,
        description="most memory that training may take in GiB, its libraries included "
        "(default: half of what is free as it starts)",
    )
    training_nice: int = Field(
        19,
        ge=0,
        le=19,
        description="how much training stands back behind requests; at 19 it takes what nobody else wants",
    )
    training_together: int = Field(
        8, ge=1, description="most jobs that train together, on one copy of the base"
    )
    drain_seconds: float = Field(30.0, ge=0, description="how long a stopping server lets requests finish")

    @field_validator("adapter", "allow_host", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """From the environment: entries separated by commas."""
        return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value

    @field_validator("adapter")
    @classmethod
    def _name_and_path(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            name, _, path = entry.partition("=")
            if not name or not path:
                raise ValueError(f"takes NAME=PATH, not {entry!r}")
        return value

    @field_validator("admin_key")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"[!-~]{16,256}", value.get_secret_value()):
            raise ValueError("takes 16 to 256 printable ASCII characters without spaces")
        return value

    @field_validator("auto_merge")
    @classmethod
    def _one_copy(cls, value: str, info: ValidationInfo) -> str:
        if value != "off" and info.data.get("merge"):
            raise ValueError("there is one merged copy only, and --merge names it")
        return value

    @field_validator("allow_host")
    @classmethod
    def _host_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if not re.fullmatch(r"[\w.-]+|\[[\da-fA-F:.]+\]", entry):
                raise ValueError(f"takes a host name without scheme and port, not {entry!r}")
        return tuple(entry.lower() for entry in value)


def flags() -> dict[str, FieldInfo]:
    """The settings that are flags too: a secret is none, as a command line is shown to everybody."""
    return {name: field for name, field in Settings.model_fields.items() if not field.exclude}


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """Names that look like settings and are none, such as a misspelt one."""
    known = {f"{ENV_PREFIX}{name}".upper() for name in Settings.model_fields} | {DISABLE, *OF_CLIENTS}
    return sorted(name for name in environment if name.startswith(ENV_PREFIX) and name.upper() not in known)
